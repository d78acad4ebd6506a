"""Regularisers of the two networks of a GAN: gradient penalties, path lengths and spectral normalisation.

A penalty takes the network as a function, and gives a mean over the batch without its weight. It is differentiated a
second time in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fastgen.nn.module_state import picklable
from fastgen.nn.stylegan import EqualizedConv2d, EqualizedLinear

Discriminate = Callable[[Tensor], Tensor]


def squared_gradient(discriminate: Discriminate, x: Tensor) -> tuple[Tensor, Tensor]:
    """`|grad_x D(x)|^2` of each example, [batch], and `D(x)`, [batch], both differentiable in the network's weights.

    A discriminator that looks at several examples together (batch normalisation, minibatch deviation) is taken whole:
    the gradient is that of the sum of its outputs.

    Args:
        discriminate: from examples to a number each, [batch].
        x: [batch, ...].
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        outputs = discriminate(x)
        (gradient,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1), outputs


def zero_centred_penalty(discriminate: Discriminate, x: Tensor) -> Tensor:
    """`E |grad_x D(x)|^2 / 2`: R1 at real data, R2 at generated ones.

    Args:
        discriminate: from examples to a number each, [batch].
        x: [batch, ...].

    Source: Mescheder, Geiger and Nowozin, "Which Training Methods for GANs do actually Converge?" (2018), equations 9
    and 10.
    """
    return squared_gradient(discriminate, x)[0].mean() / 2


def gradient_penalty(discriminate: Discriminate, real: Tensor, fake: Tensor) -> Tensor:
    """`E (|grad_x D(x)| - 1)^2` at points drawn uniformly from the lines between real and generated data.

    Args:
        discriminate: from examples to a number each, [batch].
        real, fake: [batch, ...], of the same shape.

    Raises:
        ValueError: the shapes differ.

    Source: Gulrajani et al., "Improved Training of Wasserstein GANs" (2017), equation 3.
    """
    if real.shape != fake.shape:
        raise ValueError(f"fake: expected the shape of real, {list(real.shape)}, got {list(fake.shape)}")
    share = torch.rand(len(real), *(1,) * (real.dim() - 1), device=real.device, dtype=real.dtype)
    squared, _ = squared_gradient(discriminate, torch.lerp(real.detach(), fake.detach(), share))
    # The root has no derivative at 0, which a dead network reaches.
    return ((squared + 1e-12).sqrt() - 1).square().mean()


def path_lengths(w: Tensor, images: Tensor) -> Tensor:
    """`|J_w^T y|` of each example, [batch], with `y` a normal image scaled so that lengths do not grow with the size.

    Args:
        w: what the images were generated from, [batch, ...], in their graph.
        images: [batch, channels, height, width].

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), equation 4 and appendix B.
    """
    noise = torch.randn_like(images) / math.sqrt(math.prod(images.shape[2:]))
    (gradient,) = torch.autograd.grad((images * noise).sum(), w, create_graph=True)
    # One w for each layer: the mean over layers of their squared lengths.
    return gradient.square().sum(-1).view(len(w), -1).mean(1).sqrt()


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
