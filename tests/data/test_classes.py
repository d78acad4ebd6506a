"""Classes are those that the labels name, and keep their names from the file to the samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.data import Images, load
from tests.command_errors import fails

PIXELS = torch.arange(12).view(12, 1, 1, 1).expand(12, 1, 4, 4).to(torch.uint8)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([3, 999], ("3", "999"), [0, 1]),
        ([999, 3], ("3", "999"), [1, 0]),
        ([0, 1], ("0", "1"), [0, 1]),
        ([1, 0, 2], ("0", "1", "2"), [1, 0, 2]),
        ([1, 2], ("1", "2"), [0, 1]),
        ([True, False], ("0", "1"), [1, 0]),
        (["dog", "cat"], ("cat", "dog"), [1, 0]),
        ([10, 9, 2], ("2", "9", "10"), [2, 1, 0]),
        ([2**40, 5], ("5", str(2**40)), [1, 0]),
    ],
)
@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_those_that_are_there_and_no_others(tmp_path, labels, names, numbers, shape):
    np.savez(tmp_path / "x.npz", images=PIXELS.numpy(), labels=np.resize(labels, shape))
    data = load(tmp_path / "x.npz", validation_fraction=0.25)
    for part in (data.train, data.validation):
        assert (part.num_classes, part.class_names) == (len(names), names)
        expected = [np.resize(numbers, 12)[int(image[0, 0, 0])] for image in part.images]
        assert part.labels.tolist() == expected


def test_names_are_recorded_where_they_are_no_count():
    assert "classes" not in Images.labelled(PIXELS, np.arange(12)).facts
    assert Images.labelled(PIXELS, 2 * np.arange(12)).facts["classes"] == [str(2 * i) for i in range(12)]


def test_numbered_as_elsewhere():
    images = Images.labelled(PIXELS, np.resize([7, 1], 12))
    again = images.with_classes(tuple(map(str, range(10))))
    assert again.labels.tolist() == [7, 1] * 6 and again.num_classes == 10
    with pytest.raises(ValueError, match="there is a class 1, expected some of: 3, 7"):
        images.with_classes(("3", "7"))


SMALL = ["--channels", 4, "--layers", 1, "--set", "first_kernel_size=3", "--epochs", 1, "--device", "cpu", "--quiet"]
# Long enough to tell bright from dark, and no longer.
WELL = ["--epochs", 12, "--lr", 0.1, "--warmup", 0, "--batch-size", 12, "--ema-decay", 0.5]
CONDITIONAL = ["train", "gated-pixelcnn", "--class-conditional", *SMALL]


def images_of(labels, n=40):
    """Images of 4 levels and their labels, in turn: every other is bright."""
    images = np.random.default_rng(0).integers(0, 2, (n, 4, 4)) + 2 * (np.arange(n) % 2)[:, None, None]
    return {"images": images, "labels": np.resize(labels, n), "levels": np.array(4)}


class TestCommands:
    def test_two_classes_are_learned_and_drawn_by_their_names(self, run):
        np.savez("x.npz", **images_of([3, 999]))
        assert run(*CONDITIONAL, "--data", "x.npz", "--out", "run", *WELL)[0] == 0
        config = json.loads(Path("run/last/config.json").read_text())
        assert config["model"]["config"]["num_classes"] == 2 and config["dataset"]["classes"] == ["3", "999"]
        for labels in ("3", "999", "999,3"):
            assert run("sample", "run", "-n", 8, "--labels", labels, "--out", f"{labels}.npy")[0] == 0
        dark, bright = (np.load(f"{label}.npy").mean() for label in (3, 999))
        mixed = np.load("999,3.npy").mean((1, 2, 3))
        assert dark < 1 and bright > 2 and (mixed[::2] > mixed[1::2]).all()
        for label in ("0", "1", "cat", ""):
            assert fails(run("sample", "run", "--labels", label), f"no class '{label}', expected one of: 3, 999")
        assert run("train", "--resume", "run", "--epochs", 13, "--quiet")[0] == 0

    def test_evaluate_knows_classes_by_name(self, run):
        np.savez("x.npz", **images_of([3, 999]))
        assert run(*CONDITIONAL, "--data", "x.npz", "--out", "run", *WELL)[0] == 0
        command = ["evaluate", "run", "--part", "train", "--json", "--metrics", "none", "--data"]
        bright = images_of([999])["images"][1::2]
        bits = {}
        for label in (3, 999):
            np.savez("bright.npz", images=bright, labels=np.full(len(bright), label), levels=4)
            bits[label] = json.loads(run(*command, "bright.npz")[1])["bits_per_dim"]
        # What is bright is of class 999, though no other is there that would make it the second.
        assert bits[999] < 1.2 and bits[3] > bits[999] + 1
        np.savez("new.npz", **images_of([3, 1]))
        assert fails(run(*command, "new.npz"), "new.npz: there is a class 1, expected some of: 3, 999")
        np.savez("count.npz", **images_of([0, 1]))
        assert fails(run(*command, "count.npz"), "there is a class 0, expected some of: 3, 999")

    def test_a_subset_of_counted_classes_keeps_its_numbers(self, run):
        np.savez("x.npz", **images_of([0, 1, 2]))
        assert run(*CONDITIONAL, "--data", "x.npz", "--out", "run")[0] == 0
        np.savez("some.npz", **images_of([2]))
        assert run("evaluate", "run", "--data", "some.npz", "--metrics", "none")[0] == 0
        np.savez("more.npz", **images_of([3]))
        assert fails(run("evaluate", "run", "--data", "more.npz"), "there is a class 3, expected some of: 0, 1, 2")

    def test_folders_name_classes(self, run):
        for i in range(24):
            path = Path("pets", ("cat", "dog")[i % 2], f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (4, 4), dtype=np.uint8)).save(path)
        assert run(*CONDITIONAL, "--data", "pets", "--levels", 4, "--out", "run")[0] == 0
        for name, number in (("cat", "0"), ("dog", "1")):
            for label in (name, number):
                assert run("sample", "run", "-n", 4, "--label", label, "--out", f"{label}.npy")[0] == 0
            assert np.array_equal(np.load(f"{name}.npy"), np.load(f"{number}.npy"))
        assert fails(run("sample", "run", "--labels", "cat,cow"), "no class 'cow', expected one of: cat, dog")
        Path("dogs").mkdir()
        Path("pets/dog").rename("dogs/dog")
        assert run("evaluate", "run", "--data", "dogs", "--metrics", "none")[0] == 0
        Path("dogs/dog").rename("dogs/wolf")
        assert fails(run("evaluate", "run", "--data", "dogs"), "there is a class wolf, expected some of: cat, dog")

    def test_one_class_of_a_latent_walk(self, run):
        np.savez("x.npz", **images_of(["cat", "dog"]))
        options = ["--set", "network=dense", "--set", "latent_size=2", "--epochs", 1, "--device", "cpu", "--quiet"]
        status, _, errors = run("train", "cvae", "--data", "x.npz", "--out", "run", "--channels", 8, *options)
        assert status == 0, errors
        assert run("interpolate", "run", "--kind", "map", "--label", "dog", "--device", "cpu")[0] == 0
        assert fails(run("interpolate", "run", "--label", "cow"), "--label: no class 'cow', expected one of: cat, dog")
