"""The inverse of a masked autoregressive transform as people run it: the network once for every feature."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.ops.masked_autoregressive import ACTIVATIONS, Affine, DegreeOrder, RationalQuadratic

Element = Affine | RationalQuadratic


def eager(
    y: Tensor,
    weights: Tensor,
    context: Tensor | None,
    order: DegreeOrder,
    *,
    element: Element,
    activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    network = _network(weights, context, order, activation)
    y = y.index_select(1, order.feature_order)
    x = torch.zeros_like(y)
    for _ in range(order.levels):
        x, derivative = element.reference(y, network(x).view(*y.shape, -1), inverse=True)
    return x.index_select(1, torch.argsort(order.feature_order)), derivative.sum(1)


def nflows(
    y: Tensor,
    weights: Tensor,
    context: Tensor | None,
    order: DegreeOrder,
    *,
    element: Element,
    activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    from nflows.transforms import autoregressive

    if isinstance(element, RationalQuadratic):
        if element.tails != "linear" or element.parameterization != "nflows":
            raise NotImplementedError("nflows has linear tails and its own parameters only")
        transform = autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            order.features, 1, num_bins=element.num_bins, tails="linear", tail_bound=element.tail_bound
        )
    elif element == Affine():
        transform = autoregressive.MaskedAffineAutoregressiveTransform(order.features, 1)
    else:
        raise NotImplementedError("nflows has the scale softplus(a) + 1e-3 only")
    transform.autoregressive_net = _Called(_network(weights, context, order, activation))
    x, logabsdet = transform.inverse(y.index_select(1, order.feature_order))
    return x.index_select(1, torch.argsort(order.feature_order)), logabsdet


def zuko(
    y: Tensor,
    weights: Tensor,
    context: Tensor | None,
    order: DegreeOrder,
    *,
    element: Element,
    activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    from zuko.transforms import AutoregressiveTransform, DependentTransform, MonotonicAffineTransform

    if not isinstance(element, Affine) or element.scale_map != "softclip":
        raise NotImplementedError("zuko has the soft-clipped scale only")
    network = _network(weights, context, order, activation)

    def meta(x: Tensor) -> DependentTransform:
        raw, shift = network(x).view(*x.shape, 2).unbind(-1)
        return DependentTransform(MonotonicAffineTransform(shift, raw, slope=math.exp(-element.bound)), 1)

    transform = AutoregressiveTransform(meta, passes=order.levels)
    y = y.index_select(1, order.feature_order)
    x = transform._inverse(y)
    return x.index_select(1, torch.argsort(order.feature_order)), -transform.log_abs_det_jacobian(x, y)


class _Called(nn.Module):
    """A function where a library expects a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.function(x)


def _network(
    weights: Tensor, context: Tensor | None, order: DegreeOrder, activation: str
) -> Callable[[Tensor], Tensor]:
    """The plain network, its features and units in order of degree and its weights masked already."""
    function, terms = ACTIVATIONS[activation], order.context_terms(context)
    layers = [(weight.contiguous(), bias) for weight, bias in order.unpack(weights)]

    def linear(i: int, h: Tensor) -> Tensor:
        h = F.linear(h, *layers[i])
        return h + terms[i] if i in terms else h

    def run(x: Tensor) -> Tensor:
        h = linear(0, x)
        if order.residual:
            for i in range(1, len(layers) - 1, 2):
                h = h + linear(i + 1, function(linear(i, function(h))))
        else:
            for i in range(1, len(layers) - 1):
                h = linear(i, function(h))
            h = function(h)
        return F.linear(h, *layers[-1])

    return run
