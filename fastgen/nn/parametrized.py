"""Layers with parametrisations, as whole objects that pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize


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
