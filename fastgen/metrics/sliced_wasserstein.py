"""The sliced Wasserstein distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.arguments import whole_number
from fastgen.metrics.feature_metric import TwoSampleMetric
from fastgen.nn.full_precision import full_precision

# The number of directions at a time, so that the values to sort stay in a cache.
_SLICES = 64


@full_precision
def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor, p: float = 2.0) -> Tensor:
    """The sliced Wasserstein distance between two sets of points, on given directions:

        SW_p = (mean_l integral_0^1 |F_l^-1(t) - G_l^-1(t)|^p dt)^(1/p)

    F_l and G_l being the distribution functions of x and y projected on direction l.

    Args:
        x: [N, d].
        y: [M, d]; M may differ from N.
        directions: [L, d], of unit length.
        p: at least 1.

    Returns:
        A number in the units of the points, float32 or float64. Differentiable in `x` and `y`.

    Raises:
        ValueError: another shape, no points or directions, or p below 1.

    Source: Rabin et al., "Wasserstein Barycenter and Its Application to Texture Mixing" (2011), section 2.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or not (len(x) and len(y)):
        raise ValueError(f"x, y: expected [N, d] and [M, d], got {tuple(x.shape)} and {tuple(y.shape)}")
    if directions.dim() != 2 or directions.shape[1] != x.shape[1] or not len(directions):
        raise ValueError(f"directions: expected [L, {x.shape[1]}], got {tuple(directions.shape)}")
    if not p >= 1:
        raise ValueError(f"p: expected at least 1, got {p!r}")
    p, dtype = float(p), torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    # Projections of points far from zero would have few digits left for their differences.
    centre = y.detach().mean(0)
    x, y = x - centre, y - centre
    costs = [_costs(x @ part.T, y @ part.T, p) for part in directions.to(dtype).split(_SLICES)]
    return torch.cat(costs).mean() ** (1 / p)


def _costs(x: Tensor, y: Tensor, p: float) -> Tensor:
    """The integrals [L] for values [N, L] and [M, L]."""
    x, y = x.T.contiguous().sort(1).values, y.T.contiguous().sort(1).values
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return (x - y).abs().pow(p).mean(1)
    # Both quantile functions are constant between the ranks of either; whole numbers i m and j n compare exactly.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    widths = ((ends - starts).to(x.dtype) / (n * m)).to(x.device)
    i, j = (starts // m).to(x.device), (starts // n).to(x.device)
    return ((x[:, i] - y[:, j]).abs().pow(p) * widths).sum(1)


class SlicedWasserstein(TwoSampleMetric):
    """`sliced_wasserstein` between real and generated examples, on random directions; the lower the better.

    Args:
        feature: as for `FeatureMetric`; by default the pixels themselves.
        num_projections: directions, uniform on the sphere and drawn from `seed`.
        p: of the distance.
        kwargs: as for `TwoSampleMetric`.

    Raises:
        ValueError: `p` below 1, or `num_projections` not a positive int; on computing, an empty set.

    Source: as `sliced_wasserstein`.
    """

    higher_is_better = False
    at_least = 1

    def __init__(
        self, feature: str | nn.Module = "pixels", *, num_projections: int = 1024, p: float = 2.0, **kwargs: Any
    ) -> None:
        super().__init__(feature, **kwargs)
        if not p >= 1:
            raise ValueError(f"p: expected at least 1, got {p!r}")
        self.num_projections, self.p = whole_number("num_projections", num_projections), float(p)

    def compute(self) -> Tensor:
        """The distance, float64."""
        real, fake = self.sets()
        directions = torch.randn(self.num_projections, real.shape[1], generator=self.generator(), dtype=torch.float64)
        directions = directions / directions.norm(dim=1, keepdim=True)
        return sliced_wasserstein(real.double(), fake.double(), directions.to(real.device), self.p)
