"""fastgen: the classic deep generative models, fast, in PyTorch.

`fastgen.ops` and `fastgen.nn` are drop-in functions and layers, `fastgen.sampling` the exact cached sampler,
`fastgen.models` the models, `fastgen.gan` parts of adversarial ones, `fastgen.density` the estimators,
`fastgen.metrics` what samples are judged by; `fastgen --help` trains, samples, scores and benchmarks from the command
line.
"""

import importlib

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

_ROOMS = ("data", "density", "gan", "metrics", "models", "nn", "sampling", "train")


def __getattr__(name: str):
    # Rooms above the ops are imported when they are first used: `import fastgen` stays as quick as torch's own import.
    if name in _ROOMS:
        return importlib.import_module(f"fastgen.{name}")
    raise AttributeError(f"module 'fastgen' has no attribute {name!r}")
