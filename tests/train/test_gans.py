"""GANs from the command line and in the trainer: turns, resuming, the watch, drawing, and what is refused."""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from fastgen.cli import main
from fastgen.data import Dataset, Images, load
from fastgen.models import GAN
from fastgen.train import AdversarialRecipe, Checkpoint, Settings, Trainer, TrainingDiverged, TrainingInterrupted
from fastgen.train.adversarial import energy_distance
from fastgen.train.settings import recipe_of
from tests.command_errors import fails
from tests.models.adversarial_cases import make

SMALL = ["--epochs", "2", "--batch-size", "16", "--device", "cpu", "--quiet", "--set", "latent_size=4"]
MODELS = {
    "gan": ["--hidden-features", "8"],
    "dcgan": ["--channels", "4", "--set", "stages=1", "--class-conditional", "--set", "augment=translation"],
    "wgan-gp": ["--channels", "4", "--set", "stages=1", "--set", "discriminator_steps=2"],
    "stylegan2": ["--channels", "4", "--set", "style_size=6", "--set", "mapping_layers=1"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """8x8 images of 4 levels whose rows rise; the label is the level they start from."""
    path = tmp_path_factory.mktemp("data") / "rising.npz"
    images = np.random.default_rng(0).integers(0, 2, (60, 8, 8)).cumsum(2).clip(max=3)
    np.savez(path, images=images, labels=images[:, 0, 0], levels=4)
    return str(path)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, options in MODELS.items():
        assert main(["train", name, "--data", data, "--out", str(folder / name), *SMALL, *options]) == 0
    assert main(["train", "gan", "--data", "two-moons", "--size", "300", "--out", str(folder / "moons"), *SMALL]) == 0
    return folder


@pytest.mark.parametrize("name", [*MODELS, "moons"])
def test_train_writes_what_others_write(runs, name):
    metrics = json.loads((runs / name / "metrics.json").read_text())
    told = {"train_discriminator", "train_generator", "train_lead", "validation_energy", "validation_modes"}
    assert told <= set(metrics["history"][0])
    assert metrics["final"]["validation_energy"] == metrics["best"]["validation_energy"]
    assert Image.open(runs / name / "samples.png").size[0] > 8 * 48
    assert set(Checkpoint.load(runs / name / "last").optimizers) == {"discriminator", "generator"}


def test_each_family_has_its_recipe():
    recipes = {name: recipe_of(make(name)) for name in ("gan", "dcgan", "wgan-gp", "stylegan2")}
    assert recipes == {
        "gan": AdversarialRecipe(lr=2e-4, betas=(0.5, 0.999)),
        "dcgan": AdversarialRecipe(lr=2e-4, betas=(0.5, 0.999)),
        "wgan-gp": AdversarialRecipe(lr=1e-4, betas=(0.0, 0.9)),
        "stylegan2": AdversarialRecipe(lr=2e-3, betas=(0.0, 0.99)),
    }


def trainer(data, out, recipe, family="gan", **settings):
    torch.manual_seed(0)
    options = {"gan": {"r1": 0.5, "regularize_every": 3}}.get(family, {})
    model = make(family, levels=4, **options)
    settings = Settings(**{"epochs": 3, "batch_size": 8, "warmup": 2, "save_every": 4, **settings})
    accelerator = Accelerator(cpu=True)
    return Trainer(model, load(data), out, recipe=recipe, settings=settings, accelerator=accelerator, quiet=True)


class Stopping(AdversarialRecipe):
    """Interrupts itself in the middle of step 9."""

    def step(self, step, batch, networks, optimizers, accelerator):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(step, batch, networks, optimizers, accelerator)


@pytest.mark.parametrize("family", ["gan", "dcgan", "wgan-gp", "stylegan2", "gan-spectral"])
def test_interrupted_and_resumed_equals_unbroken(data, tmp_path, family):
    trainer(data, tmp_path / "unbroken", AdversarialRecipe(), family).fit()
    with pytest.raises(TrainingInterrupted):
        trainer(data, tmp_path / "broken", Stopping(), family).fit()
    assert Checkpoint.load(tmp_path / "broken" / "last").state["step"] == 10
    trainer(data, tmp_path / "broken", AdversarialRecipe(), family).fit(resume=True)
    one, other = (Checkpoint.load(tmp_path / name / "last") for name in ("unbroken", "broken"))
    assert one.state["history"] == other.state["history"]
    for kind in ("model", "ema"):
        mine, theirs = getattr(one, kind), getattr(other, kind)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name, state in one.optimizers.items():
        for index, values in state["state"].items():
            for key, value in values.items():
                assert torch.equal(value, other.optimizers[name]["state"][index][key])


class Counting(AdversarialRecipe):
    """Notes what each step tells."""

    def __post_init__(self):
        super().__post_init__()
        self.told = []

    def step(self, *arguments):
        told = super().step(*arguments)
        self.told.append(set(told))
        return told


def test_turns_and_lazy_penalties(data, tmp_path):
    recipe = Counting()
    turns = trainer(data, tmp_path, recipe, epochs=2)
    turns.model.discriminator_steps = 3
    history = turns.fit()["history"]
    assert [step for step, told in enumerate(recipe.told) if "generator" in told] == [2, 5, 8, 11]
    assert [step for step, told in enumerate(recipe.told) if "r1" in told] == [0, 3, 6, 9]
    assert all("discriminator" in told for told in recipe.told)
    # Means are over the steps that had them: of 6 steps in an epoch, 2 each.
    assert 0.5 < history[0]["train_generator"] < 1


def test_generator_does_not_move_in_the_turns_of_the_discriminator(data, tmp_path):
    turns = trainer(data, tmp_path, AdversarialRecipe(), epochs=1)
    turns.model.discriminator_steps = 100
    before = {name: value.clone() for name, value in turns.model.generator.state_dict().items()}
    discriminator = {name: value.clone() for name, value in turns.model.discriminator.state_dict().items()}
    turns.fit()
    assert all(torch.equal(value, before[name]) for name, value in turns.model.generator.state_dict().items())
    after = turns.model.discriminator.state_dict()
    assert all(not torch.equal(value, discriminator[name]) for name, value in after.items())


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_a_loss_that_is_nan_stops_at_that_step(data, tmp_path, player):
    class Broken(AdversarialRecipe):
        def step(self, step, batch, networks, optimizers, accelerator):
            if step == 9:
                next(getattr(broken.model, player).parameters()).data.fill_(math.nan)
            return super().step(step, batch, networks, optimizers, accelerator)

    broken = trainer(data, tmp_path, Broken())
    with pytest.raises(TrainingDiverged, match=r"train \w+ is nan after step 10: .* checkpoint is .*last"):
        broken.fit()
    checkpoint = Checkpoint.load(tmp_path / "last")
    assert checkpoint.state["step"] == 8
    assert all(tensor.isfinite().all() for tensor in (*checkpoint.model.values(), *checkpoint.ema.values()))


def collapsed_dataset():
    """Four classes far apart."""
    labels = torch.arange(200) % 4
    images = (labels.view(-1, 1, 1, 1) * torch.ones(200, 1, 8, 8, dtype=torch.long)).to(torch.uint8)
    return Dataset("four", *Images(images, 4, labels, 4).split(0.2))


class Dead(torch.nn.Module):
    """A generator of one image, whatever the noise."""

    def __init__(self):
        super().__init__()
        self.image = torch.nn.Parameter(torch.zeros(1, 1, 8, 8))

    def forward(self, z, labels=None):
        return (self.image - 1).clamp(-1, 1).expand(len(z), -1, -1, -1)


def test_collapse_and_a_discriminator_that_always_wins_are_warned_of_once(tmp_path, capsys):
    model = GAN(8, 1, 4, dropout=0.0, hidden_features=32, generator=Dead())
    recipe = AdversarialRecipe(lr=1e-9, discriminator_lr=5e-3)
    settings = Settings(epochs=8, batch_size=16, warmup=0)
    history = Trainer(model, collapsed_dataset(), tmp_path, recipe=recipe, settings=settings, quiet=True).fit()[
        "history"
    ]
    assert history[-1]["validation_modes"] == 1 and history[-1]["validation_modes_total"] == 4
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastgen: warning: ")]
    assert sum("samples reach 1 of 4 modes" in line for line in warnings) in (1, 2)
    assert all("collapsed" in line or "lead" in line for line in warnings)


def test_concerns():
    recipe, model = AdversarialRecipe(), make("gan")

    def record(modes, lead):
        return {"validation_modes": modes, "validation_modes_total": 10.0, "train_lead": lead}

    good = [record(9.0, 0.7)] * 6
    assert recipe.concerns(model, good) == []
    (collapse,) = recipe.concerns(model, [*good, record(4.0, 0.7)])
    assert "samples reach 4 of 10 modes" in collapse
    (won,) = recipe.concerns(model, [*good, *[record(9.0, 0.995)] * 3])
    assert "the discriminator's lead is 0.995 of 1" in won
    assert recipe.concerns(make("wgan-gp"), [*good, *[record(9.0, 0.995)] * 3]) == []
    assert recipe.concerns(model, [record(1.0, 1.0)] * 3) == []


def test_energy_distance():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2000, 3, generator=generator) for _ in range(2))
    assert abs(energy_distance(x, y)) < 0.01
    # Of points at 0 and at 1, in units of 1: 2 * 1 - 0 - 0.
    split = torch.tensor([[0.0], [2.0]])
    assert energy_distance(split, split + 10) == pytest.approx(2 * 10 - 2 - 2)
    assert energy_distance(x, y + 1) > energy_distance(x, y + 0.5) > 0.05
    assert energy_distance(x, 2 * y) > 0.05


