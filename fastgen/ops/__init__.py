"""Ops: a public function each, its plain-PyTorch reference beside it, and kernels chosen per call.

Every family is one file, `fastgen/ops/<family>.py`; each op `f` has `f_reference`, the specification.
"""

from fastgen.ops._registry import BackendError, explain, use_backend
from fastgen.ops.gated_activation import gated_activation, gated_activation_reference

__all__ = [
    "BackendError",
    "explain",
    "gated_activation",
    "gated_activation_reference",
    "use_backend",
]
