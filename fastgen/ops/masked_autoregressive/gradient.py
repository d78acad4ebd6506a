"""The gradient of a masked autoregressive inverse, by the same order of degrees run backwards.

Let y = f(x) be solved for x, and let a loss have gradients g in x and c in the log-determinant -l(x). Its gradients v
in y and p in the parameters of the elements satisfy, feature by feature,

    v dy/dx = g - c dl/dx + (p through the network),    p = -v dy/dp - c dl/dp

What comes to a feature through the network depends on the p of higher levels only: from the highest level down, every
weight is used once. What p leaves behind at the units is the gradient of the weights and of the context.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.masked_autoregressive.activations import ACTIVATIONS, DERIVATIVES
from fastgen.ops.masked_autoregressive.elements import Affine, RationalQuadratic
from fastgen.ops.masked_autoregressive.order import DegreeOrder, padding


@dataclass
class Network:
    """A masked network at the solution, its units in order of degree.

    Attributes:
        layers: weight and bias of each layer, zero beyond the prefixes that are read.
        inputs: what each layer reads.
        slopes: of the hidden layers' activations; None for the last one of a residual network, which has none.
        parameters: its output, [batch, features, num_parameters].
    """

    layers: list[tuple[Tensor, Tensor]]
    inputs: list[Tensor]
    slopes: list[Tensor | None]
    parameters: Tensor


def implicit_gradient(
    grad_x: Tensor,
    grad_logabsdet: Tensor,
    x: Tensor,
    weights: Tensor,
    context: Tensor | None,
    order: DegreeOrder,
    element: Affine | RationalQuadratic,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients in y, weights and context of `masked_autoregressive_inverse`, from its solution x."""
    x = x.index_select(1, order.feature_order)
    network = _evaluate(x, weights, context, order, activation)
    slope, y_slopes, l_slope, l_slopes = element.slopes(x, network.parameters, backend)
    cotangent = grad_logabsdet[:, None]
    grad = grad_x.index_select(1, order.feature_order) - cotangent * l_slope
    v, units, outputs = _solve(grad / slope, y_slopes, cotangent[:, :, None] * l_slopes, 1 / slope, network, order)
    gradients = []
    for adjoint, inputs in zip((*units, outputs.flatten(1)), network.inputs, strict=True):
        weight = adjoint.t() @ inputs
        gradients += [F.pad(weight, (0, padding(weight.shape[1]))).flatten(), adjoint.sum(0)]
    grad_weights = torch.where(order.visible, torch.cat(gradients), 0)
    grad_context = None if context is None else torch.cat([units[layer] for layer in order.context_layers], 1)
    return v.index_select(1, torch.argsort(order.feature_order)), grad_weights, grad_context


def _evaluate(x: Tensor, weights: Tensor, context: Tensor | None, order: DegreeOrder, activation: str) -> Network:
    terms = order.context_terms(context)
    layers = order.unpack(torch.where(order.visible, weights, 0))
    inputs, slopes, values = [x], [], []
    for i, layer in enumerate(layers[:-1]):
        value = F.linear(inputs[-1], *layer)
        if i in terms:
            value = value + terms[i]
        if order.residual and i and i % 2 == 0:
            value = value + values[i - 2]
        values.append(value)
        if order.residual and i == len(layers) - 2:
            slopes.append(None)
            inputs.append(value)
        else:
            slopes.append(DERIVATIVES[activation](value))
            inputs.append(ACTIVATIONS[activation](value))
    parameters = F.linear(inputs[-1], *layers[-1]).view(x.shape[0], order.features, order.num_parameters)
    return Network(layers, inputs, slopes, parameters)


def _solve(
    direct: Tensor, y_slopes: Tensor, constant: Tensor, inverse_slope: Tensor, network: Network, order: DegreeOrder
) -> tuple[Tensor, list[Tensor], Tensor]:
    """v, and the gradients p in the values of each hidden layer's units and in the elements' parameters, from the
    highest level down: `v = direct + (p through the network) * inverse_slope` and `p = -v y_slopes - constant`.
    """
    batch, (features, *starts) = direct.shape[0], order.starts
    v, outputs = torch.zeros_like(direct), torch.zeros_like(y_slopes)
    units = [direct.new_zeros(batch, width) for width in order.hidden_features]
    first_weight, last_weight = network.layers[0][0], network.layers[-1][0]
    for level in reversed(range(order.levels)):
        here = slice(features[level], features[level + 1])
        above = slice(starts[0][level], None)
        through = units[0][:, above] @ first_weight[above, here]
        v[:, here] = direct[:, here] + through * inverse_slope[:, here]
        outputs[:, here] = -v[:, here, None] * y_slopes[:, here] - constant[:, here]
        for i in reversed(range(len(units))):
            # The units just below this level, whose readers are all known now.
            below = slice(starts[i][level - 1] if level else 0, starts[i][level])
            if i == len(units) - 1:
                rows = slice(features[level] * order.num_parameters, None)
                adjoint = outputs.flatten(1)[:, rows] @ last_weight[rows, below]
            else:
                rows = slice(starts[i + 1][level - 1] if level else 0, None)
                adjoint = units[i + 1][:, rows] @ network.layers[i + 1][0][rows, below]
            if network.slopes[i] is not None:
                adjoint = adjoint * network.slopes[i][:, below]
            if order.residual and i % 2 == 0 and i + 2 < len(units):
                adjoint = adjoint + units[i + 2][:, below]
            units[i][:, below] = adjoint
    return v, units, outputs
