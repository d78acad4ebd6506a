"""A batch of small networks: the i-th sees a number of its own and the dimensions before i of a condition."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

Parameters = tuple[list[Tensor], list[Tensor]]


def initial_weights(z: Tensor, hidden_features: int, num_layers: int, generator: Generator | None) -> Parameters:
    """Weights [d, inputs, outputs] and biases [d, 1, outputs] of each layer, for standardised points [N, d].

    The units of the first layer turn at values of the data.
    """
    d = z.shape[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=z.dtype, device=z.device)

    first = normal(d, d, hidden_features) / math.sqrt(d)
    own = first.diagonal().T
    own.copy_(2 * normal(d, hidden_features))
    turns = z.T[:, torch.randint(len(z), (hidden_features,), generator=generator, device=z.device)]
    weights, biases = [first], [(-own * turns)[:, None]]
    for outputs in [hidden_features] * (num_layers - 1) + [1]:
        weights.append(normal(d, hidden_features, outputs) / math.sqrt(hidden_features))
        biases.append(z.new_zeros(d, 1, outputs))
    return weights, biases


def heights(parameters: Parameters, context: Tensor, y: Tensor, dims: slice = slice(None)) -> Tensor:
    """`H_i(y_i | context_1 ... context_{i-1})` in (0, 1), [D, n], of the D networks that `dims` says.

    Args:
        parameters: weights and biases of all d networks.
        context: points [n, d], of which each network sees the dimensions before its own.
        y: [D, n].
    """
    weights, biases = ([tensor[dims] for tensor in kind] for kind in parameters)
    d = context.shape[1]
    before = torch.ones(d, d, dtype=torch.bool, device=context.device).tril(-1)[dims]
    own = parameters[0][0].diagonal().T[dims]
    hidden = context @ (weights[0] * before[..., None]) + y[..., None] * own[:, None] + biases[0]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        hidden = torch.baddbmm(bias, hidden.tanh(), weight)
    return hidden[..., 0].sigmoid()
