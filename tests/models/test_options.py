"""Every option of every constructor does something, or is refused."""

import inspect

import pytest
import torch

from fastgen.models import DCGAN, GAN, Glow, RealNVP, StyleGAN2
from fastgen.nn import (
    AffineCoupling,
    MaskedAffineCoupling,
    MaskedAutoregressive,
    NormModulate,
    VectorQuantizer,
    checkerboard_mask,
)
from tests.nn.every_layer import LAYERS, numbers

# What is the same in numbers by design: how fast, in how much memory, where.
ONLY_SPEED = {"reversible", "using_cache", "device", "dtype", "freeze"}
# Made by others, or for data of another layout.
NOT_OPTIONS = {
    *("mask", "transform_net_create_fn", "conv", "permutation", "unconditional_transform", "options", "feature_dim")
}
OTHERS = {
    "act": "sigmoid",
    "activation": torch.tanh,
    "alpha": 0.4,
    "clamp": 0.1,
    "context_features": 5,
    "gain": 3.0,
    "group_size": 1,
    "head_channels": 2,
    "mask_type": "A",
    "norm": "instance",
    "num_classes": 7,
    "num_groups": 4,
    "order": [3, 0, 2, 1],
    "padding": 0,
    "restart_below": 0.0,
    "scale_map": "exp",
    "tails": "circular",
    "taps": (1.0, 2.0, 1.0),
    "weight": torch.eye(4),
}


def other(name, value):
    """Another value of an option; None where there is none to try."""
    if isinstance(value, bool):
        return not value
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, int):
        return 2 * value if value else 1
    return value / 2 if isinstance(value, float) and value else 0.25 if isinstance(value, float) else None


def said(module, inputs):
    """All that a layer says and learns, in training and out of it."""
    found = [*module.state_dict().values()]
    # The second step of training is where averages begin to move.
    for training in (True, True, False):
        torch.manual_seed(2)
        result = numbers(module.train(training)(*inputs))
        found += [*result, *(b.clone() for b in module.buffers())]
    return found


def differs(first, second):
    if len(first) != len(second):
        return True
    return any(
        a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if isinstance(layer.kind, type)])
def test_every_option_of_a_layer_does_something(name):
    layer, inputs = LAYERS[name], LAYERS[name].inputs()
    # Away from where weights start: at zero much has no effect yet.
    torch.manual_seed(1)
    usual = said(moved(layer.make()), inputs)
    for option, parameter in inspect.signature(layer.kind).parameters.items():
        if option in ONLY_SPEED | NOT_OPTIONS:
            continue
        value = other(option, layer.arguments.get(option, parameter.default))
        if value is None:
            continue
        torch.manual_seed(1)
        try:
            found = said(moved(layer.make(**{option: value})), inputs)
        except (ValueError, TypeError, RuntimeError, AssertionError):
            # Refused, or of another shape than this input.
            continue
        assert differs(found, usual), option


def moved(module):
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: RealNVP(3, channels=32), "channels"),
        (lambda: RealNVP(3, scales=3), "scales"),
        (lambda: RealNVP(3, alpha=0.1), "alpha"),
        (lambda: RealNVP(3, levels=5), "levels"),
        (lambda: RealNVP(image_size=4, transforms=3), "transforms"),
        (lambda: RealNVP(image_size=4, hidden_features=8), "hidden_features"),
        (lambda: RealNVP(image_size=4, mean=[1.0], std=[1.0]), "mean"),
        (lambda: GAN(features=2, levels=5), "levels"),
        (lambda: GAN(features=2, image_channels=3), "image_channels"),
        (lambda: GAN(8, mean=[0.0], std=[1.0]), "mean"),
        (lambda: Glow(image_size=4, scales=1, steps=1, channels=4, num_bins=4), "num_bins"),
        (lambda: DCGAN(8, channels=4, augment_probability=0.5), "augment_probability"),
        (lambda: DCGAN(8, channels=4, augment_target=0.5), "augment_target"),
        (lambda: StyleGAN2(8, channels=4, path_length=0.0, path_length_every=2), "path_length_every"),
        (lambda: VectorQuantizer(3, 4, decay=None, restart_below=0.2), "restart_below"),
        (lambda: NormModulate(4, "instance", momentum=0.2), "momentum"),
        (lambda: MaskedAutoregressive(3, (4,), num_blocks=1), "hidden_features"),
        (lambda: AffineCoupling([0, 1], torch.nn.Linear, bound=3.0), "bound"),
        (lambda: AffineCoupling([0, 1], torch.nn.Linear, scale_map="exp", min_scale=0.1), "min_scale"),
        (lambda: MaskedAffineCoupling(checkerboard_mask(1, 2, 2), torch.nn.Conv2d, min_scale=0.1), "min_scale"),
        (lambda: MaskedAutoregressive(3, 4, bound=1.0), "bound"),
        (lambda: MaskedAutoregressive(3, 4, scale_map="exp", min_scale=0.1), "min_scale"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused(make, option):
    with pytest.raises(ValueError, match=f"{option}: "):
        make()
