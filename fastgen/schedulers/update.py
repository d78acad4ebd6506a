"""The one update that all schedulers take, `x_next = a x + b out + c x0 + e prev + d noise`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from fastgen.schedulers.scheduler import Coefficients


def affine_update(
    sample: Tensor,
    model_output: Tensor,
    row: Coefficients,
    *,
    limit: Callable[[Tensor], Tensor],
    previous: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """`x_next` of `Coefficients`, with `x0` put through `limit`; terms whose coefficient is 0 are not computed."""
    result = sample * row.sample
    if row.output:
        result = result.add_(model_output, alpha=row.output)
    if row.x0:
        result = result.add_(limit(predicted_x0(sample, model_output, row)), alpha=row.x0)
    if row.previous:
        result = result.add_(previous, alpha=row.previous)
    if row.noise:
        result = result.add_(noise, alpha=row.noise)
    return result


def predicted_x0(sample: Tensor, model_output: Tensor, row: Coefficients) -> Tensor:
    """`x0_sample x + x0_output out`.

    Where there is much noise both terms are large and cancel: the difference is taken first, and then made large.
    """
    if not row.x0_sample:
        return model_output * row.x0_output
    return sample.add(model_output, alpha=row.x0_output / row.x0_sample).mul_(row.x0_sample)
