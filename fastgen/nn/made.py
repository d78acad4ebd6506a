"""Masked networks whose outputs for a feature depend only on the features before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import context_of, features_of, plain_numbers, positive


class MaskedLinear(nn.Linear):
    """`y = (weight * mask) x + bias`; a unit of degree d sees the inputs of degree up to d (`strict`: below d).

    State-dict keys: `weight`, `bias`, and the buffers `mask` [out, in] and `degrees` [out].

    Args:
        in_degrees: of each input, [in].
        out_degrees: of each output, [out].
        strict: the output layer, which must not see the degree it predicts.
        context_features: further inputs, behind the others, that every output sees.

    Source: Germain et al., "MADE" (2015), equations 12 and 13.
    """

    def __init__(
        self, in_degrees: Tensor, out_degrees: Tensor, *, strict: bool = False, context_features: int = 0
    ) -> None:
        super().__init__(len(in_degrees) + context_features, len(out_degrees))
        mask = out_degrees[:, None] > in_degrees if strict else out_degrees[:, None] >= in_degrees
        self.register_buffer("mask", F.pad(mask, (0, context_features), value=True).to(self.weight.dtype))
        self.register_buffer("degrees", out_degrees)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedFeedforwardBlock(nn.Module):
    """`h <- dropout(activation(masked_linear(batch_norm(h))))`."""

    def __init__(
        self,
        in_degrees: Tensor,
        out_degrees: Tensor,
        *,
        activation: Callable[[Tensor], Tensor],
        dropout_probability: float,
        use_batch_norm: bool,
    ) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(len(in_degrees), eps=1e-3) if use_batch_norm else None
        self.linear = MaskedLinear(in_degrees, out_degrees)
        self.activation = activation
        self.dropout = nn.Dropout(dropout_probability)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if self.batch_norm is not None:
            x = self.batch_norm(x)
        return self.dropout(self.activation(self.linear(x)))


class MaskedResidualBlock(nn.Module):
    """`h <- h + linear_1(dropout(activation(linear_0(activation(h)) + context_layer(context))))`, linear layers masked,
    with batch norm before each activation where it is asked for.
    """

    def __init__(
        self,
        degrees: Tensor,
        *,
        context_features: int | None,
        activation: Callable[[Tensor], Tensor],
        dropout_probability: float,
        use_batch_norm: bool,
    ) -> None:
        super().__init__()
        units = len(degrees)
        if context_features is not None:
            self.context_layer = nn.Linear(context_features, units)
        self.batch_norm_layers = nn.ModuleList(nn.BatchNorm1d(units, eps=1e-3) for _ in range(2 * use_batch_norm))
        self.linear_layers = nn.ModuleList(MaskedLinear(degrees, degrees) for _ in range(2))
        self.activation = activation
        self.dropout = nn.Dropout(dropout_probability)
        # A block starts close to the identity.
        for parameter in self.linear_layers[1].parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.linear_layers[0](self.activation(self._normalised(0, x)))
        if context is not None:
            h = h + self.context_layer(context)
        h = self.linear_layers[1](self.dropout(self.activation(self._normalised(1, h))))
        return x + h

    def _normalised(self, i: int, x: Tensor) -> Tensor:
        return self.batch_norm_layers[i](x) if self.batch_norm_layers else x


class MADE(nn.Module):
    """Masked autoencoder: the outputs `i * output_multiplier ...` of feature i depend on the features before i.

    Arguments, state-dict keys and numbers of the MADE of nflows. Context enters the first layer through the
    activation, and every residual block; feed-forward blocks have none.

    Args:
        features: number of inputs, and of groups of outputs.
        hidden_features: units of every hidden layer.
        context_features: width of the context, None where there is none.
        num_blocks: residual blocks of two layers, or feed-forward ones of one, behind the first layer.
        output_multiplier: outputs for each feature.
        use_residual_blocks: residual or feed-forward blocks.
        random_mask: draw the units' degrees instead of cycling through them; only without residual blocks.
        activation: of the hidden units.
        dropout_probability: within the blocks.
        use_batch_norm: within the blocks.

    Shape: [batch, features] and context [batch, context_features] to [batch, features * output_multiplier].

    Raises:
        ValueError: sizes that are not positive, residual blocks with random masks, an input of another shape, or a
            context that is missing, unexpected or of another shape.

    Source: Germain et al., "MADE: Masked Autoencoder for Distribution Estimation" (2015), section 4.
    """

    @plain_numbers
    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        output_multiplier: int = 1,
        use_residual_blocks: bool = True,
        random_mask: bool = False,
        activation: Callable[[Tensor], Tensor] = F.relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
    ) -> None:
        positive(features=features, hidden_features=hidden_features, output_multiplier=output_multiplier)
        if num_blocks < 0:
            raise ValueError(f"num_blocks: expected 0 or more, got {num_blocks!r}")
        if context_features is not None:
            positive(context_features=context_features)
        if use_residual_blocks and random_mask:
            raise ValueError("random_mask: residual blocks need units of the same degree in every layer")
        super().__init__()
        self.features, self.hidden_features = features, hidden_features
        self.context_features, self.output_multiplier = context_features, output_multiplier
        self.use_residual_blocks, self.activation = use_residual_blocks, activation
        options = {
            "activation": activation,
            "dropout_probability": dropout_probability,
            "use_batch_norm": use_batch_norm,
        }
        degrees = torch.arange(1, features + 1)
        hidden = _hidden_degrees(features, hidden_features, degrees, random_mask)
        self.initial_layer = MaskedLinear(degrees, hidden)
        if context_features is not None:
            self.context_layer = nn.Linear(context_features, hidden_features)
        blocks: list[nn.Module] = []
        for _ in range(num_blocks):
            if use_residual_blocks:
                blocks.append(MaskedResidualBlock(hidden, context_features=context_features, **options))
            else:
                before, hidden = hidden, _hidden_degrees(features, hidden_features, hidden, random_mask)
                blocks.append(MaskedFeedforwardBlock(before, hidden, **options))
        self.blocks = nn.ModuleList(blocks)
        self.final_layer = MaskedLinear(hidden, degrees.repeat_interleave(output_multiplier), strict=True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        features_of(x, self.features, image=False)
        context_of(context, x.shape[0], self.context_features)
        h = self.initial_layer(x)
        if context is not None:
            h = h + self.activation(self.context_layer(context))
        if not self.use_residual_blocks:
            h = self.activation(h)
        for block in self.blocks:
            h = block(h, context)
        return self.final_layer(h)

    @property
    def residual(self) -> bool:
        return self.use_residual_blocks

    @property
    def one_pass(self) -> bool:
        """Whether a unit's value is a function of its degree's prefix alone, as the one-pass inverse needs: no batch
        norm, and no dropout that is active.
        """
        norms = any(isinstance(module, nn.BatchNorm1d) for module in self.modules())
        dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.modules())
        return not norms and not (dropout and self.training)

    def masked_linears(self) -> list[MaskedLinear]:
        """Every masked layer, in order."""
        blocks: list[MaskedLinear] = []
        for block in self.blocks:
            blocks += block.linear_layers if self.use_residual_blocks else [block.linear]
        return [self.initial_layer, *blocks, self.final_layer]

    def context_terms(self, context: Tensor) -> Tensor:
        """The terms that the context adds to the first layer and to each residual block's first layer, side by side."""
        terms = [self.activation(self.context_layer(context))]
        if self.use_residual_blocks:
            terms += [block.context_layer(context) for block in self.blocks]
        return torch.cat(terms, 1)


