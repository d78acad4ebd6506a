"""Every scheduler that there is, and diffusers' of the same name."""

from __future__ import annotations

import inspect

import torch

from fastgen import schedulers as ours

EVERY = [
    value
    for value in vars(ours).values()
    if isinstance(value, type) and issubclass(value, ours.Scheduler) and value is not ours.Scheduler
]
# Where diffusers has another name.
NAMES = {"FlowMatchEulerScheduler": "FlowMatchEulerDiscreteScheduler"}
SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def theirs_of(cls: type) -> type:
    import diffusers

    return getattr(diffusers, NAMES.get(cls.__name__, cls.__name__))


def known(cls: type, **options) -> dict:
    """Those of the options that the class has."""
    return {name: value for name, value in options.items() if name in inspect.signature(cls.__init__).parameters}


def calls(scheduler) -> int:
    """Of the network, for each level of noise."""
    return 2 if isinstance(scheduler, ours.HeunDiscreteScheduler) else 1


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Something that says another thing at each time."""
    return torch.sin(x * 1.3 + float(t) / 300) * 0.7


def walk(scheduler, x: torch.Tensor, timesteps=None, **options) -> torch.Tensor:
    """A loop over `timesteps`, whose noise is the same whenever it is run."""
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps if timesteps is None else timesteps:
        said = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(said, t, x, generator=generator, **options).prev_sample
    return x
