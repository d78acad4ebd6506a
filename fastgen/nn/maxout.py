"""The activation of the first GAN's discriminator."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers, positive


class Maxout(nn.Module):
    """`max_p (W_p x + b_p)`: each unit the largest of several linear ones.

    Args:
        in_features: of the input.
        out_features: units.
        pieces: linear functions of each unit.

    Shape: [..., in_features] to [..., out_features].

    Source: Goodfellow et al., "Maxout Networks" (2013), section 3.
    """

    @plain_numbers
    def __init__(self, in_features: int, out_features: int, pieces: int = 5) -> None:
        super().__init__()
        positive(in_features=in_features, out_features=out_features, pieces=pieces)
        self.pieces = pieces
        self.linear = nn.Linear(in_features, out_features * pieces)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(-1, (-1, self.pieces)).amax(-1)
