"""Checks of the arguments of `norm_modulate`."""

from __future__ import annotations

from torch import Tensor

from fastgen.ops.checks import check_choice, check_floating, check_floating_on

NORMS = ("instance", "batch", "layer", "group")


def check_norm_modulate(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: str,
    num_groups: int | None,
    negative_slope: float,
    eps: float,
) -> int:
    """Check the arguments; returns the number of groups in a sample, 0 where a channel is normalised over the batch."""
    check_floating("x", x)
    if x.dim() < 2 or x.shape[1] < 1:
        raise ValueError(f"x: expected [batch, channels, ...], got {tuple(x.shape)}")
    check_choice("norm", norm, NORMS)
    if (norm == "group") != (num_groups is not None):
        raise ValueError(f"num_groups: expected with norm 'group' and no other, got {num_groups} with {norm!r}")
    if norm == "group" and (num_groups < 1 or x.shape[1] % num_groups):
        raise ValueError(f"num_groups: expected a divisor of the {x.shape[1]} channels of x, got {num_groups}")
    if not 0 <= negative_slope < float("inf"):
        raise ValueError(f"negative_slope: expected a number of at least 0, got {negative_slope}")
    if not eps >= 0:
        raise ValueError(f"eps: expected at least 0, got {eps}")
    for name, tensor in (("scale", scale), ("shift", shift)):
        _check_modulation(name, tensor, x)
    by_pixel = {t.dim() == x.dim() for t in (scale, shift) if t is not None}
    if x.dim() > 2 and len(by_pixel) > 1:
        raise ValueError(f"shift: expected the shape of scale, {tuple(scale.shape)}, got {tuple(shift.shape)}")
    return {"instance": x.shape[1], "batch": 0, "layer": 1, "group": num_groups}[norm]


def _check_modulation(name: str, tensor: Tensor | None, x: Tensor) -> None:
    if tensor is None:
        return
    check_floating_on(name, tensor, x)
    # Compared with the one shape that its rank allows: other comparisons would tie the batch size to the channels
    # under torch.compile with dynamic shapes.
    if tensor.shape != {1: x.shape[1:2], 2: x.shape[:2]}.get(tensor.dim(), x.shape):
        raise ValueError(
            f"{name}: expected {tuple(x.shape[1:2])}, {tuple(x.shape[:2])} or {tuple(x.shape)}, "
            f"got {tuple(tensor.shape)}"
        )


def check_running(
    x: Tensor,
    norm: str,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    training: bool,
) -> None:
    given = running_mean is not None, running_var is not None
    if norm != "batch":
        if any(given):
            raise ValueError(f"running_mean: expected with norm 'batch' only, got it with {norm!r}")
        return
    if given[0] != given[1] or not (training or all(given)):
        raise ValueError("running_mean: expected with running_var, and both where a batch norm is not training")
    if not any(given):
        return
    for name, tensor in (("running_mean", running_mean), ("running_var", running_var)):
        if tensor.shape != x.shape[1:2]:
            raise ValueError(f"{name}: expected {tuple(x.shape[1:2])}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point() or tensor.device != x.device:
            raise TypeError(f"{name}: expected a floating dtype on {x.device}, got {tensor.dtype} on {tensor.device}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected 0 to 1, got {momentum}")
    if training and x.numel() < 2 * x.shape[1]:
        raise ValueError(f"x: expected at least 2 values of each channel for running statistics, got {tuple(x.shape)}")
