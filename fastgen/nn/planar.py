"""Planar and radial flows: a stretch along one direction, or around one point."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import context_of, features_of, plain_numbers, positive


class _ContextFlow(nn.Module):
    """A flow of vectors with few parameters, to which a linear function of the context may add."""

    def __init__(self, features: int, context_features: int | None) -> None:
        super().__init__()
        positive(features=features)
        self.features = features
        self.context_features = context_features
        if context_features is not None:
            positive(context_features=context_features)

    def _add_context_layer(self, parameters: int) -> None:
        context_features = self.context_features
        self.context_layer = None if context_features is None else nn.Linear(context_features, parameters, bias=False)

    def _with_context(self, x: Tensor, context: Tensor | None, *own: Tensor) -> Tensor:
        """The flow's own parameters and what the context adds, [batch or 1, parameters], in at least float32."""
        features_of(x, self.features, image=False)
        context_of(context, x.shape[0], self.context_features)
        parameters = torch.cat(own)[None]
        if context is not None:
            parameters = parameters + self.context_layer(context)
        return parameters.to(torch.promote_types(torch.promote_types(parameters.dtype, x.dtype), torch.float32))

    def extra_repr(self) -> str:
        return f"features={self.features}"


class PlanarFlow(_ContextFlow):
    """Push the space along one direction: `y = x + u' tanh(a)` with `a = w . x + b`.

    `u' = u + (softplus(w . u) - 1 - w . u) w / |w|^2` has `w . u' > -1`, which makes the map invertible;
    `log |det| = log(tanh(a)^2 + softplus(w . u) (1 - tanh(a)^2))`.

    The inverse moves along the same direction: `a` solves `a + (w . u') tanh(a) = w . y + b`, whose left side grows
    with `a`. The root is bracketed and found by sections of the bracket, as many as the dtype has bits to settle: there
    is no early exit, so no host sync. It is differentiable twice.

    Args:
        features: of input and output.
        context_features: length of the context, or None. With a context, a linear function of it is added to `u`, `w`
            and `b` of each example.

    Attributes:
        u, w: [features]; b: [1].

    Shape: [batch, features], context [batch, context_features]; logabsdet [batch], nats, of the direction run.

    Raises:
        TypeError: in `forward` and `inverse`, a dtype that is not floating.
        ValueError: sizes that are not positive ints; in `forward` and `inverse`, another shape, a context that is
            missing, of another shape, or not expected.

    Source: Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), equations 10 to 12 and
    appendix A.1.
    """

    @plain_numbers
    def __init__(self, features: int, context_features: int | None = None) -> None:
        super().__init__(features, context_features)
        bound = features**-0.5
        self.u = nn.Parameter(torch.empty(features).uniform_(-bound, bound))
        self.w = nn.Parameter(torch.empty(features).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(1))
        self._add_context_layer(2 * features + 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, stretch = self._parameters_for(x, context)
        tanh = torch.tanh((x * w).sum(1) + b)
        y = x + u * tanh[:, None]
        return y.to(torch.promote_types(x.dtype, self.u.dtype)), _planar_slope(tanh, stretch).log()

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, stretch = self._parameters_for(y, context)
        tanh = torch.tanh(_solve_planar((y * w).sum(1) + b, stretch))
        x = y - u * tanh[:, None]
        return x.to(torch.promote_types(y.dtype, self.u.dtype)), -_planar_slope(tanh, stretch).log()

    def _parameters_for(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`u'` and `w`, [batch or 1, features], `b` and `1 + w . u'`, [batch or 1], in at least float32."""
        parameters = self._with_context(x, context, self.u, self.w, self.b)
        u, w, b = parameters.split((self.features, self.features, 1), dim=1)
        product = (w * u).sum(1, keepdim=True)
        square = (w * w).sum(1, keepdim=True)
        # Where w is zero nothing depends on x: a translation, not NaN.
        moves = square > 0
        stretch = torch.where(moves, F.softplus(product), 1.0)
        along = (stretch - 1 - product) / torch.where(moves, square, 1.0)
        return u + along * w, w, b[:, 0], stretch[:, 0]


class RadialFlow(_ContextFlow):
    """Stretch or squeeze the space around one point: `y = x + beta (x - center) / (alpha + r)`, `r = |x - center|`.

    `alpha > 0` and `beta = softplus(raw_beta) - alpha > -alpha`, which makes the map invertible. Along a ray only the
    radius changes, `R = r (alpha + beta + r) / (alpha + r)`, so

        log |det| = (features - 1) log((alpha + beta + r) / (alpha + r))
                    + log((r^2 + 2 alpha r + alpha (alpha + beta)) / (alpha + r)^2)

    and the inverse is the positive root of `r^2 + (alpha + beta - R) r - alpha R = 0`.

    Args:
        features: of input and output.
        context_features: length of the context, or None. With a context, a linear function of it is added to
            `center`, `log_alpha` and `raw_beta` of each example.

    Attributes:
        center: [features]; log_alpha, raw_beta: [1].

    Shape: [batch, features], context [batch, context_features]; logabsdet [batch], nats, of the direction run.

    Raises:
        TypeError: in `forward` and `inverse`, a dtype that is not floating.
        ValueError: sizes that are not positive ints; in `forward` and `inverse`, another shape, a context that is
            missing, of another shape, or not expected.

    Source: Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), equation 14 and appendix A.2.
    """

    @plain_numbers
    def __init__(self, features: int, context_features: int | None = None) -> None:
        super().__init__(features, context_features)
        bound = features**-0.5
        self.center = nn.Parameter(torch.empty(features).uniform_(-bound, bound))
        self.log_alpha = nn.Parameter(torch.zeros(1))
        # Starts near the identity, where softplus(raw_beta) = alpha.
        self.raw_beta = nn.Parameter(torch.empty(1).uniform_(-0.1, 0.1) + math.log(math.expm1(1)))
        self._add_context_layer(features + 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        center, alpha, total = self._parameters_for(x, context)
        offset = x - center
        r = torch.linalg.vector_norm(offset, dim=1)
        y = center + offset * ((total + r) / (alpha + r))[:, None]
        return y.to(torch.promote_types(x.dtype, self.center.dtype)), self._logabsdet(r, alpha, total)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        center, alpha, total = self._parameters_for(y, context)
        offset = y - center
        radius = torch.linalg.vector_norm(offset, dim=1)
        r = _solve_radial(radius, alpha, total)
        x = center + offset * ((alpha + r) / (total + r))[:, None]
        return x.to(torch.promote_types(y.dtype, self.center.dtype)), -self._logabsdet(r, alpha, total)

    def _parameters_for(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """`center`, [batch or 1, features], `alpha` and `alpha + beta`, [batch or 1], in at least float32."""
        parameters = self._with_context(x, context, self.center, self.log_alpha, self.raw_beta)
        center, log_alpha, raw_beta = parameters.split((self.features, 1, 1), dim=1)
        return center, log_alpha[:, 0].exp(), F.softplus(raw_beta[:, 0])

    def _logabsdet(self, r: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
        across = torch.log((total + r) / (alpha + r))
        along = torch.log((r * r + 2 * alpha * r + alpha * total) / (alpha + r) ** 2)
        return (self.features - 1) * across + along


def _planar_slope(tanh: Tensor, stretch: Tensor) -> Tensor:
    """`1 + (stretch - 1) (1 - tanh^2)`, of positive terms only: the slope of the map along its direction."""
    square = tanh * tanh
    return square + stretch * (1 - square)


def _solve_planar(target: Tensor, stretch: Tensor) -> Tensor:
    """The root `a` of `a + (stretch - 1) tanh(a) = target`, for `stretch > 0`."""
    with torch.no_grad():
        root = _bracketed_root(target, stretch - 1)
    # Newton steps from the root leave it where it is and give it its derivatives, one order a step.
    a = root
    for _ in range(2):
        tanh = torch.tanh(a)
        slope = _planar_slope(tanh, stretch).clamp_min(torch.finfo(a.dtype).eps)
        step = a - (a + (stretch - 1) * tanh - target) / slope
        a = step + (root - step).detach()
    return a


def _bracketed_root(target: Tensor, factor: Tensor) -> Tensor:
    """Sections of `[target - |factor|, target + |factor|]`, 16 a round: a round settles 4 bits."""
    # tanh is within 1 of zero; 12 bits more than the dtype has allow for a bracket wider than its root.
    rounds = math.ceil((12 - math.log2(torch.finfo(target.dtype).eps)) / 4)
    inner = torch.arange(1, 16, dtype=target.dtype, device=target.device) / 16
    width = 2 * factor.abs()
    low = target - factor.abs()
    for _ in range(rounds):
        points = low[:, None] + width[:, None] * inner
        below = points + factor[:, None] * torch.tanh(points) < target[:, None]
        width = width / 16
        low = low + below.sum(1) * width
    return low + width / 2


def _solve_radial(radius: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
    """The root `r >= 0` of `r^2 + (total - radius) r - alpha radius = 0`, without cancellation."""
    half = total - radius
    product = alpha * radius
    root = torch.sqrt(half * half + 4 * product)
    # Of each branch the divisor (or the sum) has positive terms only; the other branch must not be NaN, for its
    # gradient.
    outer = half < 0
    far = (root - torch.where(outer, half, -half)) / 2
    near = 2 * product / (root + torch.where(outer, -half, half))
    return torch.where(outer, far, near)
