"""The activations that the kernels of `masked_autoregressive_inverse` know, and their derivatives."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

# In the order of `Activation` in csrc/cpu/masked_autoregressive.h.
ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
}


def _gelu_derivative(x: Tensor) -> Tensor:
    normal = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * normal


def _silu_derivative(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _sigmoid_derivative(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _relu_derivative(x: Tensor, below: float = 0.0) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), torch.full_like(x, below))


def softplus_derivative(x: Tensor) -> Tensor:
    # torch's softplus is the identity above its threshold.
    return torch.where(x > 20, torch.ones_like(x), torch.sigmoid(x))


# As functions of the argument of the activation.
DERIVATIVES = {
    "relu": _relu_derivative,
    "leaky_relu": partial(_relu_derivative, below=0.01),
    "elu": lambda x: torch.exp(x.clamp(max=0)),
    "tanh": lambda x: 1 - torch.tanh(x) ** 2,
    "sigmoid": _sigmoid_derivative,
    "silu": _silu_derivative,
    "gelu": _gelu_derivative,
    "softplus": softplus_derivative,
}
