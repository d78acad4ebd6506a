"""Weights of norm one: what keeps a discriminator from growing steep."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrizations


def normalize_spectrally(network: nn.Module) -> None:
    """Divides the weight of every linear layer, convolution and embedding by its largest singular value.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks" (2018), section 2.1.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            parametrizations.spectral_norm(module)
