"""Tensors that end, or start, exactly at memory that nobody may touch: a kernel that reads one element too many dies.

It needs no sanitizer and costs no speed, so that every drawn call of the campaign runs on such tensors. What lies at
the end of a page is aligned to its elements only, as a slice of a larger tensor is.
"""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """One place in memory of `pages` pages between two that nobody may touch; it holds one tensor at a time."""

    def __init__(self, pages: int = 64) -> None:
        self.size = pages * _PAGE
        self.map = mmap.mmap(-1, self.size + 2 * _PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        for address in (start, start + _PAGE + self.size):
            if _LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(_PAGE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.bytes = torch.frombuffer(self.map, dtype=torch.uint8)[_PAGE : _PAGE + self.size]

    def hold(self, tensor: Tensor, *, at_end: bool) -> Tensor:
        """The tensor with the same strides in this memory, so that its last element is the last before the guard (or
        its first the first after it); what does not fit is returned as it is.
        """
        length = storage_length(tensor)
        size = length * tensor.element_size()
        if not size or size > self.size:
            return tensor
        start = self.size - size if at_end else 0
        flat = self.bytes[start : start + size].view(tensor.dtype)
        flat.copy_(tensor.as_strided((length,), (1,)))
        return flat.as_strided(tensor.shape, tensor.stride(), flat.storage_offset())


def storage_length(tensor: Tensor) -> int:
    """How many elements of memory lie between a tensor's first and its last."""
    if not tensor.numel():
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
