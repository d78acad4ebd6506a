"""Every option of every constructor does something, or is refused."""

import inspect
import re

import pytest
import torch

from fastgen.models import (
    DCGAN,
    DDPM,
    GAN,
    Autoencoder,
    Diffusion,
    DiffusionProbabilisticModel,
    Glow,
    RealNVP,
    ScoreSDE,
    StyleGAN2,
    UNet,
)
from fastgen.models.variational_bound import BoundedByVariation
from fastgen.nn import (
    AffineCoupling,
    MaskedAffineCoupling,
    MaskedAutoregressive,
    NormModulate,
    VectorQuantizer,
    checkerboard_mask,
)
from tests.models import every_model
from tests.nn.every_layer import LAYERS, numbers

# What is the same in numbers by design: how fast, in how much memory, where.
ONLY_SPEED = {"reversible", "using_cache", "device", "dtype", "freeze"}
# Made by others, or for data of another layout.
NOT_OPTIONS = {
    *("mask", "transform_net_create_fn", "conv", "permutation", "unconditional_transform", "options", "feature_dim")
}
# By name: values to try, the first that is another than the one there is.
OTHERS = {
    "act": ["sigmoid"],
    "activation": [torch.tanh],
    "alpha": [0.4],
    "attention_levels": [(1,), ()],
    "augment": ["translation", "contrast"],
    "beta_schedule": ["cosine", "linear"],
    "channel_multipliers": [(1, 3)],
    "clamp": [0.1],
    "context_features": [5],
    "corruption": ["masking", "gaussian"],
    "coupling": ["additive", "affine"],
    "discriminator_norm": ["batch", None],
    "first_kernel_size": [3, 5],
    "gain": [3.0],
    "group_size": [1],
    "head_channels": [2],
    "likelihood": ["bernoulli", "gaussian"],
    "linear": ["lu", None],
    "loss": ["hinge", "least_squares"],
    "kernel_size": [5],
    "mask_type": ["A"],
    "max_channels": [4],
    "network": ["dense", "convolutional"],
    "norm": ["instance"],
    "num_classes": [7],
    "num_groups": [4],
    "order": [[3, 0, 2, 1]],
    "output": ["tanh", "linear"],
    "padding": [0],
    "prediction_type": ["v_prediction", "epsilon"],
    "restart_below": [0.0, 0.2],
    "scale_map": ["exp", "tanh"],
    "scales": [1, 2],
    "sde": ["subvp", "vp"],
    "sigma": [0.7],
    "stages": [2, 1],
    "tails": ["circular"],
    "taps": [(1.0, 2.0, 1.0)],
    "times": ["logit_normal", "uniform"],
    "variance_type": ["fixed_large"],
    "weight": [torch.eye(4)],
    "weighting": ["min_snr", "simple"],
}


def other(name, value):
    """Another value of an option; None where there is none to try."""
    if isinstance(value, bool):
        return not value
    if name in OTHERS:
        return next(other for other in OTHERS[name] if isinstance(other, torch.Tensor) or other != value)
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
        changed = made_or_refused(layer.make, option, value)
        if changed is None or shapes(changed) != shapes(layer.make()):
            continue
        try:
            found = said(moved(changed), inputs)
        except (ValueError, TypeError) as error:
            # Refused when it is used, or of another shape than this input.
            assert re.match(rf"x|context|y|{option}", str(error)), (option, error)
            continue
        except RuntimeError as error:
            assert "size of tensor" in str(error), (option, error)
            continue
        assert differs(found, usual), option


def made_or_refused(make, option, value):
    """The module with this option; None where it is refused, which has to name the option."""
    torch.manual_seed(1)
    try:
        return make(**{option: value})
    except (ValueError, TypeError) as error:
        assert re.search(rf"\b{option}", str(error)), (option, error)
        return None


def shapes(module):
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


# What the trainer reads; of other data; and where other numbers of the same kind are taken as they are.
OF_THE_TRAINER, OF_DATA = {"discriminator_steps"}, {"image_size", "image_channels", "levels", "features"}


@pytest.mark.parametrize("name", every_model.CONFIGURED)
def test_every_option_of_a_model_does_something(name):
    kind, arguments = every_model.CONFIGURED[name]

    def make(**changed):
        return kind(**{**arguments, **changed})

    torch.manual_seed(1)
    usual = answers(make())
    for option, parameter in inspect.signature(kind).parameters.items():
        if option in ONLY_SPEED | OF_THE_TRAINER | OF_DATA:
            continue
        value = other(option, arguments.get(option, parameter.default))
        if value is None or (option == "likelihood" and "sigma" in arguments):
            continue
        changed = made_or_refused(make, option, value)
        if changed is None or shapes(changed) != shapes(make()):
            continue
        assert differs(answers(changed), usual), option


def answers(model):
    """All that a model says of data and draws, in training and out of it, by every sampler that it has."""
    moved(model)
    x, labels = every_model.data_for(model, 8)
    if isinstance(model, Autoencoder):
        model.fit_latents(x)
    found = [*model.state_dict().values()]
    for training in (True, False):
        for player in model.players or [None]:
            torch.manual_seed(2)
            given = {} if player is None else {"player": player}
            found.append(model.train(training).loss(x, labels, **given).detach())
    found += [tensor.detach().clone() for tensor in model.state_dict().values()]
    generator = torch.Generator().manual_seed(3)
    found += model.validation_scores(x, labels, generator).values()
    if isinstance(model, BoundedByVariation):
        found.append(model.log_prob_bound(x, labels, timesteps=4, generator=generator))
    torch.manual_seed(4)
    if not isinstance(model, Diffusion):
        return [*found, every_model.draw(model, 8, labels)]
    # Adaptive steps take long, and their options are the other samplers' too.
    for sampler in (name for name in model.samplers if name != "ode"):
        steps = model.config["num_train_timesteps"] if sampler == "ancestral" else 3
        found.append(model.sample(8, labels=labels, sampler=sampler, steps=steps, generator=generator))
    return found


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
        (lambda: GAN(8, regularize_every=4), "regularize_every"),
        (lambda: DCGAN(8, channels=4, discriminator_norm=None), "discriminator_norm"),
        (lambda: DDPM(8, beta_schedule="cosine", beta_end=0.1), "beta_end"),
        (lambda: DDPM(8, label_dropout=0.2), "label_dropout"),
        (lambda: ScoreSDE(8, sde="vp", sigma_max=20.0), "sigma_max"),
        (lambda: DiffusionProbabilisticModel(8, variance_type="fixed_large"), "variance_type"),
        (lambda: DCGAN(8, channels=4, regularize_every=4), "regularize_every"),
        (lambda: Autoencoder(8, layers=0, dropout=0.2), "dropout"),
        (lambda: Autoencoder(8, layers=0, channels=8), "channels"),
        (lambda: UNet(1, attention_levels=(), middle_attention=False, head_channels=4), "head_channels"),
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
