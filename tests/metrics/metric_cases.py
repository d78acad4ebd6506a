"""Every metric of fastgen.metrics, small, and batches for it by its argument names: so the next one is here too."""

import importlib
import inspect
import pkgutil

import torch
import torchmetrics

import fastgen.metrics


def squared(a, b):
    return (a - b).flatten(1).square().sum(1)


def decoded(x, z):
    """log p(x|z) of a normal decoder with six outputs."""
    means = torch.cat([z, z.square(), z.sin()], 1)
    return -2 * (x - means).square().sum(1)


# Arguments of the constructors, those that are required and those that make it quick.
SMALL = {
    "feature": "given",
    "dimensions": 3,
    "distance": squared,
    "log_likelihood": decoded,
    "latent_dim": 2,
    "subsets": 3,
    "subset_size": 8,
    "num_projections": 16,
    "splits": 2,
    "nearest_k": 2,
    "weights": (0.5, 0.5),
    "chains": 2,
    "steps": 2,
    "leapfrog_steps": 2,
}
SIZES = (9, 1, 12, 20)


def _rows(n, d, seed, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _two_sets(n, i):
    yield {"imgs": _rows(n, 6, 2 * i), "real": True}
    yield {"imgs": 0.3 + _rows(n, 6, 2 * i + 1, 1.2), "real": False}


def _three_parts(n, i):
    for j, part in enumerate(("train", "test", "generated")):
        yield {"imgs": 0.1 * j + _rows(n, 6, 3 * i + j), "part": part}


def _pairs(n, i):
    clean, noise = torch.rand(2, n, 1, 24, 24, generator=torch.Generator().manual_seed(i))
    yield {"preds": clean, "target": (clean + 0.2 * noise).clamp(0, 1)}


# By the required arguments of `update`: the updates for a batch of n examples.
FEEDS = {
    ("imgs", "real"): _two_sets,
    ("imgs", "part"): _three_parts,
    ("imgs",): lambda n, i: [{"imgs": _rows(n, 6, i)}],
    ("preds", "target"): _pairs,
    ("log_prob",): lambda n, i: [{"log_prob": _rows(n, 1, i)[:, 0] - 3}],
    ("x",): lambda n, i: [{"x": _rows(n, 6, i).double()}],
    ("generate", "start", "end"): lambda n, i: [
        {"generate": torch.exp, "start": _rows(n, 4, i).double(), "end": _rows(n, 4, 99 - i).double()}
    ],
}


def every_metric():
    """The classes, of all modules of the package."""
    found = []
    for module in pkgutil.walk_packages(fastgen.metrics.__path__, "fastgen.metrics."):
        for value in vars(importlib.import_module(module.name)).values():
            defined = inspect.isclass(value) and value.__module__ == module.name
            if defined and issubclass(value, torchmetrics.Metric) and not inspect.isabstract(value):
                found.append(value)
    return sorted(found, key=lambda c: c.__name__)


EVERY = every_metric()


def make(cls, **kwargs):
    names = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in SMALL.items() if name in names} | kwargs)


def feed_of(cls):
    required = inspect.signature(cls.update).parameters.values()
    names = tuple(p.name for p in required if p.default is p.empty and p.name != "self")
    assert names in FEEDS, f"{cls.__name__}.update{names}: say here how to feed it"
    return FEEDS[names]


def updates(cls, sizes=SIZES, dtype=None):
    """Arguments of the updates with batches of these sizes."""
    found = []
    for i, n in enumerate(sizes):
        for given in feed_of(cls)(n, i):
            found.append({k: _cast(v, dtype) if dtype and isinstance(v, torch.Tensor) else v for k, v in given.items()})
    return found


def _cast(x, dtype):
    return x.to(dtype) if x.is_floating_point() else x


def fed(metric, given):
    for one in given:
        metric.update(**one)
    return metric


def numbers(value):
    """All numbers of a result, by name."""
    if isinstance(value, dict):
        return {name: part.item() for name, part in value.items()}
    if isinstance(value, tuple | list):
        return {str(i): part.item() for i, part in enumerate(value)}
    return {"": value.item()}


def is_random(cls):
    """Whether updates draw, so that the value depends on how examples are put into batches."""
    return "chains" in inspect.signature(cls).parameters
