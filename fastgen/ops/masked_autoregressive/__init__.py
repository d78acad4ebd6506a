"""The exact inverse of a masked autoregressive transform in one pass over the weights of its network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.checks import check_choice, check_floating, check_same_type
from fastgen.ops.masked_autoregressive.activations import ACTIVATIONS
from fastgen.ops.masked_autoregressive.cases import cases, cost, drawn, samples
from fastgen.ops.masked_autoregressive.elements import SCALE_MAPS, Affine, RationalQuadratic
from fastgen.ops.masked_autoregressive.gradient import implicit_gradient
from fastgen.ops.masked_autoregressive.order import DegreeOrder
from fastgen.ops.registry import Op, Tolerance, differentiable, full_precision
from fastgen.ops.spline import check_domain


def masked_autoregressive_inverse(
    y: Tensor,
    weights: Tensor,
    context: Tensor | None,
    order: DegreeOrder,
    *,
    element: Affine | RationalQuadratic,
    activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    """Solve `y_i = f(x_i; network(x)_i)` for x, where the parameters of feature i depend only on features before it.

    Features and hidden units are taken in the order of their degrees: the parameters of a feature from the hidden
    units that are known, the feature by the inverse of its element, then the hidden units that see it. Every weight is
    used once for a sample, where the usual inverse evaluates the network once for every feature.

    Args:
        y: [batch, features].
        weights: `order.pack` of the network's weights and biases.
        context: what the context adds to the hidden units before their activation, [batch, order.context_width], the
            units of `order.context_layers` one layer after another in `order.context_order`; or None.
        order: of the network's masks, by `degree_order`.
        element: `Affine` or `RationalQuadratic`, f.
        activation: of the hidden units, one of relu, leaky_relu, elu, tanh, sigmoid, silu, gelu, softplus, with the
            defaults of `torch.nn.functional`. In a residual network it precedes the two layers of each block, and the
            first and the last layer have none.

    Returns:
        x [batch, features], and the log-determinant of the inverse [batch], nats.

    Raises:
        ValueError: shapes that do not match the order, a number of outputs per feature that is not the element's, or
            another activation.
        TypeError: a dtype that is not floating, or a dtype or device that differs between the arguments.

    Gradients of every order in y, weights and context. The first is implicit: the same order run backwards over the
    network at the solution, whatever the number of features; only the arguments and x are saved for it.

    Source: Papamakarios et al., "Masked Autoregressive Flow for Density Estimation" (2017), section 3; Germain et al.,
    "MADE" (2015), equations 12 and 13, for the degrees.
    """
    _check(y, weights, context, order, element, activation)
    backend = MASKED_AUTOREGRESSIVE_INVERSE.choose((y, weights, context), order, element, activation)
    if backend == "reference":
        return masked_autoregressive_inverse_reference(
            y, weights, context, order, element=element, activation=activation
        )
    return _inverse(y, weights, context, order, element, activation, backend)


@full_precision
def masked_autoregressive_inverse_reference(
    y: Tensor,
    weights: Tensor,
    context: Tensor | None,
    order: DegreeOrder,
    *,
    element: Affine | RationalQuadratic,
    activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    function, layers, terms = ACTIVATIONS[activation], order.unpack(weights), order.context_terms(context)
    y = y.index_select(1, order.feature_order)
    x = y[:, :0]
    before = [y[:, :0]] * len(order.hidden_features)
    seen = list(before)
    logabsdet = y.new_zeros(y.shape[0])
    starts = [(0, *start) for start in order.starts]

    # Each degree appends its units to every list, so that the lists hold the units of all degrees so far.
    for degree in range(order.levels + 1):
        if degree:
            first, last = starts[0][degree : degree + 2]
            rows = slice(first * order.num_parameters, last * order.num_parameters)
            parameters = _linear(seen[-1], layers[-1], rows).view(y.shape[0], last - first, order.num_parameters)
            solved, derivative = element.reference(y[:, first:last], parameters, inverse=True)
            x, logabsdet = torch.cat([x, solved], 1), logabsdet + derivative.sum(1)
        inputs = x
        for i in range(len(seen)):
            rows = slice(*starts[1 + i][degree : degree + 2])
            new = _linear(inputs, layers[i], rows)
            if i in terms:
                new = new + terms[i][:, rows]
            if order.residual and i and i % 2 == 0:
                new = new + before[i - 2][:, rows]
            before[i] = torch.cat([before[i], new], 1)
            last_of_residual = order.residual and i == len(seen) - 1
            seen[i] = torch.cat([seen[i], new if last_of_residual else function(new)], 1)
            inputs = seen[i]
    return x.index_select(1, torch.argsort(order.feature_order)), logabsdet


def _linear(inputs: Tensor, layer: tuple[Tensor, Tensor], rows: slice) -> Tensor:
    """Some rows of a layer on the prefix that is known."""
    weight, bias = layer
    return F.linear(inputs, weight[rows, : inputs.shape[1]], bias[rows])


def _check(
    y: Tensor,
    weights: Tensor,
    context: Tensor | None,
    order: DegreeOrder,
    element: Affine | RationalQuadratic,
    activation: str,
) -> None:
    check_floating("y", y)
    for name, tensor in (("weights", weights), ("context", context)):
        check_same_type(name, tensor, y)
    if y.dim() != 2 or y.shape[1] != order.features:
        raise ValueError(f"y: expected [batch, {order.features}], got {tuple(y.shape)}")
    if weights.shape != (order.packed_size,):
        raise ValueError(f"weights: expected ({order.packed_size},), what order.pack makes, got {tuple(weights.shape)}")
    if context is not None and context.shape != (y.shape[0], order.context_width):
        raise ValueError(f"context: expected {(y.shape[0], order.context_width)}, got {tuple(context.shape)}")
    if element.num_parameters != order.num_parameters:
        raise ValueError(
            f"order: its network has {order.num_parameters} outputs for a feature, {type(element).__name__} takes "
            f"{element.num_parameters}"
        )
    if isinstance(element, RationalQuadratic):
        check_domain("y", y, element.tails, element.tail_bound)
    check_choice("activation", activation, ACTIVATIONS)


def _run(
    y: Tensor,
    weights: Tensor,
    context: Tensor | None,
    order: DegreeOrder,
    element: Affine | RationalQuadratic,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    call = MASKED_AUTOREGRESSIVE_INVERSE.call[backend]
    context = None if context is None else context.contiguous()
    network = (y.contiguous(), weights.contiguous(), context, order.feature_order, order.starts_tensor)
    units = order.hidden_features
    settings = (sum(units), units[-1], order.residual, tuple(ACTIVATIONS).index(activation))
    if isinstance(element, Affine):
        numbers = SCALE_MAPS.index(element.scale_map), float(element.bound), float(element.min_scale)
        x, logabsdet = call["masked_autoregressive_inverse_affine"](*network, *settings, *numbers)
        return x, logabsdet, x
    _, *numbers = element.settings
    sizes = element.num_bins, element.num_parameters - 2 * element.num_bins
    numbers = *map(float, numbers), element.parameterization == "zuko"
    x, logabsdet = call["masked_autoregressive_inverse_spline"](*network, *settings, *sizes, *numbers)
    return x, logabsdet, x


def _gradient(ctx, grad_x: Tensor, grad_logabsdet: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    _, weights, context, x = ctx.saved_tensors
    return implicit_gradient(grad_x, grad_logabsdet, x, weights, context, *ctx.settings)


_inverse = differentiable(
    _run,
    _gradient,
    masked_autoregressive_inverse_reference,
    inputs=3,
    settings=("order", "element", "activation"),
    kept=1,
)


def _supports(y, weights, context, order: DegreeOrder, element: Affine | RationalQuadratic, activation: str) -> str:
    # The gradient calls the kernel of the spline, which takes two bins or more.
    return "splines of one bin" if isinstance(element, RationalQuadratic) and element.num_bins < 2 else ""


def _supports_triton(y, weights, context, order, element: Affine | RationalQuadratic, activation: str) -> str:
    return "" if isinstance(element, Affine) else "the kernel has affine elements only"


_DTYPES = (torch.float32, torch.float64)
_NETWORK = (
    "Tensor y, Tensor weights, Tensor? context, Tensor order, Tensor starts, int units, int last_width, bool residual, "
    "int activation"
)

MASKED_AUTOREGRESSIVE_INVERSE = Op(
    "masked_autoregressive_inverse",
    schema=(
        f"masked_autoregressive_inverse_affine({_NETWORK}, int scale_map, float bound, float min_scale)"
        " -> (Tensor, Tensor)",
        f"masked_autoregressive_inverse_spline({_NETWORK}, int num_bins, int num_derivatives, float tail_bound, "
        "float min_bin_width, float min_bin_height, float min_derivative, bool zuko) -> (Tensor, Tensor)",
    ),
    fake=(("y", "y[batch]"), ("y", "y[batch]")),
    reference=masked_autoregressive_inverse_reference,
    supports={"triton": _supports_triton, "cpp": _supports},
    dtypes={"triton": (torch.float32,), "cpp": _DTYPES},
    samples=samples,
    draw=drawn,
    cases=cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-13),
        # The tolerance of the spline, whose error is in the gradient.
        torch.float32: Tolerance(2, 1e-5),
    },
    cost=cost,
    passes=("forward",),
)
