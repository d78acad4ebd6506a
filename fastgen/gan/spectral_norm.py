"""Weights of norm one: what keeps a discriminator from growing steep."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fastgen.nn.equalized import EqualizedConv2d, EqualizedLinear
from fastgen.nn.parametrized import picklable


def normalize_spectrally(network: nn.Module) -> None:
    """Divides every weight matrix of a network by its largest singular value.

    Of linear layers, convolutions of any number of dimensions, transposed ones too, embeddings, attention, and layers
    with an equalised learning rate, whose weight has norm one where it is used, behind its scale.

    Raises:
        ValueError: a network without weights, or with recurrent layers, which read theirs past any parametrisation.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks" (2018), section 2.1.
    """
    found = [
        (module, name)
        for module in network.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() > 1 and "weight" in name
    ]
    if not found:
        raise ValueError(f"spectral_norm: expected a network with weights, got {type(network).__name__} without any")
    for module, name in found:
        if isinstance(module, nn.RNNBase):
            raise ValueError(f"spectral_norm: expected no recurrent layers, got {type(module).__name__}")
        parametrizations.spectral_norm(module, name)
        if isinstance(module, EqualizedLinear | EqualizedConv2d):
            parametrize.register_parametrization(module, name, Unscaled(module.scale))
        picklable(module)


class Unscaled(nn.Module):
    """Divides a weight by what its layer will multiply it by."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight / self.scale
