"""Whether a call computes with denormal numbers, which a processor notes in its status register (x86-64)."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable

import torch

_LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
# The last word of C's `fenv_t` is the register of the vector units: a denormal operand, a result that underflows.
_WORDS, _OPERAND, _UNDERFLOW = 8, 0x02, 0x10


def meets_denormals(call: Callable[[], object]) -> bool:
    """Whether an operation of the call has a denormal operand, or a result too small for a normal number."""
    threads = torch.get_num_threads()
    # The register is this thread's.
    torch.set_num_threads(1)
    environment = (ctypes.c_uint32 * _WORDS)()
    try:
        _LIBM.fegetenv(environment)
        environment[_WORDS - 1] &= ~(_OPERAND | _UNDERFLOW)
        _LIBM.fesetenv(environment)
        call()
        _LIBM.fegetenv(environment)
    finally:
        torch.set_num_threads(threads)
    return bool(environment[_WORDS - 1] & (_OPERAND | _UNDERFLOW))
