"""The networks that read one part of a flow's input and give the parameters by which the other part is transformed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import at_least, context_of, features_of, odd, plain_numbers, positive, probability

Activation = Callable[[Tensor], Tensor]


class MLP(nn.Module):
    """Linear layers with an activation between them; the context is a part of the input.

        h_0 = [x, context],    h_{i+1} = activation(W_i h_i + b_i),    y = W_L h_L + b_L

    Args:
        hidden_features: widths of the hidden layers, at least one.
        context_features: length of the context, or None.
        activation: a function of tensors, or a module.

    Attributes:
        layers: the linear layers, the last one gives `y`.
        hidden_features: width of the last hidden layer, which couplings scale their logits by.

    Shape: `x` [batch, in_features], `context` [batch, context_features], `y` [batch, out_features].

    Raises:
        ValueError: sizes that are not positive ints (0 inputs or outputs will do), no hidden layer; in `forward`,
            another shape of `x`, a context that is missing, of another shape, or not expected.
    """

    @plain_numbers
    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: Sequence[int] = (128, 128),
        context_features: int | None = None,
        activation: Activation = F.relu,
    ) -> None:
        super().__init__()
        if not isinstance(hidden_features, Sequence) or not hidden_features:
            raise ValueError(f"hidden_features: expected at least one width, got {hidden_features!r}")
        at_least(0, in_features=in_features, out_features=out_features)
        for width in hidden_features:
            positive(hidden_features=width)
        if context_features is not None:
            positive(context_features=context_features)
        self.in_features = in_features
        self.out_features = out_features
        self.hidden_features: int = hidden_features[-1]
        self.context_features = context_features
        self.activation = activation
        widths = (in_features + (context_features or 0), *hidden_features, out_features)
        self.layers = nn.ModuleList(_linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = _with_context(x, context, self)
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h)


class ResidualBlock(nn.Module):
    """Two linear layers before which the activation stands, gated by the context, added to their input.

        t = W_2 activation(W_1 activation(x) + b_1) + b_2,    y = x + t * sigmoid(V context + c)

    without the gate where there is no context. State-dict keys are those of nflows' `ResidualBlock`.

    Source: He et al., "Identity Mappings in Deep Residual Networks" (2016), figure 4(e); Durkan et al., "Neural Spline
    Flows" (2019).
    """

    def __init__(
        self,
        features: int,
        context_features: int | None = None,
        activation: Activation = F.relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.use_batch_norm = use_batch_norm
        if use_batch_norm:
            self.batch_norm_layers = nn.ModuleList(nn.BatchNorm1d(features, eps=1e-3) for _ in range(2))
        self.context_layer = None if context_features is None else nn.Linear(context_features, features)
        self.linear_layers = nn.ModuleList(nn.Linear(features, features) for _ in range(2))
        self.dropout = nn.Dropout(dropout_probability)
        # The block starts as the identity, nearly.
        nn.init.uniform_(self.linear_layers[-1].weight, -1e-3, 1e-3)
        nn.init.uniform_(self.linear_layers[-1].bias, -1e-3, 1e-3)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.batch_norm_layers[0](x) if self.use_batch_norm else x
        h = self.linear_layers[0](self.activation(h))
        h = self.batch_norm_layers[1](h) if self.use_batch_norm else h
        h = self.linear_layers[1](self.dropout(self.activation(h)))
        if self.context_layer is not None:
            h = h * torch.sigmoid(self.context_layer(context))
        return x + h


class ResidualNet(nn.Module):
    """A linear layer, residual blocks, a linear layer: the conditioner of neural spline flows.

    Drop-in for nflows' `ResidualNet`: the same arguments, numbers and state-dict keys.

    Args:
        hidden_features: width of all blocks.
        context_features: length of the context, or None. The first layer sees it beside `x`, every block gates by it.
        num_blocks: `ResidualBlock`s, 0 or more.
        activation: a function of tensors, or a module.
        dropout_probability: before the second layer of every block.
        use_batch_norm: before the activations of every block.

    Shape: `x` [batch, in_features], `context` [batch, context_features], result [batch, out_features].

    Raises:
        ValueError: sizes that are not positive ints (0 inputs or outputs will do), a probability outside [0, 1); in
            `forward`, another shape of `x`, a context that is missing, of another shape, or not expected.

    Source: Durkan et al., "Neural Spline Flows" (2019).
    """

    @plain_numbers
    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        activation: Activation = F.relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        at_least(0, in_features=in_features, out_features=out_features)
        positive(hidden_features=hidden_features)
        if context_features is not None:
            positive(context_features=context_features)
        at_least(0, num_blocks=num_blocks)
        probability(dropout_probability=dropout_probability)
        self.in_features = in_features
        self.out_features = out_features
        self.hidden_features = hidden_features
        self.context_features = context_features
        self.initial_layer = _linear(in_features + (context_features or 0), hidden_features)
        self.blocks = nn.ModuleList(
            ResidualBlock(hidden_features, context_features, activation, dropout_probability, use_batch_norm)
            for _ in range(num_blocks)
        )
        self.final_layer = _linear(hidden_features, out_features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.initial_layer(_with_context(x, context, self))
        for block in self.blocks:
            h = block(h, context)
        return self.final_layer(h)


class ConvNet(nn.Module):
    """Three convolutions, the last of which starts at zero: the conditioner of Glow.

        h = activation(conv(x) + V context),    y = conv(dropout(activation(conv1x1(h))))

    so that a coupling starts as (nearly) the identity.

    Args:
        hidden_channels: of both hidden layers.
        context_features: length of the context, or None; it is added to every pixel of the first hidden layer, per
            channel.
        kernel_size: odd, of the first and the last convolution.
        activation: a function of tensors, or a module.
        dropout_probability: before the last convolution.

    Shape: `x` [batch, in_channels, height, width], `context` [batch, context_features], `y` [batch, out_channels,
    height, width].

    Raises:
        ValueError: sizes that are not positive ints, an even `kernel_size`, a probability outside [0, 1); in
            `forward`, another shape of `x`, a context that is missing, of another shape, or not expected.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.3.
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 512,
        context_features: int | None = None,
        kernel_size: int = 3,
        activation: Activation = F.relu,
        dropout_probability: float = 0.0,
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, out_channels=out_channels, hidden_channels=hidden_channels)
        odd("kernel_size", kernel_size)
        probability(dropout_probability=dropout_probability)
        if context_features is not None:
            positive(context_features=context_features)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.hidden_channels = hidden_channels
        self.context_features = context_features
        self.activation = activation
        padding = kernel_size // 2
        self.initial_layer = nn.Conv2d(in_channels, hidden_channels, kernel_size, padding=padding)
        self.hidden_layer = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.final_layer = nn.Conv2d(hidden_channels, out_channels, kernel_size, padding=padding)
        self.dropout = nn.Dropout(dropout_probability)
        self.context_layer = None
        if context_features is not None:
            # The first convolution has a bias already.
            self.context_layer = nn.Linear(context_features, hidden_channels, bias=False)
        for layer in (self.initial_layer, self.hidden_layer):
            nn.init.normal_(layer.weight, 0.0, 0.05)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.final_layer.weight)
        nn.init.zeros_(self.final_layer.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        features_of(x, self.in_channels, image=True)
        context_of(context, x.shape[0], self.context_features)
        h = self.initial_layer(x)
        if self.context_layer is not None:
            h = h + self.context_layer(context)[:, :, None, None]
        h = self.activation(self.hidden_layer(self.activation(h)))
        return self.final_layer(self.dropout(h))


def _linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer; one of a coupling that reads nothing, or transforms nothing, has an empty weight."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
        return nn.Linear(in_features, out_features)


def _with_context(x: Tensor, context: Tensor | None, net: MLP | ResidualNet) -> Tensor:
    features_of(x, net.in_features, image=False)
    context_of(context, x.shape[0], net.context_features)
    return x if context is None else torch.cat((x, context), dim=1)
