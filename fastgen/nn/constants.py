"""Buffers that follow from a module's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


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
