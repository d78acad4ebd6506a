"""What a second run of a module needs to be the same as its first: random numbers and autocast as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class RandomNumbers:
    """The generators that modules draw from: the CPU's, and that of `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = None if device.type in ("cpu", "meta") else device

    def state(self) -> State:
        """5 KB of the CPU's generator, 16 bytes of CUDA's."""
        if self._device is None:
            return (torch.get_rng_state(),)
        return torch.get_rng_state(), torch.get_device_module(self._device).get_rng_state(self._device)

    @staticmethod
    def drawn(states: Sequence[State]) -> list[State | None]:
        """Of each two states in a row the first, where numbers were drawn between them."""
        if _equal(states[0], states[-1]):
            return [None] * (len(states) - 1)
        return [None if _equal(before, after) else before for before, after in pairwise(states)]

    @contextlib.contextmanager
    def replayed(self, state: State) -> Iterator[None]:
        """Draws from `state` on, and goes on afterwards as if nothing had been drawn."""
        now = self.state()
        self._write(state)
        try:
            yield
        finally:
            self._write(now)

    def _write(self, state: State) -> None:
        torch.set_rng_state(state[0])
        if self._device is not None:
            torch.get_device_module(self._device).set_rng_state(state[1], self._device)


def _equal(a: State, b: State) -> bool:
    return all(map(torch.equal, a, b))


class Autocast:
    """Autocast as it is now, on the CPU and on `device`.

    Its cache of weights is off inside: releases of torch differ in whether a cast that was cached without gradients
    serves a run that needs them.
    """

    def __init__(self, device: torch.device) -> None:
        types = [kind for kind in dict.fromkeys(("cpu", device.type)) if torch.amp.is_autocast_available(kind)]
        self._was = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in types]

    def restored(self) -> contextlib.AbstractContextManager:
        differing = [was for was in self._was if was[2] or torch.is_autocast_enabled(was[0])]
        if not differing:
            return contextlib.nullcontext()
        stack = contextlib.ExitStack()
        for kind, dtype, enabled in differing:
            stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
        return stack


class Buffers:
    """The buffers of some modules before a run."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._versions = [
            (module, name, buffer, buffer._version)
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()
        ]

    def check_unchanged(self) -> None:
        """Raises where the run has changed one, as another run would again."""
        for module, name, buffer, version in self._versions:
            if buffer._version != version and not _initialises(module):
                raise ValueError(
                    f"reversible: {type(module).__name__} changes its {name} whenever it runs, and would again when "
                    "backward replays it; use reversible=False"
                )


def _initialises(module: nn.Module) -> bool:
    """Whether the module sets its parameters by the first batch that it sees in training, as ActNorm does."""
    return hasattr(module, "initialized")


@contextlib.contextmanager
def without_initialising(transform: nn.Module) -> Iterator[None]:
    """What has not seen its first batch has not seen it afterwards either."""
    modules = [module for module in transform.modules() if _initialises(module) and module.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