@pytest.mark.parametrize("name", MODELS)
def test_sample(runs, run, name):
    status, output, _ = run("sample", runs / name, "-n", 3, "--truncation", 0.5, "--out", "x.npy")
    assert status == 0 and "3 images in x.npy" in output
    images = np.load("x.npy")
    assert images.shape == (3, 1, 8, 8) and images.dtype == np.uint8 and images.max() <= 3


def test_vectors_are_drawn_without_a_density(runs, run):
    assert run("sample", runs / "moons", "-n", 50, "--out", "x.csv")[0] == 0
    assert len(Path("x.csv").read_text().splitlines()) == 51
    assert run("sample", runs / "moons", "-n", 50, "--out", "x.png")[0] == 0
    width, height = Image.open("x.png").size
    # Data and samples, side by side.
    assert 1.5 < width / height < 2.5


def test_evaluate(runs, run):
    status, output, _ = run("evaluate", runs / "gan", "--json", "--metrics", "none")
    scores = json.loads(output)
    assert status == 0 and {"energy", "modes", "modes_total", "mode_kl", "lead"} <= set(scores)
    assert np.isfinite([v for v in scores.values() if isinstance(v, float)]).all()


def test_what_is_refused(runs, run, data):
    gan = runs / "gan"
    assert fails(run("sample", gan, "--temperature", 1), "--temperature is for flows and VAEs, this one is a GAN")
    assert fails(run("sample", gan, "--steps", 3), "--steps is for diffusion models and chains, this one is a GAN")
    assert fails(run("sample", gan, "--compare"), "this one is a GAN")
    assert fails(run("sample", gan, "--truncation", 0), "truncation: expected a positive number or None, got 0")
    assert fails(run("sample", gan, "--label", 1), "not trained with --class-conditional")
    assert fails(run("sample", runs / "dcgan", "--label", 9), "labels: expected classes 0 to")
    assert fails(run("train", "dcgan", "--data", "two-moons"), "dcgan learns images, two-moons holds vectors")
    assert fails(run("train", "gan", "--data", data, "--set", "loss=hings"), "loss: expected one of minimax")
    assert fails(run("train", "gan", "--data", data, "--discriminator-lr", -1), "discriminator_lr is -1.0, expected")
    assert fails(run("train", "--resume", gan, "--set", "r1=3"), "model.config.r1 is 0.0, this run's is 3")
