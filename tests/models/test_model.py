"""A model records how it was made, takes the arguments of the classes above it, and declares how it is trained."""

import copy
import inspect
import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from fastgen.models import DDPM, MAF, MODELS, VQVAE, WGANGP, Autoencoder, ConditionalVAE, Flow, RealNVP, StyleGAN2
from fastgen.models.model import Model, declared
from fastgen.train.settings import Settings, recipe_class

TINY = {"channels": 8, "channel_multipliers": (1, 2), "layers": 1, "attention_levels": (), "groups": 4}


def defaults(kind):
    return {name: p.default for name, p in inspect.signature(kind).parameters.items()}


def test_a_signature_has_the_arguments_of_the_class_above():
    wgan = defaults(WGANGP)
    assert wgan["latent_size"] == 128 and wgan["loss"] == "wasserstein"
    assert wgan["channels"] == 128 and wgan["image_size"] == 64 and wgan["r1"] == 0.0
    assert defaults(StyleGAN2)["r1"] == 10.0
    assert defaults(ConditionalVAE)["num_classes"] is inspect.Parameter.empty
    assert all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in inspect.signature(DDPM).parameters.values())


def test_arguments_that_a_class_does_without_are_refused():
    assert "network" not in defaults(VQVAE)
    for wrong in ({"network": "dense"}, {"num_classes": 3}, {"chanels": 8}):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(wrong))}'"):
            VQVAE(8, **wrong)
    with pytest.raises(TypeError, match="missing a required argument: 'num_classes'"):
        ConditionalVAE(8)


def test_config_has_what_was_given_and_the_defaults():
    model = Autoencoder((4, 6), 1, np.int64(5), channels=8, encoder=nn.Flatten())
    assert model.config["image_size"] == [4, 6] and model.config["levels"] == 5
    assert model.config["dropout"] == 0.0 and "encoder" not in model.config
    assert MAF(2, mean=torch.tensor([1.0, 2.0]), std=np.ones(2)).config["mean"] == [1.0, 2.0]
    assert Flow(RealNVP(3, transforms=1).transform, (3,)).config is None
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(RealNVP(2, transforms=1)))):
        assert type(other).from_config(other.config).config == other.config


class Small(DDPM):
    """A model of a person: what it is made of is its own arguments, not those that it hands up."""

    def __init__(self, steps, *, levels=5):
        super().__init__(4, 1, levels, num_train_timesteps=steps, **TINY)


def test_a_class_with_arguments_of_its_own():
    model = Small(7)
    assert model.config == {"steps": 7, "levels": 5}
    assert len(Small.from_config(model.config).betas) == 7
    assert model.sample(2, steps=2).shape == (2, 1, 4, 4)


def test_what_has_no_effect_is_refused_to_people_and_let_pass_from_files():
    config = {**MODELS["gan"](4).config, "regularize_every": 4}
    with pytest.raises(ValueError, match="regularize_every: has no effect"):
        MODELS["gan"](**config)
    assert MODELS["gan"].from_config(config).regularize_every == 4
    with pytest.raises(ValueError, match="regularize_every: has no effect"):
        MODELS["gan"](**config)


class Coin(nn.Module):
    """A density that declares nothing."""

    def log_prob(self, x, labels=None):
        return torch.full((len(x),), -8 * np.log(2))


def test_a_module_that_declares_nothing_is_a_density():
    coin, x = Coin(), torch.zeros(3, 1, 2, 4)
    assert declared(coin, "validation_score") == "bits_per_dim" and not declared(coin, "players")
    for scores in ("validation_scores", "test_scores"):
        found = declared(coin, scores)(x, None, torch.Generator())
        torch.testing.assert_close(found, {"bits_per_dim": torch.ones(3)}, check_dtype=False)
    torch.testing.assert_close(
        declared(coin, "training_scores")(torch.tensor(8 * np.log(2)), x)["bits_per_dim"].item(), 1.0
    )
    assert declared(coin, "end_epoch")(x) is None


@pytest.mark.parametrize("name", MODELS)
def test_presets_are_of_known_arguments(name):
    kind = MODELS[name]
    assert issubclass(kind, Model) and kind.presets
    known = {field.name for what in (Settings, recipe_class(kind)) for field in fields(what)} | defaults(kind).keys()
    for preset in kind.presets.values():
        assert preset.keys() <= known
    assert kind.recipe.keys() <= {field.name for field in fields(recipe_class(kind))}
