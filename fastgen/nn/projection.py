"""A discriminator's last layer, with its classes by projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """`v = w . h + b`, and with classes `v = w . h + b + e_y . h`, of features h.

    Args:
        features: of `h`.
        num_classes: labels are 0 to `num_classes - 1`; None without classes.

    Shape: [batch, features] and labels [batch] to [batch].

    Source: Miyato and Koyama, "cGANs with Projection Discriminator" (2018), equation 5.
    """

    def __init__(self, features: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, features)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is None:
            return self.linear(h).squeeze(1)
        # One sum over the features for both terms.
        return ((self.embedding(labels) + self.linear.weight) * h).sum(1) + self.linear.bias


def one_hot(z: Tensor, labels: Tensor | None, num_classes: int | None) -> Tensor:
    """Noise [batch, k] with the class behind it as [batch, num_classes] zeros and a one, where there are classes."""
    if num_classes is None:
        return z
    return torch.cat([z, F.one_hot(labels.long(), num_classes).to(z.dtype)], 1)
