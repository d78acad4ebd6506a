"""fastgen: the classic deep generative models, fast, in PyTorch.

`fastgen.ops` and `fastgen.nn` are drop-in functions and layers, `fastgen.sampling` the exact cached sampler,
`fastgen.models` the models, `fastgen.gan` parts of adversarial ones, `fastgen.density` the estimators,
`fastgen.metrics` what samples are judged by; `fastgen --help` trains, samples, scores and benchmarks from the command
line.

All of it is imported when it is first used: `import fastgen` alone imports nothing else, not even PyTorch. A program
that only loads what `torch.export` saved needs `import fastgen.ops`, which registers the operators.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgen.ops import BackendError, explain, use_backend

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "__version__",
    "data",
    "density",
    "explain",
    "gan",
    "metrics",
    "models",
    "nn",
    "ops",
    "sampling",
    "train",
    "use_backend",
]

_OPS = ("BackendError", "explain", "use_backend")


def __getattr__(name: str) -> Any:
    if name in _OPS:
        return getattr(importlib.import_module("fastgen.ops"), name)
    if name in __all__:
        return importlib.import_module(f"fastgen.{name}")
    raise AttributeError(f"module 'fastgen' has no attribute {name!r}")
