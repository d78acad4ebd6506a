"""Layers of adversarial networks: maxout, pixel normalisation, minibatch statistics, classes by projection."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers, positive
from fastgen.ops.minibatch_stddev import minibatch_stddev
from fastgen.ops.pixel_norm import pixel_norm


class Maxout(nn.Module):
    """`max_p (W_p x + b_p)`: each unit the largest of several linear ones.

    Args:
        in_features: of the input.
        out_features: units.
        pieces: linear functions of each unit.

    Shape: [..., in_features] to [..., out_features].

    Raises:
        ValueError: sizes that are not positive ints.

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


class MinibatchStdDev(nn.Module):
    """Append the mean standard deviation over groups of samples as constant channels.

    Args:
        group_size: neighbouring samples that make a group, at most the batch; None is the batch.
        num_channels: appended.

    Shape: [batch, channels, height, width] to [batch, channels + num_channels, height, width].

    Raises:
        ValueError, TypeError: what `fastgen.ops.minibatch_stddev` raises, at the first call.

    Source: Karras et al., "Progressive Growing of GANs" (2018), section 3.
    """

    @plain_numbers
    def __init__(self, group_size: int | None = 4, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x: Tensor) -> Tensor:
        return minibatch_stddev(x, self.group_size, self.num_channels)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"


class PixelNorm(nn.Module):
    """`x / sqrt(mean(x^2, dim) + eps)`: unit mean square over the channels of each pixel.

    Args:
        dim: the dimension of the channels.
        eps: added to the mean square.

    Shape: any with that dimension; the result has the same.

    Raises:
        ValueError, TypeError: what `fastgen.ops.pixel_norm` raises, at the first call.

    Source: Karras et al., "Progressive Growing of GANs" (2018), section 4.2.
    """

    @plain_numbers
    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(x, self.dim, self.eps)


class ProjectionHead(nn.Module):
    """`v = w . h + b`, and with classes `v = w . h + b + e_y . h`, of features h.

    Args:
        features: of `h`.
        num_classes: labels are 0 to `num_classes - 1`; None without classes.

    Shape: [batch, features] and labels [batch], int64, to [batch].

    Raises:
        IndexError: in `forward` on a CPU, labels out of range.

    Source: Miyato and Koyama, "cGANs with Projection Discriminator" (2018), equation 5.
    """

    @plain_numbers
    def __init__(self, features: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, features)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is None:
            return self.linear(h).squeeze(1)
        # One sum over the features for both terms.
        return ((self.embedding(labels) + self.linear.weight) * h).sum(1) + self.linear.bias
