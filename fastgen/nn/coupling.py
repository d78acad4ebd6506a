"""Coupling layers: one part of the input gives the parameters by which the other part is transformed.

The parts are features of a vector (channels of an image), or any pixels of an image, such as the checkerboard of
RealNVP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import features_of, floating, plain_numbers, positive, rows_of, without_effect
from fastgen.nn.frozen import Kept
from fastgen.ops.affine_coupling import additive_coupling, affine_coupling
from fastgen.ops.spline import DERIVATIVES, check_settings, rational_quadratic_coupling, rational_quadratic_spline

Mask = Tensor | Sequence[float]
MakeConditioner = Callable[[int, int], nn.Module]
MakeUnconditional = Callable[..., nn.Module]


class Coupling(nn.Module):
    """The frame of a coupling layer, `y_I = g(x_I)`, `y_T = f(x_T; net(x_I, context))`; `g` is the identity, unless
    there is an unconditional transform.

    `I` (identity) and `T` (transformed) are two parts of an example. The inverse costs what the forward pass does,
    since `net` sees the same `x_I`, and the Jacobian is triangular: its log-determinant is that of `f`. A subclass says
    what the parts are (`_split`, `_merge`) and what `f` is (`_transform`).

    Attributes:
        transform_net: the conditioner, called as `net(x_I, context)`, and as `net(x_I)` where there is no context.
        unconditional_transform: `g`; None for the identity.
    """

    transform_net: nn.Module
    unconditional_transform: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.unconditional_transform = None

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, context, inverse=True)

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        self._check_shape(x)
        rows_of(context, x.shape[0])
        identity, transformed = self._split(x)
        unconditional = self.unconditional_transform
        if unconditional is None:
            transformed, logabsdet = self._transform(transformed, self._condition(identity, context), inverse)
            return self._merge(identity, transformed), logabsdet
        if inverse:
            seen, more = unconditional.inverse(identity, context)
            identity = seen
        else:
            seen, (identity, more) = identity, unconditional(identity, context)
        transformed, logabsdet = self._transform(transformed, self._condition(seen, context), inverse)
        return self._merge(identity, transformed), logabsdet + more

    def _condition(self, identity: Tensor, context: Tensor | None) -> Tensor:
        """The conditioner's output, [batch, parameters, ...]."""
        net = self.transform_net
        params = net(identity) if context is None else net(identity, context)
        expected = (identity.shape[0], self._num_params(), *identity.shape[2:])
        if params.shape != expected:
            raise ValueError(f"transform_net: expected parameters of shape {expected}, got {tuple(params.shape)}")
        return params

    def _check_shape(self, x: Tensor) -> None:
        raise NotImplementedError

    def _num_params(self) -> int:
        """Size of the conditioner's output along dimension 1."""
        raise NotImplementedError

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The part that the conditioner sees and both directions leave as it is, and the part that is transformed."""
        raise NotImplementedError

    def _merge(self, identity: Tensor, transformed: Tensor) -> Tensor:
        """The two parts put together, the inverse of `_split`."""
        raise NotImplementedError

    def _transform(self, transformed: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """`f` or its inverse, and the log-determinant of that direction, [batch]."""
        raise NotImplementedError


class _Runs(NamedTuple):
    """Where both parts are runs of features, splitting is a view and merging one concatenation; where it is not known
    whether they are, or they are not, both go by indices.

    Attributes:
        identity, transformed: start and length.
        order: where each feature is among both parts, one after the other.
    """

    identity: tuple[int, int] | None = None
    transformed: tuple[int, int] | None = None
    order: Tensor | None = None


class FeatureCoupling(Coupling):
    """A coupling whose parts are features of a vector, or channels of an image; a subclass says what `f` is.

    Args:
        mask: one number for each feature, more than 0 where the feature is transformed.
        transform_net_create_fn: makes the conditioner; called as `(identity features, parameters)`. Where the mask
            leaves nothing to read the first is 0, where it leaves nothing to transform the second is.
        unconditional_transform: makes a transform of the identity features; called as `(features=...)`. None leaves
            them.

    Attributes:
        identity_features, transform_features: indices, as buffers (nflows' state-dict keys).
        params_per_feature: how many numbers the conditioner gives for each transformed feature.

    Shape: [batch, features] or [batch, features, height, width]; logabsdet [batch], nats, of the direction run.

    Raises:
        TypeError: in `forward` and `inverse`, a dtype that is not floating.
        ValueError: a mask that is not a vector, or empty; in `forward` and `inverse`, another number of features, a
            context of another batch, a conditioner that gives another number of parameters than it was asked for.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), section 3.2.
    """

    def __init__(
        self,
        mask: Mask,
        transform_net_create_fn: MakeConditioner,
        unconditional_transform: MakeUnconditional | None = None,
        *,
        params_per_feature: int,
    ) -> None:
        super().__init__()
        mask = torch.as_tensor(mask, device="cpu")
        if mask.dim() != 1 or not len(mask):
            raise ValueError(f"mask: expected a vector, one number for each feature, got shape {tuple(mask.shape)}")
        marks = (mask > 0).tolist()
        identity = [i for i, transformed in enumerate(marks) if not transformed]
        transformed = [i for i, transformed in enumerate(marks) if transformed]
        self.features = len(marks)
        self.params_per_feature = params_per_feature
        self.register_buffer("identity_features", torch.tensor(identity, dtype=torch.int64))
        self.register_buffer("transform_features", torch.tensor(transformed, dtype=torch.int64))
        self._parts = Kept(indices=True)
        self._runs()
        self.transform_net = transform_net_create_fn(len(identity), len(transformed) * params_per_feature)
        if unconditional_transform is not None:
            self.unconditional_transform = unconditional_transform(features=len(identity))

    def _check_shape(self, x: Tensor) -> None:
        features_of(x, self.features)

    def _num_params(self) -> int:
        return len(self.transform_features) * self.params_per_feature

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        runs = self._runs()
        return _take(x, runs.identity, self.identity_features), _take(x, runs.transformed, self.transform_features)

    def _merge(self, identity: Tensor, transformed: Tensor) -> Tensor:
        if identity.dtype != transformed.dtype:
            identity = identity.to(transformed.dtype)
        runs = self._runs()
        if runs.identity is None or runs.transformed is None:
            order = self._order() if runs.order is None else runs.order.to(identity.device)
            return torch.cat((identity, transformed), dim=1).index_select(1, order)
        parts = (transformed, identity) if runs.identity[0] else (identity, transformed)
        return torch.cat(parts, dim=1)

    def _runs(self) -> _Runs:
        features = (self.identity_features, self.transform_features)
        return self._parts.get(self._find_runs, features) or _Runs()

    def _find_runs(self) -> _Runs:
        runs = [_run_of(features.tolist()) for features in (self.identity_features, self.transform_features)]
        return _Runs(*runs, self._order() if None in runs else None)

    def _order(self) -> Tensor:
        """Where each feature is among both parts, one after the other."""
        return torch.cat((self.identity_features, self.transform_features)).sort().indices

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # A checkpoint brings its own mask, and torch.compile takes the runs that are there.
        self._runs()


class _Affine:
    """Settings of `affine_coupling` and its call, for the couplings that scale and shift."""

    def _set_scale_map(self, init: Callable[..., None], scale_map: str, bound: float, min_scale: float) -> None:
        """Keeps the settings. Raises unless they fit; `init` knows the defaults of those that a map does not have."""
        if scale_map not in ("exp", "tanh", "sigmoid"):
            raise ValueError(f"scale_map: expected 'exp', 'tanh' or 'sigmoid', got {scale_map!r}")
        if not bound > 0:
            raise ValueError(f"bound: expected a positive number, got {bound!r}")
        if not min_scale >= 0:
            raise ValueError(f"min_scale: expected a number of at least 0, got {min_scale!r}")
        unused = {"exp": ("bound", "min_scale"), "tanh": ("min_scale",), "sigmoid": ("bound",)}[scale_map]
        settings = {"bound": bound, "min_scale": min_scale}
        without_effect(init, settings, f"on the scale map {scale_map!r}", *unused)
        self.scale_map, self.bound, self.min_scale = scale_map, bound, min_scale

    def _scaled_and_shifted(self, x: Tensor, shift: Tensor, raw_scale: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        settings = {"scale_map": self.scale_map, "bound": self.bound, "min_scale": self.min_scale}
        return affine_coupling(x, shift, raw_scale, inverse=inverse, **settings)


class AffineCoupling(_Affine, FeatureCoupling):
    """Coupling by `y_T = scale * x_T + shift`; `params` are all shifts, then all raw scales.

    Drop-in for nflows' `AffineCouplingTransform` by its defaults: `scale = sigmoid(raw + 2) + 1e-3`.

    Args:
        mask, transform_net_create_fn, unconditional_transform: as in `FeatureCoupling`.
        scale_map: how the scale is made of the raw one: `"sigmoid"` as above, `"tanh"`: `exp(bound tanh(raw / bound))`,
            `"exp"`: `exp(raw)`.
        bound: largest logarithm of a scale, for `"tanh"`.
        min_scale: added to the sigmoid.

    Shape: as of `FeatureCoupling`.

    Raises:
        ValueError: another `scale_map`, and what `FeatureCoupling` raises.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), equations 7 and 8.
    """

    @plain_numbers
    def __init__(
        self,
        mask: Mask,
        transform_net_create_fn: MakeConditioner,
        unconditional_transform: MakeUnconditional | None = None,
        *,
        scale_map: str = "sigmoid",
        bound: float = 2.0,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(mask, transform_net_create_fn, unconditional_transform, params_per_feature=2)
        self._set_scale_map(AffineCoupling.__init__, scale_map, bound, min_scale)

    def _transform(self, transformed: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        shift, raw_scale = params.chunk(2, dim=1)
        return self._scaled_and_shifted(transformed, shift, raw_scale, inverse)

    def extra_repr(self) -> str:
        return f"features={self.features}, scale_map={self.scale_map!r}"


class AdditiveCoupling(FeatureCoupling):
    """Coupling by `y_T = x_T + shift`, which keeps volumes.

    Drop-in for nflows' `AdditiveCouplingTransform`.

    Args:
        mask, transform_net_create_fn, unconditional_transform: as in `FeatureCoupling`.

    Shape: as of `FeatureCoupling`; logabsdet is 0.

    Raises:
        TypeError, ValueError: what `FeatureCoupling` raises.

    Source: Dinh et al., "NICE" (2015), section 3.2.
    """

    def __init__(
        self,
        mask: Mask,
        transform_net_create_fn: MakeConditioner,
        unconditional_transform: MakeUnconditional | None = None,
    ) -> None:
        super().__init__(mask, transform_net_create_fn, unconditional_transform, params_per_feature=1)

    def _transform(self, transformed: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return additive_coupling(transformed, params, inverse=inverse)

    def extra_repr(self) -> str:
        return f"features={self.features}"


@dataclass(frozen=True)
class Box:
    """`[-tail_bound, tail_bound]` where there are tails beyond it, `[0, 1]` without.

    Raises:
        ValueError: other tails, a bound without tails.
    """

    tails: str | None
    tail_bound: float = 1.0

    def __post_init__(self) -> None:
        if self.tails not in DERIVATIVES:
            raise ValueError(f"tails: expected 'linear', 'circular' or None, got {self.tails!r}")
        if self.tails is None and self.tail_bound != 1:
            raise ValueError(f"tail_bound: a spline without tails is of [0, 1], as nflows', got {self.tail_bound}")

    @property
    def half(self) -> float:
        """Half the side of the box."""
        return 0.5 if self.tails is None else self.tail_bound

    @property
    def middle(self) -> float:
        return 0.5 if self.tails is None else 0.0

    def centred(self, x: Tensor) -> Tensor:
        """`x` moved so that the box lies around 0, as the ops take it."""
        return x - self.middle if self.middle else x

    def placed(self, x: Tensor) -> Tensor:
        """The inverse of `centred`."""
        return x + self.middle if self.middle else x


class RationalQuadraticCDF(nn.Module):
    """A monotone rational-quadratic spline for each number of an example, the same ones for all examples.

    Drop-in for nflows' `PiecewiseRationalQuadraticCDF`: arguments, numbers and state-dict keys.

    Args:
        shape: of an example, or an int for that many features.
        num_bins: K.
        tails, tail_bound, min_bin_width, min_bin_height, min_derivative: as in `RationalQuadraticCoupling`.
        identity_init: start as the identity, else at random.

    Attributes:
        unnormalized_widths, unnormalized_heights: [*shape, K]; unnormalized_derivatives: [*shape, K - 1] for linear
            tails, K for circular ones, K + 1 without.

    Shape: [batch, *shape] both ways; logabsdet [batch], nats, of the direction run.

    Raises:
        ValueError: what `RationalQuadraticCoupling` raises of its settings.

    Source: Durkan et al., "Neural Spline Flows" (2019), section 3.1.
    """

    @plain_numbers
    def __init__(
        self,
        shape: int | Sequence[int],
        num_bins: int = 10,
        tails: str | None = None,
        tail_bound: float = 1.0,
        identity_init: bool = False,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
    ) -> None:
        super().__init__()
        positive(num_bins=num_bins)
        self.box = Box(tails, tail_bound)
        check_settings(num_bins, tails, tail_bound, min_bin_width, min_bin_height, min_derivative, "nflows")
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.min_bin_width, self.min_bin_height, self.min_derivative = min_bin_width, min_bin_height, min_derivative
        make = torch.zeros if identity_init else torch.rand
        self.unnormalized_widths = nn.Parameter(make(*self.shape, num_bins))
        self.unnormalized_heights = nn.Parameter(make(*self.shape, num_bins))
        derivatives = make(*self.shape, num_bins + DERIVATIVES[tails])
        # A slope of 1.
        slope = math.log(math.expm1(1 - min_derivative)) if identity_init else 0.0
        self.unnormalized_derivatives = nn.Parameter(derivatives + slope)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, inverse=True)

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x: expected [batch, {', '.join(map(str, self.shape))}], got {tuple(x.shape)}")
        parameters = (self.unnormalized_widths, self.unnormalized_heights, self.unnormalized_derivatives)
        state = torch.promote_types(x.dtype, self.unnormalized_widths.dtype)
        # Logarithms are summed in at least float32.
        dtype = torch.promote_types(state, torch.float32)
        y, logabsdet = rational_quadratic_spline(
            self.box.centred(x.to(dtype)),
            *(parameter.to(dtype).expand(x.shape[0], *parameter.shape) for parameter in parameters),
            inverse=inverse,
            tails=self.box.tails,
            tail_bound=self.box.half,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
        )
        return self.box.placed(y).to(state), logabsdet.flatten(1).sum(1)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, num_bins={self.unnormalized_widths.shape[-1]}, {self.box}"


class RationalQuadraticCoupling(FeatureCoupling):
    """Coupling by a monotone rational-quadratic spline for each transformed feature.

    Drop-in for nflows' `PiecewiseRationalQuadraticCouplingTransform`: arguments in the same order, state-dict keys, the
    same layout of parameters (for each feature `num_bins` widths, heights, then derivatives), and widths and heights
    divided by the square root of the conditioner's `hidden_features` (or `hidden_channels`), where it has one. Of the
    defaults one differs: tails are linear here.

    Args:
        mask, transform_net_create_fn: as in `FeatureCoupling`.
        num_bins: K.
        tails: `"linear"`: the identity outside of [-tail_bound, tail_bound] (3K - 1 parameters a feature);
            `"circular"`: a spline of the circle, whose derivatives at both ends are the same (3K); None: of [0, 1]
            alone (3K + 1).
        tail_bound: half the side of the box around 0; of a spline with tails.
        apply_unconditional_transform: the identity features go through splines with parameters of their own, a
            `RationalQuadraticCDF`.
        img_shape: height and width of images, which these splines have to know.
        min_bin_width, min_bin_height: smallest share of the box, as fractions of it.
        min_derivative: smallest slope at a knot.

    Shape: as of `FeatureCoupling`.

    Raises:
        ValueError: no bins, other tails, a `tail_bound` that is not positive, or without tails, minima that fill the
            box, a `min_derivative` that is negative or (linear tails) steeper than the tails; what `FeatureCoupling`
            and `rational_quadratic_coupling` raise.

    Source: Durkan et al., "Neural Spline Flows" (2019), section 3; Rezende et al., "Normalizing Flows on Tori and
    Spheres" (2020), section 2.1.2, for the circle.
    """

    @plain_numbers
    def __init__(
        self,
        mask: Mask,
        transform_net_create_fn: MakeConditioner,
        num_bins: int = 10,
        tails: str | None = "linear",
        tail_bound: float = 1.0,
        apply_unconditional_transform: bool = False,
        img_shape: Sequence[int] | None = None,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
    ) -> None:
        positive(num_bins=num_bins)
        box = Box(tails, tail_bound)
        minima = (min_bin_width, min_bin_height, min_derivative)
        check_settings(num_bins, tails, tail_bound, *minima, "nflows")

        def unconditional(features: int) -> RationalQuadraticCDF:
            shape = (features, *(img_shape or ()))
            return RationalQuadraticCDF(shape, num_bins, tails, tail_bound, False, *minima)

        super().__init__(
            mask,
            transform_net_create_fn,
            unconditional if apply_unconditional_transform else None,
            params_per_feature=3 * num_bins + DERIVATIVES[tails],
        )
        self.box = box
        self.num_bins = num_bins
        self.tails = tails
        self.tail_bound = tail_bound
        self.min_bin_width = min_bin_width
        self.min_bin_height = min_bin_height
        self.min_derivative = min_derivative

    @property
    def softmax_scale(self) -> float:
        """The factor of raw widths and heights before their softmax."""
        for name in ("hidden_features", "hidden_channels"):
            width = getattr(self.transform_net, name, None)
            if isinstance(width, int):
                return width**-0.5
        return 1.0

    def _transform(self, transformed: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        y, logabsdet = rational_quadratic_coupling(
            self.box.centred(transformed),
            params,
            inverse=inverse,
            num_bins=self.num_bins,
            tails=self.tails,
            tail_bound=self.box.half,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
            softmax_scale=self.softmax_scale,
        )
        return self.box.placed(y), logabsdet

    def extra_repr(self) -> str:
        return f"features={self.features}, num_bins={self.num_bins}, tails={self.tails!r}, tail_bound={self.tail_bound}"


def transformed_where(mask: Tensor) -> Tensor:
    """Which numbers of the mask mean "transformed"; raises where those are all or none."""
    transformed = mask > 0
    if not transformed.any() or transformed.all():
        raise ValueError(
            "mask: expected some numbers above 0 (transformed) and some not (read), got "
            f"{int(transformed.sum())} above 0 of {transformed.numel()}"
        )
    return transformed


def _run_of(indices: list[int]) -> tuple[int, int] | None:
    """Start and length where the indices are consecutive."""
    first, count = (indices or [0])[0], len(indices)
    return (first, count) if indices == list(range(first, first + count)) else None


def _take(x: Tensor, run: tuple[int, int] | None, indices: Tensor) -> Tensor:
    return x.index_select(1, indices) if run is None else x.narrow(1, *run)


def checkerboard_mask(channels: int, height: int, width: int, *, first: bool = False) -> Tensor:
    """Ones (transformed) and zeros (read) like the squares of a checkerboard, the same in all channels.

    Args:
        first: whether the first pixel is transformed; two couplings with either value transform every pixel.

    Returns:
        [channels, height, width], float, on the CPU.

    Raises:
        ValueError: sizes that are not positive ints.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), section 3.4 and figure 3.
    """
    positive(channels=channels, height=height, width=width)
    rows, columns = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
    squares = (rows[:, None] + columns + first) % 2
    return squares.float().repeat(channels, 1, 1)


class MaskedAffineCoupling(_Affine, Coupling):
    """Affine coupling of any part of an image: the conditioner sees the image with the transformed values set to zero.

        shift, raw = net(x * (1 - mask), context)
        y = x * (1 - mask) + (scale(raw) * x + shift) * mask

    Args:
        mask: [channels, height, width], more than 0 where a value is transformed, as `checkerboard_mask` makes it.
        transform_net_create_fn: makes the conditioner; called as `(channels, 2 * channels)`. All shifts come before
            all raw scales.
        scale_map, bound, min_scale: as in `AffineCoupling`.

    Attributes:
        transform_net: the conditioner, called as in `Coupling`.

    Shape: [batch, channels, height, width]; logabsdet [batch], nats, of the direction run.

    Raises:
        TypeError: in `forward` and `inverse`, a dtype that is not floating.
        ValueError: a mask of other dimensions, or one that leaves nothing to read or nothing to transform, another
            `scale_map`; in `forward` and `inverse`, an image of another shape than the mask, a context of another
            batch, a conditioner that gives another number of parameters than it was asked for.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), equation 9.
    """

    @plain_numbers
    def __init__(
        self,
        mask: Tensor,
        transform_net_create_fn: Callable[[int, int], nn.Module],
        *,
        scale_map: str = "tanh",
        bound: float = 2.0,
        min_scale: float = 0.0,
    ) -> None:
        super().__init__()
        mask = torch.as_tensor(mask, device="cpu")
        if mask.dim() != 3:
            raise ValueError(f"mask: expected [channels, height, width], got shape {tuple(mask.shape)}")
        self._set_scale_map(MaskedAffineCoupling.__init__, scale_map, bound, min_scale)
        transformed = transformed_where(mask)
        self.register_buffer("mask", transformed.to(torch.get_default_device()))
        self._parts = Kept(indices=True)
        self._count = int(transformed.sum())
        self._positions()
        self.transform_net = transform_net_create_fn(len(mask), 2 * len(mask))

    def _check_shape(self, x: Tensor) -> None:
        floating(x)
        if x.dim() != 4 or x.shape[1:] != self.mask.shape:
            raise ValueError(f"x: expected [batch, {', '.join(map(str, self.mask.shape))}], got {tuple(x.shape)}")

    def _num_params(self) -> int:
        return 2 * len(self.mask)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.masked_fill(self.mask, 0.0), x.flatten(1).index_select(1, self._positions())

    def _transform(self, transformed: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        positions = self._positions()
        shift, raw_scale = (half.flatten(1).index_select(1, positions) for half in params.chunk(2, dim=1))
        return self._scaled_and_shifted(transformed, shift, raw_scale, inverse)

    def _merge(self, identity: Tensor, transformed: Tensor) -> Tensor:
        if identity.dtype != transformed.dtype:
            identity = identity.to(transformed.dtype)
        return identity.flatten(1).index_copy(1, self._positions(), transformed).view_as(identity)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # A checkpoint brings its own mask, and torch.compile takes the positions that are there.
        self._positions()

    def _positions(self) -> Tensor:
        """The transformed values of a flattened image: the op runs on these alone."""
        positions = self._parts.get(self._find_positions, [self.mask])
        if positions is not None:
            return positions.to(self.mask.device)
        # A mask that cannot be looked at, as in torch.func.vmap over masks, marks as many values as the module's own.
        return (1 - self.mask.flatten().to(torch.uint8)).sort(stable=True).indices[: self._count]

    def _find_positions(self) -> Tensor:
        positions = self.mask.flatten().nonzero().flatten()
        self._count = len(positions)
        return positions

    def extra_repr(self) -> str:
        return f"shape={tuple(self.mask.shape)}, scale_map={self.scale_map!r}"
