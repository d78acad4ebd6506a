"""The masked autoregressive layer of normalising flows: one pass of the network in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import context_of, features_of, plain_numbers
from fastgen.nn.coupling import Box
from fastgen.nn.frozen import Freezable, Kept
from fastgen.nn.made import MADE, MaskedMLP
from fastgen.ops.affine_coupling import affine_coupling
from fastgen.ops.masked_autoregressive import (
    ACTIVATIONS,
    Affine,
    DegreeOrder,
    RationalQuadratic,
    masked_autoregressive_inverse,
)
from fastgen.ops.masked_autoregressive.order import degree_order
from fastgen.ops.spline import rational_quadratic_coupling

# Activations that the one-pass inverse knows, besides those of torch.nn.functional: as functions and as modules.
_MODULES = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus)
_BY_FUNCTION = {
    **{function: name for name, function in ACTIVATIONS.items()},
    torch.relu: "relu",
    F.tanh: "tanh",
    F.sigmoid: "sigmoid",
}
_ELEMENTS = {"affine": Affine, "rational_quadratic": RationalQuadratic}
_BY_MODULE = {repr(module()): name for name, module in zip(ACTIVATIONS, _MODULES, strict=True)}


class MaskedAutoregressive(Freezable):
    """`y_i = f(x_i; net(x, context)_i)` with a masked network, whose outputs for feature i depend on the features
    before i.

    `forward` takes data to noise in one pass of the network. `inverse` takes one pass too, by
    `fastgen.ops.masked_autoregressive_inverse`, with gradients where they are asked for. It evaluates the network once
    for each feature only where the network is not a function of its masks alone (batch norm, active dropout, or an
    activation that the op does not know) and in `torch.func.vmap` over masks. In eval mode without gradients the
    weights are sorted once and used while every bit of them is the same; `freeze()` saves that comparison
    (`fastgen.nn.frozen`).

    With an int for `hidden_features` the network is `MADE`, and arguments, state-dict keys and numbers are those of
    nflows' `MaskedAffineAutoregressiveTransform` and `MaskedPiecewiseRationalQuadraticAutoregressiveTransform`; with a
    sequence it is `MaskedMLP`.

    Args:
        features: number of features.
        hidden_features: units of every hidden layer of `MADE`, or of each hidden layer of `MaskedMLP`.
        context_features: width of the context, None where there is none.
        num_blocks: of `MADE`, as are the five arguments after it except the activation.
        transform: "affine", or "rational_quadratic" for splines.
        order: of `MaskedMLP`: the place of each feature.
        options: of the transform. Of "affine": `scale_map`, "softplus" (nflows), "exp", "tanh", "sigmoid" or "softclip"
            (zuko), `bound` and `min_scale`, as `fastgen.ops` tells. Of "rational_quadratic": `num_bins`, `tails`,
            `tail_bound`, `min_bin_width`, `min_bin_height`, `min_derivative` and `parameterization`, see
            `rational_quadratic_spline`; without tails the spline is of [0, 1], as nflows'.

    Shape: [batch, features] and context [batch, context_features] to [batch, features] and [batch], the
    log-determinant of the direction run in nats.

    Raises:
        ValueError: arguments out of range, of the other network or the other transform, an input of another shape, or
            a context that is missing, unexpected or of another shape.

    Source: Papamakarios et al., "Masked Autoregressive Flow for Density Estimation" (2017), equations 3 to 5; Durkan et
    al., "Neural Spline Flows" (2019), section 3.1.
    """

    @plain_numbers
    def __init__(
        self,
        features: int,
        hidden_features: int | Sequence[int],
        context_features: int | None = None,
        num_blocks: int = 2,
        use_residual_blocks: bool = True,
        random_mask: bool = False,
        activation: Callable[[Tensor], Tensor] = F.relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
        *,
        transform: str = "affine",
        order: Sequence[int] | Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.box, self.element = element_of(transform, options)
        outputs = self.element.num_parameters
        if isinstance(hidden_features, int):
            if order is not None:
                raise ValueError("order: the features of MADE keep their own; give hidden_features as a sequence")
            net: nn.Module = MADE(
                features, hidden_features, context_features, num_blocks, outputs, use_residual_blocks, random_mask,
                activation, dropout_probability, use_batch_norm,
            )  # fmt: skip
        else:
            if random_mask or dropout_probability or use_batch_norm:
                raise ValueError(
                    "hidden_features: random masks, dropout and batch norm "
                    "(random_mask, dropout_probability, use_batch_norm) need an int"
                )
            if num_blocks != 2 or not use_residual_blocks:
                raise ValueError("hidden_features: num_blocks and use_residual_blocks need an int")
            net = MaskedMLP(features, hidden_features, context_features, outputs, order, activation)
        self.features, self.context_features = features, context_features
        self.autoregressive_net = net
        self._activation = activation_name(activation)
        self._order = Kept(indices=True)
        self.register_load_state_dict_post_hook(_look_at_masks)
        self._degree_order()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._elementwise(x, self.autoregressive_net(x, context), inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features_of(y, self.features, image=False)
        context_of(context, y.shape[0], self.context_features)
        net = self.autoregressive_net
        if torch.is_autocast_enabled(y.device.type):
            # The solution builds on itself from feature to feature: half precision is no place for it.
            dtype = net.masked_linears()[0].weight.dtype
            with torch.autocast(y.device.type, enabled=False):
                return self.inverse(y.to(dtype), None if context is None else context.to(dtype))
        packed = None
        if self._activation is not None and net.one_pass:
            packed = self._kept_packed() or self._packed()
        if packed is None:
            return self._inverse_by_passes(y, context)
        weights, order = packed
        terms = None if context is None else net.context_terms(context).index_select(1, order.context_order)
        x, logabsdet = masked_autoregressive_inverse(
            self.box.centred(y), weights, terms, order, element=self.element, activation=self._activation
        )
        return self.box.placed(x), logabsdet

    def _inverse_by_passes(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """One evaluation of the network for each feature, as the network is a black box here."""
        x, logabsdet = torch.zeros_like(y), y.new_zeros(y.shape[0])
        for _ in range(self.features):
            x, logabsdet = self._elementwise(y, self.autoregressive_net(x, context), inverse=True)
        return x, logabsdet

    def _elementwise(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        element = self.element
        if isinstance(element, RationalQuadratic):
            tails, bound, *minima = element.settings
            names = ("min_bin_width", "min_bin_height", "min_derivative")
            y, logabsdet = rational_quadratic_coupling(
                self.box.centred(x), parameters, inverse=inverse, num_bins=element.num_bins, tails=tails,
                tail_bound=bound, parameterization=element.parameterization, **dict(zip(names, minima, strict=True)),
            )  # fmt: skip
            return self.box.placed(y), logabsdet
        raw, shift = parameters.view(x.shape[0], self.features, 2).unbind(2)
        if element.scale_map in ("softplus", "softclip"):
            log_scale = element.log_scale(raw.float() if raw.itemsize < 4 else raw)
            y, logabsdet = affine_coupling(x, shift, log_scale, inverse=inverse)
            # A half-precision network goes on in its own dtype.
            return y.to(x.dtype), logabsdet
        return affine_coupling(
            x, shift, raw, inverse=inverse, scale_map=element.scale_map, bound=element.bound,
            min_scale=element.min_scale,
        )  # fmt: skip

    def _degree_order(self) -> DegreeOrder | None:
        """The order of the masks that the network has now; None where they cannot be looked at."""
        masks = [layer.mask for layer in self.autoregressive_net.masked_linears()]
        order = self._order.get(self._order_of_masks, masks)
        return None if order is None else order.to(masks[0].device)

    def _order_of_masks(self) -> DegreeOrder:
        net = self.autoregressive_net
        first, *others = [layer.mask for layer in net.masked_linears()]
        order = degree_order([first[:, : self.features], *others], residual=net.residual)
        return order.to(first.device)

    def _sources(self) -> list[Tensor]:
        return [t for layer in self.autoregressive_net.masked_linears() for t in (layer.weight, layer.bias, layer.mask)]

    def _kept_packed(self) -> tuple[Tensor, DegreeOrder] | None:
        if self.training or torch.is_grad_enabled():
            return None
        return self._kept.get(self._packed, self._sources(), self.box)

    def _packed(self) -> tuple[Tensor, DegreeOrder] | None:
        """The weights sorted by degree, and the order; None where the masks cannot be looked at."""
        order = self._degree_order()
        if order is None:
            return None
        layers = self.autoregressive_net.masked_linears()
        weights = [layers[0].weight[:, : self.features], *(layer.weight for layer in layers[1:])]
        biases = [layer.bias for layer in layers]
        if self.box.middle:
            # The op's features are centred, the network's are not.
            mask = layers[0].mask[:, : self.features]
            biases[0] = biases[0] + self.box.middle * (weights[0] * mask).sum(1)
        return order.pack(weights, biases), order


def element_of(transform: str, options: Mapping[str, Any]) -> tuple[Box, Affine | RationalQuadratic]:
    """The function that acts on each feature, and where it acts.

    Raises:
        TypeError: an option that no transform has.
        ValueError: another transform, an option of the other one, what the transform refuses.
    """
    if transform not in _ELEMENTS:
        raise ValueError(f"transform: expected 'affine' or 'rational_quadratic', got {transform!r}")
    names = {kind: {field.name for field in fields(element)} for kind, element in _ELEMENTS.items()}
    for name, value in options.items():
        if isinstance(value, bool):
            raise ValueError(f"{name}: expected a number, got {value!r}")
        if name not in names[transform]:
            owners = [kind for kind in names if name in names[kind]]
            if not owners:
                raise TypeError(f"{name}: expected options of {transform!r}, {', '.join(sorted(names[transform]))}")
            raise ValueError(f"{name}: an option of transform={owners[0]!r}, and this is {transform!r}")
    if transform == "affine":
        scale_map = options.get("scale_map", "softplus")
        for name in {"tanh": ["min_scale"], "softclip": ["min_scale"]}.get(scale_map, ["bound"]):
            if name in options:
                raise ValueError(f"{name}: has no effect on the scale map {scale_map!r}")
        if scale_map == "exp" and "min_scale" in options:
            raise ValueError("min_scale: has no effect on the scale map 'exp'")
        return Box("linear"), Affine(**options)
    bound = {"tail_bound": options["tail_bound"]} if "tail_bound" in options else {}
    box = Box(options.get("tails", "linear"), **bound)
    return box, RationalQuadratic(**{**options, "tail_bound": box.half})


def activation_name(activation: Callable[[Tensor], Tensor]) -> str | None:
    """The name of this activation in the one-pass inverse; None where it has none."""
    if isinstance(activation, nn.Module):
        return _BY_MODULE.get(repr(activation))
    return _BY_FUNCTION.get(activation)


def _look_at_masks(layer: MaskedAutoregressive, *_: Any) -> None:
    # A checkpoint may bring other masks, and torch.compile takes the order that is there.
    layer._degree_order()
