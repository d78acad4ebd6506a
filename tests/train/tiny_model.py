"""A small model with the contract of `fastgen.models`: each pixel depends on the sums of the pixels before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TinyModel(nn.Module):
    """Pixel `i`'s logits are a small network of the `i` pixels before it, with dropout and a buffer."""

    def __init__(self, levels: int = 4, pixels: int = 16, hidden: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"levels": levels, "pixels": pixels, "hidden": hidden, "dropout": dropout}
        self.levels, self.pixels = levels, pixels
        self.register_buffer("steps", torch.zeros(()))
        self.before = nn.Linear(pixels, pixels * hidden)
        self.logits = nn.Linear(hidden, levels)
        self.dropout = nn.Dropout(dropout)
        mask = torch.tril(torch.ones(pixels, pixels), -1).repeat_interleave(hidden, 0)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.before.weight * self.mask, self.before.bias)
        return self.logits(self.dropout(torch.tanh(hidden.unflatten(1, (self.pixels, -1)))))

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        logits = self(flat.float() / self.levels)
        return -F.cross_entropy(logits.flatten(0, 1), flat.flatten().long(), reduction="none").view_as(flat).sum(1)

    def loss(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.training:
            self.steps += 1
        return -self.log_prob(x, labels).mean()

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        x = torch.zeros(n, self.pixels)
        for pixel in range(self.pixels):
            probabilities = self(x / self.levels)[:, pixel].softmax(-1)
            x[:, pixel] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        side = int(self.pixels**0.5)
        return x.view(n, 1, side, side).long()
