"""Linear layers with an inverse: LU-parameterised, between features and between the channels of images."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import features_of, plain_numbers, positive
from fastgen.nn.frozen import Freezable
from fastgen.nn.transform import constant_logabsdet
from fastgen.ops.invertible_conv1x1 import (
    invertible_conv1x1,
    invertible_conv1x1_factors,
    invertible_conv1x1_weight,
    multiply_channels,
)
from fastgen.ops.linalg import solve_triangular


class InvertibleMatrix(Freezable):
    """A square matrix with its inverse and log-determinant, which it may keep: the base of the layers of this file.

    In eval mode without gradients the weight or its inverse is computed once and used while every bit of what it was
    made of is the same; `freeze()` saves that comparison (`fastgen.nn.frozen`).

    Args:
        features: rows of the matrix.
        using_cache: whether to keep anything.

    Raises:
        ValueError: `features` that is not a positive int.
    """

    def __init__(self, features: int, using_cache: bool) -> None:
        super().__init__()
        positive(features=features)
        self.features = features
        self.using_cache = using_cache

    def weight(self) -> Tensor:
        """[features, features], in at least float32."""
        raise NotImplementedError

    def weight_inverse(self) -> Tensor:
        """[features, features], in at least float32."""
        raise NotImplementedError

    def logabsdet(self) -> Tensor:
        """The log-determinant of the weight, nats, a scalar."""
        raise NotImplementedError

    def _matrix(self, inverse: bool) -> tuple[Tensor, Tensor] | None:
        """The weight or its inverse, and its log-determinant, where they are kept."""
        if not self.using_cache or self.training or torch.is_grad_enabled():
            return None
        return self._kept.get(self._backward if inverse else self._forward, self._sources(), *self._settings())

    def _settings(self) -> tuple:
        """The numbers that the matrix depends on besides its tensors."""
        return ()

    def _forward(self) -> tuple[Tensor, Tensor]:
        return self.weight(), self.logabsdet()

    def _backward(self) -> tuple[Tensor, Tensor]:
        return self.weight_inverse(), -self.logabsdet()


class LULinear(InvertibleMatrix):
    """Linear layer `y = L U x + bias`, `L` with ones on its diagonal, `U` with positive numbers.

    Drop-in for nflows' `LULinear`: arguments, numbers and state-dict keys. Training needs one product with the batch;
    the inverse is two triangular solves, or one product with the inverse in eval mode (`InvertibleMatrix` tells when).

    Args:
        features: of input and output.
        using_cache: keep the weight and its inverse in eval mode, as `InvertibleMatrix` tells.
        identity_init: start as the identity; else uniformly within `1 / sqrt(features)`.
        eps: the diagonal of `U` is `softplus(raw) + eps`.

    Shape: [batch, features]; logabsdet [batch], nats, of the direction run: the sum of the logarithms of `U`'s
        diagonal.

    Autocast does not apply: the flow's state stays in the parameters' precision.

    Raises:
        TypeError: in `forward` and `inverse`, a dtype that is not floating.
        ValueError: `features` that is not a positive int; in `forward` and `inverse`, another shape.

    Source: Oliva et al., "Transformation Autoregressive Networks" (2018); Durkan et al., "Neural Spline Flows" (2019).
    """

    @plain_numbers
    def __init__(self, features: int, using_cache: bool = True, identity_init: bool = True, eps: float = 1e-3) -> None:
        super().__init__(features, using_cache)
        self.eps = eps
        entries = features * (features - 1) // 2
        self.lower_entries = nn.Parameter(torch.zeros(entries))
        self.upper_entries = nn.Parameter(torch.zeros(entries))
        self.unconstrained_upper_diag = nn.Parameter(torch.full((features,), math.log(math.expm1(1 - eps))))
        self.bias = nn.Parameter(torch.zeros(features))
        if not identity_init:
            bound = features**-0.5
            for parameter in (self.lower_entries, self.upper_entries, self.unconstrained_upper_diag):
                nn.init.uniform_(parameter, -bound, bound)
        self.register_buffer("_layout", _lu_layout(features), persistent=False)

    def _sources(self) -> tuple[Tensor, ...]:
        return self.lower_entries, self.upper_entries, self.unconstrained_upper_diag

    def _settings(self) -> tuple:
        return (self.eps,)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # No checkpoint has it, and a layer made on the meta device has no numbers in it.
        self._layout = _lu_layout(self.features).to(self.bias.device)

    @property
    def upper_diag(self) -> Tensor:
        """The diagonal of `U`, [features]."""
        raw = self.unconstrained_upper_diag
        return F.softplus(raw.to(torch.promote_types(raw.dtype, torch.float32))) + self.eps

    def factors(self) -> tuple[Tensor, Tensor]:
        """`L` and `U`, [features, features], in at least float32."""
        diagonal = self.upper_diag
        entries = torch.cat((diagonal, self.lower_entries, self.upper_entries))
        layout = self._layout
        if layout.device != entries.device:
            # Weights given to a module on the meta device.
            layout = _lu_layout(self.features).to(entries.device)
        both = entries.index_select(0, layout.flatten()).view(layout.shape)
        return torch.tril(both, -1) + torch.eye(self.features, dtype=both.dtype, device=both.device), torch.triu(both)

    def weight(self) -> Tensor:
        lower, upper = self.factors()
        return lower @ upper

    def weight_inverse(self) -> Tensor:
        lower, upper = self.factors()
        return _solve(lower, upper, torch.eye(self.features, dtype=lower.dtype, device=lower.device))

    def logabsdet(self) -> Tensor:
        return self.upper_diag.log().sum()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features_of(x, self.features, image=False)
        with _without_autocast(x):
            weight, logabsdet = self._matrix(inverse=False) or self._forward()
            x = x.to(torch.promote_types(x.dtype, self.bias.dtype))
            y = F.linear(x, weight.to(x.dtype), self.bias.to(x.dtype))
            return y, constant_logabsdet(logabsdet, y)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features_of(y, self.features, image=False)
        with _without_autocast(y):
            dtype = torch.promote_types(y.dtype, self.bias.dtype)
            x = y.to(dtype) - self.bias.to(dtype)
            kept = self._matrix(inverse=True)
            if kept is not None:
                return F.linear(x, kept[0].to(dtype)), constant_logabsdet(kept[1], x)
            lower, upper = self.factors()
            solved = _solve(lower, upper, x.to(lower.dtype).T).T
            return solved.to(dtype), constant_logabsdet(-self.logabsdet(), x)

    def extra_repr(self) -> str:
        return f"features={self.features}"


class InvertibleConv1x1(InvertibleMatrix):
    """Convolution with an invertible 1x1 kernel: `y = W x` at every pixel, with `W = P L (U + diag(s))`.

    `P` is a fixed permutation, `L` lower triangular with ones on its diagonal, `U` strictly upper triangular and
    `s = sign * exp(log_diagonal)` with fixed signs: the log-determinant is `height * width * sum(log_diagonal)`, and
    the inverse is two triangular solves. The weight starts as a random rotation.

    Args:
        channels: of input and output.
        weight: [channels, channels], to start from instead.
        using_cache: keep the weight and its inverse in eval mode, as `InvertibleMatrix` tells.

    Shape: [batch, channels, height, width]; logabsdet [batch], nats, of the direction run.

    Autocast does not apply: the flow's state stays in the parameters' precision.

    Raises:
        TypeError: a `weight` that is not floating; in `forward` and `inverse`, a dtype that is not.
        ValueError: `channels` that is not a positive int, a `weight` of another shape, singular or not finite; in
            `forward` and `inverse`, another shape.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.2 and equation 10.
    """

    @plain_numbers
    def __init__(self, channels: int, weight: Tensor | None = None, using_cache: bool = True) -> None:
        super().__init__(channels, using_cache)
        if weight is None:
            # On the CPU, whatever the default device is: the meta device cannot factor it.
            rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64, device="cpu")).Q
            weight, device = rotation.to(torch.get_default_dtype()), torch.get_default_device()
        elif not isinstance(weight, Tensor) or not weight.is_floating_point():
            got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(f"weight: expected a tensor of a floating dtype, got {got}")
        elif weight.shape != (channels, channels):
            expected = (channels, channels)
            raise ValueError(f"weight: expected [channels, channels] = {expected}, got {tuple(weight.shape)}")
        else:
            device = weight.device
        permutation, lower, upper, log_diagonal, sign = (f.to(device) for f in invertible_conv1x1_factors(weight))
        self.lower = nn.Parameter(lower)
        self.upper = nn.Parameter(upper)
        self.log_diagonal = nn.Parameter(log_diagonal)
        self.register_buffer("sign", sign)
        self.register_buffer("permutation", permutation)

    def factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """permutation, lower, upper, log_diagonal and sign, as `invertible_conv1x1` takes them."""
        return self.permutation, self.lower, self.upper, self.log_diagonal, self.sign

    def _sources(self) -> tuple[Tensor, ...]:
        return self.factors()

    def weight(self) -> Tensor:
        return invertible_conv1x1_weight(*self.factors())[0]

    def weight_inverse(self) -> Tensor:
        return invertible_conv1x1_weight(*self.factors(), inverse=True)[0]

    def logabsdet(self) -> Tensor:
        """The log-determinant of the weight (at one pixel), nats, a scalar."""
        return self.log_diagonal.to(torch.promote_types(self.log_diagonal.dtype, torch.float32)).sum()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, inverse=True)

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        features_of(x, self.features, image=True)
        with _without_autocast(x):
            kept = self._matrix(inverse)
            if kept is None:
                y, logabsdet = invertible_conv1x1(x, *self.factors(), inverse=inverse)
            else:
                y, logabsdet = multiply_channels(x, *kept)
            return y.to(torch.promote_types(x.dtype, self.lower.dtype)), logabsdet

    def extra_repr(self) -> str:
        return f"channels={self.features}"


def _without_autocast(x: Tensor) -> AbstractContextManager:
    # The meta device has no autocast to turn off.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _lu_layout(features: int) -> Tensor:
    """Where in (diagonal, lower entries, upper entries) each entry of the matrix stands, [features, features]."""
    layout = torch.diag(torch.arange(features))
    rows, columns = torch.tril_indices(features, features, -1)
    layout[rows, columns] = features + torch.arange(len(rows))
    rows, columns = torch.triu_indices(features, features, 1)
    layout[rows, columns] = features + len(rows) + torch.arange(len(rows))
    return layout


def _solve(lower: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """`X` with `L U X = right`, `L` with ones on its diagonal."""
    half = solve_triangular(lower, right, upper=False, unitriangular=True)
    return solve_triangular(upper, half, upper=True)
