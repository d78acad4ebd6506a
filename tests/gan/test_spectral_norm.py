"""Spectral normalisation reaches every weight of a network, or says which it cannot."""

import pytest
import torch
from torch import nn

from fastgen.gan import normalize_spectrally
from fastgen.models import StyleGAN2
from fastgen.nn import EqualizedConv2d, EqualizedLinear, Maxout, ModulatedConv2d

# Every kind of weight, with what is called to see it in use.
LAYERS = {
    "linear": lambda: nn.Linear(4, 3),
    "bilinear": lambda: nn.Bilinear(4, 5, 3),
    "maxout": lambda: Maxout(4, 3),
    "embedding": lambda: nn.Embedding(5, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    **{f"conv{n}d": lambda n=n: getattr(nn, f"Conv{n}d")(4, 3, 3) for n in (1, 2, 3)},
    **{f"transposed{n}d": lambda n=n: getattr(nn, f"ConvTranspose{n}d")(4, 3, 3) for n in (1, 2, 3)},
    "equalized linear": lambda: EqualizedLinear(4, 3, lr_multiplier=0.01),
    "equalized conv": lambda: EqualizedConv2d(4, 3),
    "modulated": lambda: ModulatedConv2d(4, 3, 3),
}


def weights_in_use(network):
    """Each weight of a network as the matrix that its layer applies, outputs by what an output sees."""
    for module in network.modules():
        for name in getattr(module, "parametrizations", {}):
            weight = getattr(module, name)
            if isinstance(module, EqualizedLinear | EqualizedConv2d):
                weight = weight * module.scale
            yield (weight.transpose(0, 1) if getattr(module, "transposed", False) else weight).flatten(1)


@pytest.mark.parametrize("name", LAYERS)
def test_every_weight_in_use_has_norm_one(name):
    network = LAYERS[name]()
    normalize_spectrally(network)
    for _ in range(200):
        # One step of power iteration each.
        list(weights_in_use(network))
    norms = [torch.linalg.matrix_norm(weight, 2) for weight in weights_in_use(network.eval())]
    assert norms
    torch.testing.assert_close(torch.stack(norms), torch.ones(len(norms)), rtol=1e-3, atol=1e-3)


def test_no_weight_of_stylegans_discriminator_is_left_out():
    model = StyleGAN2(16, 1, 17, channels=4, latent_size=6, style_size=8, mapping_layers=1, spectral_norm=True)
    matrices = [p for name, p in model.discriminator.named_parameters() if "weight" in name]
    normalised = list(weights_in_use(model.discriminator))
    assert len(normalised) == len(matrices) > 8
    # A critic of steps of norm one has, with its activations of gain sqrt(2), a slope that the weights cannot raise.
    x = torch.randn(4, 1, 16, 16)
    before = model.discriminator(x)
    with torch.no_grad():
        for parameter in matrices:
            parameter.mul_(100.0)
    torch.testing.assert_close(model.discriminator(x), before, rtol=0.2, atol=0.2)


def test_what_cannot_be_normalised_is_refused():
    with pytest.raises(ValueError, match="spectral_norm: expected a network with weights, got Flatten"):
        normalize_spectrally(nn.Flatten())
    with pytest.raises(ValueError, match="spectral_norm: expected no recurrent layers, got LSTM"):
        normalize_spectrally(nn.Sequential(nn.LSTM(3, 4)))
