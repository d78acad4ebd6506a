"""Modules that keep more of their state right than `nn.Module` does.

`Constants` makes buffers again that follow from the module's arguments, `RunningAverages` keeps averages in float32
where the module is cast, and `picklable` lets a layer with parametrisations be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Constants(nn.Module):
    """A module with buffers that its arguments determine: no state dict has them, and loading one makes them again.

    So a module that was made on the meta device, and has memory of any content since `to_empty`, is whole once it has
    loaded a state dict. A subclass says what they are (`_constants`), and calls `_register_constants` when it knows.

    Attributes:
        precise: the buffers stay in float32 where the module goes to half precision, which has no number for them.
    """

    precise: ClassVar[bool] = False

    def _constants(self) -> Mapping[str, Tensor | None]:
        """The buffers by name; called with the CPU as the default device."""
        raise NotImplementedError

    def _register_constants(self) -> None:
        device = torch.get_default_device()
        with torch.device("cpu"):
            constants = self._constants()
        for name, value in constants.items():
            self.register_buffer(name, None if value is None else value.to(device), persistent=False)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # What `to_empty` gives memory to had no numbers.
        empty = any(buffer.is_meta for buffer in self.buffers(False))
        super()._apply(*args, **kwargs)
        if empty or (self.precise and any(buffer.itemsize < 4 for buffer in self.buffers(False))):
            self._restore(torch.device("meta"))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # Loaded by assignment, without `to_empty`, a module takes the device of what is assigned.
        self._restore(next((tensor.device for tensor in state_dict.values()), torch.device("cpu")))

    def _restore(self, instead_of_meta: torch.device) -> None:
        """The constants again, in the dtype and on the device that they have now."""
        with torch.device("cpu"):
            constants = self._constants()
        for name, value in constants.items():
            if value is not None:
                now = getattr(self, name)
                dtype = torch.promote_types(now.dtype, torch.float32) if self.precise else now.dtype
                setattr(self, name, value.to(instead_of_meta if now.is_meta else now.device, dtype))


class RunningAverages(nn.Module):
    """A module some of whose buffers average over many steps: they stay in at least float32 where the module is cast.

    A step moves an average by a thousandth of what it lacks, which half precision rounds to nothing.
    """

    averages: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name in self.averages:
            buffer = self._buffers.get(name)
            if buffer is not None:
                self._buffers[name] = buffer.to(torch.promote_types(buffer.dtype, torch.float32))
        return self


def picklable(layer: nn.Module) -> None:
    """Lets a layer that has parametrisations be pickled, which PyTorch refuses, and with it every model it is in.

    PyTorch gives such a layer a class of its own, made at run time, that no other process can find.
    """
    type(layer).__reduce_ex__ = _reduce


def _reduce(layer: nn.Module, protocol: int) -> tuple:
    original = type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)
    return original.__new__, (original,), vars(layer), None, None, _restore


def _restore(layer: nn.Module, state: dict[str, Any]) -> None:
    nn.Module.__init__(layer)
    for name in state["_modules"]["parametrizations"]:
        # Stands for the weight while the class is made; what computes the weight is in the state.
        layer.register_parameter(name, nn.Parameter(torch.zeros(())))
        parametrize.register_parametrization(layer, name, nn.Identity(), unsafe=True)
    layer.__dict__.update(state)
    picklable(layer)
