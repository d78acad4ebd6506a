"""Neural spline flow (2019): coupling or autoregressive layers of rational-quadratic splines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import nn

from fastgen.models.flow import Flow, alternating_mask, check_context
from fastgen.models.preprocessing import standardization
from fastgen.nn import (
    Compose,
    LULinear,
    MaskedAutoregressive,
    RandomPermutation,
    RationalQuadraticCoupling,
    ResidualNet,
    ReversePermutation,
)
from fastgen.nn.arguments import positive, probability


class NeuralSplineFlow(Flow):
    """Neural spline flow: monotonic rational-quadratic splines, whose bins a network chooses.

    Each coupling leaves every other feature as it is and moves the rest by splines that depend on these; which ones
    stay alternates. With `autoregressive` every feature moves, by a spline that depends on those before it: each layer
    can do more, and training costs the same, but the inverse goes feature by feature.

    Args:
        features: of a vector.
        transforms: layers of splines.
        hidden_features: width of the residual networks.
        num_blocks: residual blocks of each.
        num_bins: of each spline.
        tail_bound: splines act on [-tail_bound, tail_bound], beyond it they are the identity: standardise the data.
        autoregressive: masked autoregressive layers; each sees the features in the order opposite to the last one's.
        linear: how features are mixed ahead of every layer of splines: `"permutation"`, a fixed random one; `"lu"`,
            that and a trained linear map; None, not at all.
        dropout: probability, inside the residual networks.
        context_features: of the context; None without.
        mean, std: of the data, which are standardised with them; as they are where None.
        reversible: activations are rebuilt from the outputs in the backward pass, in place of being kept.

    Shape: data [batch, features].

    Raises:
        ValueError: sizes that are not positive ints, another `linear`, a dropout outside [0, 1), a
            mean without a standard deviation.

    Source: Durkan et al., "Neural Spline Flows" (2019), section 4 and appendix B.
    """

    presets: ClassVar = {"points": {**Flow.points, "transforms": 6}, "other": {"batch_size": 256}}

    def __init__(
        self,
        features: int,
        *,
        transforms: int = 8,
        hidden_features: int = 128,
        num_blocks: int = 2,
        num_bins: int = 8,
        tail_bound: float = 3.0,
        autoregressive: bool = False,
        linear: str | None = None,
        dropout: float = 0.0,
        context_features: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        reversible: bool = False,
    ) -> None:
        positive(features=features)
        positive(transforms=transforms, hidden_features=hidden_features, num_blocks=num_blocks, num_bins=num_bins)
        check_context(context_features)
        probability(dropout=dropout)
        network = {
            "hidden_features": hidden_features,
            "num_blocks": num_blocks,
            "context_features": context_features,
            "dropout_probability": dropout,
        }
        splines = {"num_bins": num_bins, "tails": "linear", "tail_bound": tail_bound}
        layers: list[nn.Module] = []
        for layer in range(transforms):
            layers += mixing(linear, features)
            if not autoregressive:
                mask = alternating_mask(features, layer)
                layers.append(RationalQuadraticCoupling(mask, partial(ResidualNet, **network), **splines))
                continue
            if layer > 0:
                layers.append(ReversePermutation(features))
            layers.append(MaskedAutoregressive(features, transform="rational_quadratic", **network, **splines))
        super().__init__(
            Compose(layers, reversible=reversible),
            (features,),
            preprocess=standardization(features, mean, std),
            context_features=context_features,
        )


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
