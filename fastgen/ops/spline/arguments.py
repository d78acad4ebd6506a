"""What the splines' arguments must be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.nn import Parameter

# How many derivatives the parameters hold beyond one for each bin: both ends fixed at 1, both ends shared, all free.
DERIVATIVES = {"linear": -1, "circular": 0, None: 1}
PARAMETERIZATIONS = ("nflows", "zuko")


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """What the results have."""
    return reduce(torch.promote_types, (t.dtype for t in tensors))


def check_splines(inputs: Tensor, parameters: Sequence[Tensor], tails: str | None) -> int:
    """The number of bins, of parameters that fit each other and the inputs."""
    names = ("unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives")
    _check_kind(inputs=inputs, **dict(zip(names, parameters, strict=True)))
    _check_tails(tails)
    bins = parameters[0].shape[-1] if parameters[0].dim() else 0
    if bins < 1:
        raise ValueError(f"unnormalized_widths: expected [..., bins], got {tuple(parameters[0].shape)}")
    sizes = (bins, bins, bins + DERIVATIVES[tails])
    for name, parameter, size in zip(names, parameters, sizes, strict=True):
        if parameter.shape != (*inputs.shape, size):
            raise ValueError(
                f"{name}: expected {(*inputs.shape, size)} for inputs {tuple(inputs.shape)}, {bins} bins and "
                f"tails={tails!r}, got {tuple(parameter.shape)}"
            )
    return bins


def check_coupling(x: Tensor, params: Tensor, num_bins: int, tails: str | None, softmax_scale: float) -> None:
    _check_kind(x=x, params=params)
    _check_tails(tails)
    if x.dim() < 2:
        raise ValueError(f"x: expected [batch, features] or [batch, channels, height, width], got {tuple(x.shape)}")
    if num_bins < 1:
        raise ValueError(f"num_bins: expected at least 1, got {num_bins}")
    each = 3 * num_bins + DERIVATIVES[tails]
    flat, apart = (x.shape[0], x.shape[1] * each, *x.shape[2:]), (*x.shape, each)
    if params.shape != flat and (x.dim() > 2 or params.shape != apart):
        raise ValueError(
            f"params: expected {flat}{f' or {apart}' if x.dim() == 2 else ''}, {each} for each element of x "
            f"{tuple(x.shape)} with num_bins={num_bins} and tails={tails!r}, got {tuple(params.shape)}"
        )
    if not softmax_scale > 0 or softmax_scale == math.inf:
        raise ValueError(f"softmax_scale: expected a positive number, got {softmax_scale}")


def _check_kind(**tensors: Tensor) -> None:
    first, *others = tensors
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
    for name in others:
        if tensors[name].device != tensors[first].device:
            raise TypeError(f"{name}: expected {tensors[first].device} as {first}, got {tensors[name].device}")


def _check_tails(tails: str | None) -> None:
    if tails not in DERIVATIVES:
        raise ValueError(f"tails: expected 'linear', 'circular' or None, got {tails!r}")


def check_settings(
    bins: int,
    tails: str | None,
    tail_bound: float,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    parameterization: str,
) -> None:
    if parameterization not in PARAMETERIZATIONS:
        raise ValueError(f"parameterization: expected 'nflows' or 'zuko', got {parameterization!r}")
    if not tail_bound > 0 or tail_bound == math.inf:
        raise ValueError(f"tail_bound: expected a positive number, got {tail_bound}")
    if parameterization == "zuko":
        if not 0 < min_derivative < 1:
            raise ValueError(f"min_derivative: expected a number in (0, 1), got {min_derivative}")
        return
    for name, minimum in (("min_bin_width", min_bin_width), ("min_bin_height", min_bin_height)):
        if not 0 <= minimum * bins < 1:
            raise ValueError(f"{name}: expected a number in [0, 1 / {bins}) for {bins} bins, got {minimum}")
    if not min_derivative >= 0 or (tails == "linear" and min_derivative >= 1) or min_derivative == math.inf:
        below = "in [0, 1) for linear tails" if tails == "linear" else "of at least 0"
        raise ValueError(f"min_derivative: expected a number {below}, got {min_derivative}")


def check_domain(name: str, x: Tensor, tails: str | None, tail_bound: float) -> None:
    """Refuse values beyond a spline without tails, where that costs no wait for a device and breaks no graph."""
    if tails is not None or torch.compiler.is_compiling() or not x.is_cpu or type(x) not in (Tensor, Parameter):
        return
    if maybe_current_level() is not None:
        return
    # As the kernels compare: a half type may round the bound itself to a number beyond it.
    outside = x.detach().to(torch.promote_types(x.dtype, torch.float32)).abs() > tail_bound
    if outside.any():
        raise ValueError(
            f"{name}: expected values in [-{tail_bound}, {tail_bound}] since tails=None, "
            f"got {x.detach()[outside][0].item()}"
        )
