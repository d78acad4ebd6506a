"""The smallest flow of vectors: a linear map to noise, so that the density is a normal one, known in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgen.models.flow import Flow
from fastgen.models.preprocessing import Standardize


class Triangular(nn.Module):
    """`y = L x + b` with a lower triangular `L`, with dropout on `b` and a buffer that counts training calls."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.below = nn.Parameter(torch.zeros(features, features))
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("calls", torch.zeros(()))

    def matrix(self) -> Tensor:
        return self.below.tril(-1) + self.log_diagonal.exp().diag()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training:
            self.calls += 1
        return x @ self.matrix().T + self.dropout(self.shift), self.log_diagonal.sum().expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.linalg.solve_triangular(self.matrix(), (y - self.shift).T, upper=False).T
        return x, -self.log_diagonal.sum().expand(len(y))


class GaussianFlow(Flow):
    """A normal density, as a flow."""

    def __init__(self, features: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(
            Triangular(features),
            (features,),
            preprocess=Standardize(features, mean, std),
        )


class NoisyImages(Flow):
    """Images of integer levels, each pixel normal around the middle of the range: what noise does to a score."""

    def __init__(self, image_size: int = 4, levels: int = 4) -> None:
        super().__init__(
            Flattened(image_size**2),
            (1, image_size, image_size),
            levels=levels,
        )


class Flattened(Triangular):
    """The same of images, flattened."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(x.flatten(1), context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, logabsdet = super().inverse(y, context)
        side = int(y.shape[1] ** 0.5)
        return x.view(-1, 1, side, side), logabsdet
