"""Diffusion models from the command line: training, drawing, scoring, restoring, and what is refused."""

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
from fastgen.train import Recipe, Settings, Trainer, TrainingInterrupted, load_model
from fastgen.train.evaluate import evaluate
from tests.command_errors import fails
from tests.train.training import assert_same_numbers

MODELS = ("ddpm", "diffusion-2015", "score-sde", "edm", "flow-matching")
SMALL = [
    *("--channels", "8", "--layers", "1", "--set", "channel_multipliers=[1,2]", "--set", "attention_levels=[]"),
    *("--set", "groups=4", "--epochs", "2", "--batch-size", "16", "--device", "cpu", "--quiet"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """4x4 images of 4 levels whose rows rise; the label is the level they start from."""
    path = tmp_path_factory.mktemp("data") / "rising.npz"
    images = np.random.default_rng(0).integers(0, 2, (60, 4, 4)).cumsum(2).clip(max=3)
    np.savez(path, images=images, labels=images[:, 0, 0], levels=4)
    return str(path)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Folders of finished runs by model; those of ddpm know classes."""
    folder = tmp_path_factory.mktemp("runs")
    for name in MODELS:
        classes = ["--class-conditional"] if name == "ddpm" else []
        few = ["--set", "num_train_timesteps=30"] if name in ("ddpm", "diffusion-2015") else []
        assert main(["train", name, "--data", data, "--out", str(folder / name), *SMALL, *classes, *few]) == 0
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_train_writes_what_others_write(runs, name):
    metrics = json.loads((runs / name / "metrics.json").read_text())
    assert {"train_loss", "validation_loss"} <= set(metrics["history"][0])
    assert Image.open(runs / name / "samples.png").size[0] > 8 * 48
    model, config = load_model(runs / name)
    assert config["model"]["name"] == name and not model.training


class StoppingDiffusion(Recipe):
    """Interrupts itself in the middle of step 4."""

    def step(self, step, batch, networks, optimizers, accelerator):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(step, batch, networks, optimizers, accelerator)


@pytest.mark.parametrize("name", ["ddpm", "edm"])
def test_interrupted_and_resumed_equals_unbroken(data, tmp_path, name):
    def trainer(out, recipe):
        torch.manual_seed(0)
        model = MODEL_CLASSES[name](
            4, 1, 4, channels=8, channel_multipliers=(1,), layers=1, groups=4, attention_levels=()
        )
        settings = Settings(epochs=3, batch_size=16, warmup=2)
        accelerator = Accelerator(cpu=True)
        return Trainer(model, load(data), out, recipe=recipe, settings=settings, accelerator=accelerator, quiet=True)

    trainer(tmp_path / "unbroken", Recipe()).fit()
    with pytest.raises(TrainingInterrupted):
        trainer(tmp_path / "broken", StoppingDiffusion()).fit()
    trainer(tmp_path / "broken", Recipe()).fit(resume=True)
    assert_same_numbers(tmp_path / "unbroken", tmp_path / "broken")


@pytest.mark.parametrize("name", MODELS)
def test_sample(runs, run, name):
    steps = [] if name == "diffusion-2015" else ["--steps", 3]
    status, output, _ = run("sample", runs / name, "-n", 3, "--out", "x.npy", *steps)
    assert status == 0 and "3 images in x.npy" in output
    images = np.load("x.npy")
    assert images.shape == (3, 1, 4, 4) and images.dtype == np.uint8 and images.max() <= 3


def test_sampler_steps_guidance_and_label_are_those_of_sample(runs, run):
    model, _ = load_model(runs / "ddpm")
    options = ["--sampler", "dpm++", "--steps", 5, "--guidance", 2, "--label", 1, "--seed", 7]
    assert run("sample", runs / "ddpm", "-n", 4, "--out", "x.npy", *options)[0] == 0
    generator = torch.Generator().manual_seed(7)
    expected = model.sample(4, sampler="dpm++", steps=5, guidance=2.0, labels=1, generator=generator)
    assert np.array_equal(np.load("x.npy"), expected.numpy())


def test_eta_is_that_of_ddim(runs, run):
    model, _ = load_model(runs / "ddpm")
    assert run("sample", runs / "ddpm", "-n", 4, "--out", "x.npy", "--steps", 3, "--eta", 1)[0] == 0
    # The classes take turns.
    labels = torch.arange(4) % model.config["num_classes"]
    expected = model.sample(4, steps=3, eta=1.0, labels=labels, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(np.load("x.npy"), expected.numpy())


@pytest.mark.parametrize("name", ["ddpm", "diffusion-2015", "edm"])
def test_evaluate_prints_loss_and_bits(runs, run, name):
    status, output, _ = run("evaluate", runs / name, "--json")
    scores = json.loads(output)
    assert status == 0 and np.isfinite([scores["loss"], scores["bits_per_dim"]]).all()


def test_what_sample_refuses(runs, run):
    unconditional = runs / "edm"
    assert fails(run("sample", unconditional, "--sampler", "ddim"), "sampler: expected one of heun, euler, ode")
    assert fails(run("sample", unconditional, "--steps", 0), "steps: expected a positive int")
    assert fails(run("sample", unconditional, "--eta", 1), "sampler 'heun' got an unexpected keyword argument 'eta'")
    assert fails(run("sample", runs / "ddpm", "--eta", 2), "eta: expected a number from 0 to 1")
    assert fails(run("sample", unconditional, "--guidance", 2), "guidance: expected labels to guide towards")
    assert fails(run("sample", unconditional, "--label", 1), "not trained with --class-conditional")
    assert fails(run("sample", unconditional, "--temperature", 1), "--temperature is for flows")
    assert fails(run("sample", unconditional, "--compare"), "this one is a diffusion model")
    assert fails(run("sample", runs / "ddpm", "--steps", 5000), "num_inference_steps: expected at most")
    assert fails(run("sample", runs / "ddpm", "--label", 9), "labels: expected classes 0 to")
    assert fails(run("sample", runs / "ddpm", "--label", 1, "--labels", 1), "not allowed with argument")


def test_a_checkpoint_of_another_kind(run, data):
    small = ["--channels", "8", "--layers", "1", "--set", "first_kernel_size=3", "--epochs", "1", "--device", "cpu"]
    assert run("train", "pixelcnn", "--data", data, "--out", "pixels", "--quiet", *small)[0] == 0
    assert fails(
        run("sample", "pixels", "--steps", 3), "--steps is for diffusion models and chains, this one is a PixelCNN"
    )
    assert fails(run("restore", "pixels", 0, "--task", "inpaint"), "expected a diffusion model of images")


@pytest.mark.parametrize("task", ["super-resolution", "denoise", "inpaint", "uncrop", "deblur", "hdr"])
def test_restore_draws_measurement_restorations_and_truth(runs, run, task):
    status, output, _ = run("restore", runs / "edm", 2, "--task", task, "-n", 2, "--steps", 3)
    assert status == 0 and "2 restored and truth in restored.png" in output
    # Four images of 48 pixels, and gaps.
    assert Image.open("restored.png").size == (4 * (48 + 6) + 6, 48 + 2 * 6)


def test_restore_takes_pictures(runs, run):
    Image.new("RGB", (40, 40), (250, 0, 0)).save("red.png")
    assert run("restore", runs / "flow-matching", "red.png", "--task", "inpaint", "--method", "repaint")[0] == 0


def test_what_restore_refuses(runs, run):
    model = runs / "edm"
    assert fails(run("restore", model, 999, "--task", "inpaint"), "IMAGE is 999, expected 0 to 5")
    assert fails(run("restore", model, "no.png", "--task", "inpaint"), "IMAGE is no.png, expected a picture")
    assert fails(run("restore", model, 0, "--task", "paint"), "--task is paint, expected one of")
    assert fails(run("restore", model, 0, "--task", "colourise"), "colourisation is of images of 3 channels")
    assert fails(run("restore", model, 0, "--task", "hdr", "--method", "ddnm"), "ddnm is for linear operators")
    assert fails(run("restore", model, 0, "--task", "deblur", "--method", "repaint"), "repaint fills in pixels")
    assert fails(run("restore", model, 0, "--task", "denoise", "--noise", -1), "noise_std: expected a number")
    assert fails(run("restore", model, 0, "--task", "denoise", "-n", 0), "-n is 0")
    assert fails(run("restore", model, 0, "--task", "denoise", "--out", "x.jpg"), "expected a name ending in .png")


def test_the_best_of_the_ancestor_is_told_by_its_bound(runs, data):
    """By the same draws after every epoch, which cover all timesteps, and near what all of them say."""
    model = load_model(runs / "diffusion-2015")[0]
    images = load(data).train
    scores = [evaluate(model, images, batch_size=len(images))["loss"] for _ in range(2)]
    assert scores[0] == scores[1]
    whole = model.bits_per_dim(torch.as_tensor(images.values), generator=torch.Generator().manual_seed(0)).mean()
    assert scores[0] == pytest.approx(whole.item(), rel=0.3)
