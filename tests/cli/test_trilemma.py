"""`fastgen trilemma` and the samples in `fastgen evaluate`, on models that are trained in seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.cli import main
from fastgen.data import load
from fastgen.metrics import DensityCoverage, FrechetInceptionDistance
from fastgen.train import load_model
from fastgen.train.sample_scores import Yardstick, draw
from fastgen.train.settings import recipe_of
from tests.command_errors import but_bias, fails

TINY = ["--transforms", "2", "--hidden-features", "8", "--epochs", "1", "--device", "cpu", "--quiet"]
SMALL = ["--channels", "8", "--epochs", "1", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two flows of the plane, and a PixelCNN of digits that has hardly learned."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model, rest in (("nsf", "nsf", TINY), ("maf", "maf", TINY)):
        data = ["--data", "two-moons", "--size", "600", "--out", str(folder / name)]
        assert main(["train", model, *data, *rest]) == 0
    digits = ["--data", "digits", "--out", str(folder / "pixelcnn"), "--layers", "1"]
    assert main(["train", "pixelcnn", *digits, *SMALL]) == 0
    return folder


class TestTrilemma:
    def test_draws_and_writes(self, run, runs):
        command = ("trilemma", runs / "nsf", runs / "maf", "-n", 100, "--json", "x.json", "--picture", "x.png")
        status, output, errors = run(*command, "--device", "cpu")
        assert (status, but_bias(errors)) == (0, "")
        found = json.loads(Path("x.json").read_text())
        assert (found["data"], found["held_out"], found["samples"], found["features"]) == (
            "two-moons", 60, 100, "standardised",
        )  # fmt: skip
        assert [corner["name"] for corner in found["models"]] == ["nsf", "maf"]
        for corner in found["models"]:
            assert corner["samples_per_second"] > 0 and corner["fid"] > 0
            assert all(0 <= corner[key] <= 1 for key in ("precision", "coverage", "recall"))
        # What was learned is like what was held out, and hardly trained models are not.
        ideal = found["training_data"]
        assert ideal["coverage"] > 0.85 and ideal["precision"] > 0.85 and ideal["samples_per_second"] is None
        assert all(corner["fid"] > ideal["fid"] for corner in found["models"])
        assert "training data" in output and "x.png" in output
        width, height = Image.open("x.png").size
        assert width > 1.8 * height and np.asarray(Image.open("x.png").convert("L")).std() > 10

    def test_numbers_are_those_of_the_metrics(self, run, runs):
        assert run("trilemma", runs / "nsf", "-n", 60, "--json", "x.json", "--seed", 5, "--device", "cpu")[0] == 0
        found = json.loads(Path("x.json").read_text())["models"][0]
        model, config = load_model(runs / "nsf")
        held_out = load(**config["data"], seed=config["settings"]["seed"]).validation.values
        samples = recipe_of(model).sample(model, 60, torch.Generator().manual_seed(5)).double()
        mean, std = held_out.mean(0), held_out.std(0, correction=0)
        for metric, names in (
            (DensityCoverage("given"), ("density", "coverage")),
            (FrechetInceptionDistance("given"), ()),
        ):
            metric.update((held_out - mean) / std, real=True)
            metric.update((samples - mean) / std, real=False)
            value = metric.compute()
            expected = {name: value[name] for name in names} or {"fid": value}
            for name, number in expected.items():
                assert found[name] == pytest.approx(number.item(), rel=1e-6), name

    def test_of_images(self, run, runs):
        status, output, errors = run("trilemma", runs / "pixelcnn", "-n", 30, "--picture", "x.svg", "--device", "cpu")
        assert (status, but_bias(errors)) == (0, "")
        assert "by digits features" in output and Path("x.svg").read_text().count("pixelcnn") >= 1

    def test_errors(self, run, runs):
        flow, images = runs / "nsf", runs / "pixelcnn"
        assert fails(run("trilemma", flow, images), "pixelcnn learned other data than", "same data")
        assert fails(run("trilemma", "nowhere"), "nowhere does not exist")
        assert fails(run("trilemma", flow, "--picture", "x.txt"), "--picture x.txt: expected a file that ends with")
        assert fails(run("trilemma", flow, "--json", "no/x.json"), "no is not a folder to write to")
        assert fails(run("trilemma", flow, "-n", 3), "-n is 3, expected at least 6")
        assert fails(run("trilemma", flow, "--features", "digits"), "features 'digits' are of images")


class TestEvaluate:
    def test_of_vectors(self, run, runs):
        status, output, errors = run("evaluate", runs / "nsf", "--json", "--device", "cpu")
        assert (status, but_bias(errors)) == (0, "")
        found = json.loads(output)
        assert (found["samples"], found["features"]) == (60, "standardised")
        assert {"nats", "fid", "precision", "recall", "density", "coverage", "sliced_wasserstein"} <= found.keys()
        assert run("evaluate", runs / "nsf", "--json", "--device", "cpu", "--metrics", "fid", "--seed", 0)[0] == 0

    def test_of_images(self, run, runs):
        command = ("evaluate", runs / "pixelcnn", "--device", "cpu", "--samples", 40)
        status, output, errors = run(*command)
        assert (status, but_bias(errors)) == (0, "")
        assert "40 samples" in output and "by digits features" in output and "inception_score" in output
        first, again, other = (run(*command, "--metrics", "fid,modes", "--json", "--seed", s)[1] for s in (1, 1, 2))
        first, again, other = map(json.loads, (first, again, other))
        for found in (first, again, other):
            assert found.pop("samples_per_second") > 0
        assert first == again and first["fid"] != other["fid"]
        assert first["classes"] == 10 and 1 <= first["modes"] <= 10 and "precision" not in first

    def test_likelihoods_alone(self, run, runs):
        found = json.loads(run("evaluate", runs / "pixelcnn", "--json", "--metrics", "none", "--device", "cpu")[1])
        assert found.keys() == {"data", "part", "images", "bits_per_dim"}

    def test_errors(self, run, runs):
        command = ("evaluate", runs / "pixelcnn", "--device", "cpu")
        assert fails(run(*command, "--metrics", "fod"), "no metric 'fod'")
        assert fails(run(*command, "--metrics", "is", "--features", "pixels"), "needs features with classes")
        assert fails(run(*command, "--samples", 0), "--samples is 0, expected at least 1")
        assert fails(run(*command, "--samples", 3, "--metrics", "prdc"), "at least 6 examples of the samples, got 3")


def test_samples_that_are_not_finite_are_an_error():
    data = load("two-moons", size=100)
    samples = data.train.values[:20].clone()
    samples[3, 0] = torch.inf
    with pytest.raises(ValueError, match="1 of 20 rows hold NaN or infinity"):
        Yardstick(data.validation).score(samples, ["fid"])


def test_a_yardstick_of_columns_that_are_constant():
    values = torch.cat([torch.randn(30, 2, dtype=torch.float64), torch.ones(30, 1, dtype=torch.float64)], 1)

    class Table:
        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

    found = Yardstick(Table(values)).score(values + 0.01, ["fid", "prdc"])
    assert found["fid"] < 0.01 and found["coverage"] == 1


def test_draws_are_those_of_the_seed(runs):
    model, _ = load_model(runs / "nsf")
    first, again = draw(model, 260, 3), draw(model, 260, 3)
    assert torch.equal(first.samples, again.samples) and len(first.samples) == 260
    assert first.per_second == 260 / first.seconds
