"""Neural spline flow (2019): coupling or autoregressive layers of rational-quadratic splines."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from fastgen.models.flow import VectorFlow, alternating_mask
from fastgen.nn import (
    LULinear,
    MaskedAutoregressive,
    RandomPermutation,
    RationalQuadraticCoupling,
    ResidualNet,
    ReversePermutation,
)
from fastgen.nn.arguments import positive


class NeuralSplineFlow(VectorFlow):
    """Neural spline flow: monotonic rational-quadratic splines, whose bins a network chooses.

    Each coupling leaves every other feature as it is and moves the rest by splines that depend on these; which ones
    stay alternates. With `autoregressive` every feature moves, by a spline that depends on those before it: each layer
    can do more, and training costs the same, but the inverse goes feature by feature.

    Args:
        num_bins: of each spline.
        tail_bound: splines act on [-tail_bound, tail_bound], beyond it they are the identity: standardise the data.
        autoregressive: masked autoregressive layers; each sees the features in the order opposite to the last one's.
        linear: how features are mixed ahead of every layer of splines: `"permutation"`, a fixed random one; `"lu"`,
            that and a trained linear map; None, not at all.

    The other arguments, shapes and errors are those of `VectorFlow`.

    Raises:
        ValueError: another `linear`, bins that are no positive int.

    Source: Durkan et al., "Neural Spline Flows" (2019), section 4 and appendix B.
    """

    def __init__(
        self,
        features: int,
        *,
        num_bins: int = 8,
        tail_bound: float = 3.0,
        autoregressive: bool = False,
        linear: str | None = None,
        **options: Any,
    ) -> None:
        positive(num_bins=num_bins)
        self.autoregressive, self.linear = autoregressive, linear
        self.splines = {"num_bins": num_bins, "tails": "linear", "tail_bound": tail_bound}
        super().__init__(features, **options)

    def _layer(self, layer: int, features: int, network: dict[str, Any]) -> list[nn.Module]:
        mixed = mixing(self.linear, features)
        if not self.autoregressive:
            mask = alternating_mask(features, layer)
            return [*mixed, RationalQuadraticCoupling(mask, partial(ResidualNet, **network), **self.splines)]
        if layer > 0:
            mixed.append(ReversePermutation(features))
        return [*mixed, MaskedAutoregressive(features, transform="rational_quadratic", **network, **self.splines)]


def mixing(linear: str | None, features: int) -> list[nn.Module]:
    """The layers that mix features ahead of a transform: a trained linear map, a random permutation, or none.

    Raises:
        ValueError: `linear` is not `"lu"`, `"permutation"` or None.
    """
    if linear not in ("lu", "permutation", None):
        raise ValueError(f"linear: expected 'lu', 'permutation' or None, got {linear!r}")
    # A triangular map keeps the order of the features: it takes a permutation to mix them all.
    layers: list[nn.Module] = [] if linear is None else [RandomPermutation(features)]
    return [*layers, LULinear(features)] if linear == "lu" else layers
