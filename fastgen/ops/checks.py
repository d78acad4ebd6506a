"""Checks of arguments that many ops share: errors name the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.nn import Parameter


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")


def check_tensor(name: str, tensor: Tensor, like: Tensor | None = None, like_name: str = "") -> None:
    """Check that it is a tensor of a floating dtype, on the device of `like`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    check_floating(name, tensor)
    if like is not None and tensor.device != like.device:
        raise TypeError(f"{name}: expected {like.device} as {like_name}, got {tensor.device}")


def check_floating_on(name: str, tensor: Tensor, like: Tensor) -> None:
    """Check that the dtype is floating, which may differ from that of `like`, and the device the same."""
    if not tensor.is_floating_point() or tensor.device != like.device:
        raise TypeError(f"{name}: expected a floating dtype on {like.device}, got {tensor.dtype} on {tensor.device}")


def check_same_type(name: str, tensor: Tensor | None, like: Tensor) -> None:
    """Check that an argument, which may be None, has the dtype and the device of `like`."""
    if tensor is not None and (tensor.dtype != like.dtype or tensor.device != like.device):
        raise TypeError(f"{name}: expected {like.dtype} on {like.device}, got {tensor.dtype} on {tensor.device}")


def check_same_shape(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    if tensor.shape != like.shape:
        raise ValueError(f"{name}: expected the shape of {like_name}, {tuple(like.shape)}, got {tuple(tensor.shape)}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def checked_seed(x: Tensor, seed: int | Tensor | None, offset: int) -> tuple[int | None, Tensor | None]:
    """Check a seed and an offset; returns the seed as (number, None) or (None, tensor), on the device of `x`."""
    if not 0 <= offset < 2**63:
        raise ValueError(f"offset: expected 0 to 2^63 - 1, got {offset}")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.device != x.device:
            raise TypeError(f"seed: expected int64 on {x.device}, got {seed.dtype} on {seed.device}")
        if seed.numel() != 1:
            raise ValueError(f"seed: expected one number, got {tuple(seed.shape)}")
        return None, seed
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected 0 to 2^63 - 1, got {seed}")
    return seed, None


def is_visible(tensor: Tensor, *, waiting: bool = False) -> bool:
    """Whether its values can be looked at without breaking a graph, nor (unless `waiting`) waiting for a device."""
    plain = (tensor.is_cpu or (waiting and not tensor.is_meta)) and type(tensor) in (Tensor, Parameter)
    if not plain or torch.compiler.is_compiling() or maybe_current_level() is not None:
        return False
    # A mode that intercepts operators may stand for another device.
    return not torch._C._len_torch_dispatch_stack()
