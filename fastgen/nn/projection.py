"""A discriminator's last layer, with its classes by projection."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers


class ProjectionHead(nn.Module):
    """`v = w . h + b`, and with classes `v = w . h + b + e_y . h`, of features h.

    Args:
        features: of `h`.
        num_classes: labels are 0 to `num_classes - 1`; None without classes.

    Shape: [batch, features] and labels [batch] to [batch].

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
