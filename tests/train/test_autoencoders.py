"""Autoencoders from the command line: training, drawing, scoring, their latents in a picture, and what is refused."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from fastgen.cli import main
from fastgen.data import load
from fastgen.models import MODELS as MODEL_CLASSES
from fastgen.train import Checkpoint, Recipe, Settings, Trainer, TrainingDiverged, TrainingInterrupted, load_model
from tests.command_errors import fails
from tests.train.training import assert_same_numbers

SMALL = ["--channels", "8", "--layers", "1", "--epochs", "2", "--batch-size", "16", "--device", "cpu", "--quiet"]
MODELS = {
    "ae": ["--set", "components=2", "--set", "latent_size=4"],
    "dae": ["--set", "walkback=0.5", "--set", "latent_size=8"],
    "vae": ["--set", "latent_size=4", "--set", "likelihood=discretized_logistic"],
    "cvae": ["--set", "latent_size=2", "--set", "network=convolutional"],
    "vqvae": ["--set", "num_codes=8", "--set", "latent_size=4", "--set", "prior_channels=8", "--set", "prior_layers=1"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """4x4 images of 4 levels whose rows rise; the label is the level they start from."""
    path = tmp_path_factory.mktemp("data") / "rising.npz"
    images = np.random.default_rng(0).integers(0, 2, (60, 4, 4)).cumsum(2).clip(max=3)
    np.savez(path, images=images, labels=images[:, 0, 0], levels=4)
    return str(path)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Folders of finished runs by model."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in MODELS.items():
        assert main(["train", name, "--data", data, "--out", str(folder / name), *SMALL, *options]) == 0
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_train_writes_what_others_write(runs, name):
    metrics = json.loads((runs / name / "metrics.json").read_text())
    score = "loss" if name in ("ae", "dae") else "bits_per_dim"
    assert {"train_loss", f"validation_{score}"} <= set(metrics["history"][0])
    assert Image.open(runs / name / "samples.png").size[0] > 8 * 48
    model, config = load_model(runs / name)
    assert config["model"]["name"] == name and not model.training


def test_the_conditional_one_learns_the_classes_of_the_data(runs):
    assert load_model(runs / "cvae")[0].num_classes == 2


class Stopping(Recipe):
    """Interrupts itself in the middle of step 4."""

    def step(self, step, batch, networks, optimizers, accelerator):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(step, batch, networks, optimizers, accelerator)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ae", {"components": 2}),
        ("vae", {}),
        ("vqvae", {"num_codes": 8, "prior_channels": 8, "prior_layers": 1}),
    ],
)
def test_interrupted_and_resumed_equals_unbroken(data, tmp_path, name, options):
    def trainer(out, recipe):
        torch.manual_seed(0)
        model = MODEL_CLASSES[name](4, 1, 4, channels=8, layers=1, latent_size=4, **options)
        settings = Settings(epochs=3, batch_size=16, warmup=2)
        accelerator = Accelerator(cpu=True)
        return Trainer(model, load(data), out, recipe=recipe, settings=settings, accelerator=accelerator, quiet=True)

    trainer(tmp_path / "unbroken", Recipe()).fit()
    with pytest.raises(TrainingInterrupted):
        trainer(tmp_path / "broken", Stopping()).fit()
    trainer(tmp_path / "broken", Recipe()).fit(resume=True)
    assert_same_numbers(tmp_path / "unbroken", tmp_path / "broken")


@pytest.mark.parametrize("name", ["vae", "vqvae"])
def test_a_loss_that_is_nan_stops_training(data, tmp_path, name):
    class Poisoned(Recipe):
        def step(self, step, batch, networks, optimizers, accelerator):
            if step == 4:
                with torch.no_grad():
                    next(networks["model"].module.encoder.parameters()).fill_(torch.nan)
            return super().step(step, batch, networks, optimizers, accelerator)

    model = MODEL_CLASSES[name](4, 1, 4, channels=8, layers=1, latent_size=4)
    settings, accelerator = Settings(epochs=3, batch_size=16, save_every=1), Accelerator(cpu=True)
    trainer = Trainer(
        model, load(data), tmp_path, recipe=Poisoned(), settings=settings, accelerator=accelerator, quiet=True
    )
    with pytest.raises(TrainingDiverged, match=r"train loss is nan after step 5.*the last good checkpoint is"):
        trainer.fit()
    kept = Checkpoint.load(tmp_path / "last")
    assert kept.state["step"] == 4 and all(tensor.isfinite().all() for tensor in kept.model.values())


@pytest.mark.parametrize("name", MODELS)
def test_sample(runs, run, name):
    status, output, _ = run("sample", runs / name, "-n", 3, "--out", "x.npy")
    assert status == 0 and "3 images in x.npy" in output
    images = np.load("x.npy")
    assert images.shape == (3, 1, 4, 4) and images.dtype == np.uint8 and images.max() <= 3
    model, _ = load_model(runs / name)
    labels = torch.tensor([0, 1, 0]) if name == "cvae" else None
    expected = model.sample(3, labels=labels, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(images, expected.numpy())


def test_options_of_sample(runs, run):
    assert run("sample", runs / "vae", "-n", 4, "--out", "x.npy", "--temperature", 0)[0] == 0
    images = np.load("x.npy")
    assert (images == images[:1]).all()
    assert run("sample", runs / "dae", "-n", 2, "--out", "y.npy", "--steps", 3)[0] == 0
    assert run("sample", runs / "cvae", "-n", 2, "--out", "y.npy", "--label", 1)[0] == 0


@pytest.mark.parametrize("name", MODELS)
def test_evaluate_prints_scores_and_those_of_samples(runs, run, name):
    status, output, _ = run("evaluate", runs / name, "--json", "--part", "train")
    scores = json.loads(output)
    own = {"ae": ["loss", "mse"], "dae": ["loss"], "vqvae": ["bits_per_dim"]}
    own = own.get(name, ["bits_per_dim", "iwae100_bits_per_dim"])
    assert status == 0 and np.isfinite([scores[key] for key in [*own, "fid"]]).all()
    if len(own) == 2 and name != "ae":
        assert scores["iwae100_bits_per_dim"] < scores["bits_per_dim"]


@pytest.mark.parametrize("name", MODELS)
def test_interpolate_draws_all_kinds(runs, run, name):
    status, output, _ = run("interpolate", runs / name, "-n", 2, "--steps", 4)
    assert status == 0
    for what in ("walks, linear", "walks, spherical", "b - a + c", "plane", "data in that plane"):
        assert what in output
    assert ("the same latents as each class" if name == "cvae" else "moved from its class to another") in output
    assert min(Image.open("interpolation.png").size) > 500


def test_interpolate_walks_between_the_images_that_are_named(runs, run):
    command = ["interpolate", runs / "vae", "--kind", "walk", "--out", "w.png"]
    assert run(*command, "--images", "0,1")[0] == 0
    first = Image.open("w.png").tobytes()
    assert run(*command, "--images", "2,1")[0] == 0
    assert Image.open("w.png").tobytes() != first


def test_interpolate_where_the_data_are_gone_draws_its_own_latents(runs, run, monkeypatch):
    def gone(*arguments, **options):
        raise ValueError("no data")

    monkeypatch.setattr("fastgen.train.load.load", gone)
    status, output, _ = run("interpolate", runs / "vae", "-n", 2)
    assert status == 0 and "data in that plane" not in output
    assert fails(
        run("interpolate", runs / "vae", "--images", "0,1"), "--images: there are no images to take latents of"
    )


def test_interpolate_takes_flows(data, run):
    small = ["--set", "num_blocks=1", "--channels", 4, "--epochs", 1, "--device", "cpu", "--quiet", "--out", "flow"]
    assert run("train", "realnvp", "--data", data, *small)[0] == 0
    assert run("interpolate", "flow", "-n", 1, "--steps", 3)[0] == 0


def test_what_is_refused(runs, run, data):
    vae = runs / "vae"
    assert fails(run("interpolate", vae, "-n", 0), "-n is 0, expected at least 1")
    assert fails(run("interpolate", vae, "--steps", 1), "--steps is 1, expected at least 2")
    assert fails(run("interpolate", vae, "--out", "x.jpg"), "expected a name ending in .png")
    assert fails(run("interpolate", vae, "--images", "0,99"), "--images is 0,99, expected two or more, 0 to 5")
    assert fails(run("interpolate", vae, "--images", "a,b"), "expected whole numbers with commas")
    assert fails(run("interpolate", vae, "--label", 1), "not trained with --class-conditional")
    assert fails(run("interpolate", runs / "cvae", "--label", 7), "--label is 7, expected 0 to 1")
    assert fails(run("interpolate", vae, "--kind", "dance"), "invalid choice")
    assert fails(run("sample", vae, "--steps", 3), "--steps is for diffusion models and chains, this one is a VAE")
    assert fails(run("sample", runs / "ae", "--temperature", 1), "--temperature is for flows and VAEs")
    assert fails(run("sample", vae, "--compare"), "this one is a VAE")
    assert fails(run("sample", runs / "dae", "--steps", 0), "steps: expected a positive int, got 0")
    np.save("plain.npy", np.random.default_rng(0).integers(0, 4, (40, 4, 4), dtype=np.uint8))
    assert fails(run("train", "cvae", "--data", "plain.npy", *SMALL), "cvae learns images of classes")
    assert fails(run("train", "vae", "--data", "two-moons", *SMALL), "vae learns images, two-moons holds vectors")
    assert fails(run("train", "vae", "--data", data, *SMALL, "--set", "beta=-1"), "beta: expected a number")


def test_interpolate_refuses_models_without_latents(run, data):
    small = ["--channels", "8", "--layers", "1", "--epochs", "1", "--device", "cpu", "--quiet", "--out", "pixels"]
    assert run("train", "pixelcnn", "--data", data, *small)[0] == 0
    assert fails(run("interpolate", "pixels"), "holds a PixelCNN, expected a model that decodes latents to images")