class MaskedMLP(nn.Module):
    """Masked feed-forward network over features in any order, the context an input like the others.

    The units of a hidden layer go through the degrees in turn. With the same order of features and its weights copied
    layer by layer, it computes what zuko's masked network does.

    Args:
        features: number of inputs, and of groups of outputs.
        hidden_features: units of each hidden layer.
        context_features: width of the context, None where there is none.
        output_multiplier: outputs for each feature.
        order: the place of each feature in the order, a permutation of 0 to features - 1; None is their own order.
        activation: between the layers.

    Shape: [batch, features] and context [batch, context_features] to [batch, features * output_multiplier].

    Raises:
        ValueError: sizes that are not positive, an order that is no permutation, an input of another shape, or a
            context that is missing, unexpected or of another shape.

    Source: Germain et al., "MADE" (2015), equations 12 and 13.
    """

    residual = False
    one_pass = True

    @plain_numbers
    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (64, 64),
        context_features: int | None = None,
        output_multiplier: int = 1,
        order: Sequence[int] | Tensor | None = None,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        positive(features=features, output_multiplier=output_multiplier)
        if not hidden_features:
            raise ValueError("hidden_features: expected at least one hidden layer")
        for width in hidden_features:
            positive(hidden_features=width)
        if context_features is not None:
            positive(context_features=context_features)
        super().__init__()
        self.features, self.hidden_features = features, tuple(hidden_features)
        self.context_features, self.output_multiplier, self.activation = context_features, output_multiplier, activation
        degrees = _checked_order(order, features) + 1
        # With a context there is something to see for the feature that comes first.
        lowest = 0 if context_features is not None else min(1, features - 1)
        layers, before = [], degrees
        for i, width in enumerate(self.hidden_features):
            hidden = torch.arange(width) % (max(1, features - lowest)) + lowest
            layers.append(MaskedLinear(before, hidden, context_features=(context_features or 0) if i == 0 else 0))
            before = hidden
        layers.append(MaskedLinear(before, degrees.repeat_interleave(output_multiplier), strict=True))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        features_of(x, self.features, image=False)
        context_of(context, x.shape[0], self.context_features)
        h = x if context is None else torch.cat([x, context], 1)
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h)

    def masked_linears(self) -> list[MaskedLinear]:
        """Every masked layer, in order; the first one sees the context behind the features."""
        return list(self.layers)

    def context_terms(self, context: Tensor) -> Tensor:
        """The term that the context adds to the first layer."""
        return F.linear(context, self.layers[0].weight[:, self.features :])


def _hidden_degrees(features: int, units: int, in_degrees: Tensor, random: bool) -> Tensor:
    highest = max(1, features - 1)
    if random:
        lowest = min(int(in_degrees.min()), features - 1)
        return torch.randint(lowest, features, (units,))
    return torch.arange(units) % highest + min(1, features - 1)


def _checked_order(order: Sequence[int] | Tensor | None, features: int) -> Tensor:
    if order is None:
        return torch.arange(features)
    places = torch.as_tensor(order)
    if places.shape != (features,) or not torch.equal(places.sort().values, torch.arange(features)):
        raise ValueError(f"order: expected a permutation of 0 to {features - 1}, got {order!r}")
    return places
