"""The command line as a person meets it: what it prints, what it writes, how it fails."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgen.cli import main
from tests.command_errors import fails

ROOT = Path(__file__).parents[2]
SMALL = ["--channels", "8", "--layers", "1", "--set", "first_kernel_size=3", "--device", "cpu", "--quiet"]


def rising_images(n=60):
    """4x4 images of 4 levels whose rows rise, with the level that the first row starts with as the label."""
    images = np.random.default_rng(0).integers(0, 2, (n, 4, 4)).cumsum(2).clip(max=3)
    return {"images": images, "labels": images[:, 0, 0], "levels": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rising.npz"
    np.savez(path, **rising_images())
    return str(path)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert (
        main(["train", "pixelcnn", "--data", data, "--epochs", "3", "--batch-size", "8", "--out", str(out), *SMALL])
        == 0
    )
    return out


class TestTrain:
    def test_writes_a_run(self, trained):
        assert sorted(path.name for path in trained.iterdir()) == ["best", "last", "metrics.json", "samples.png"]
        metrics = json.loads((trained / "metrics.json").read_text())
        assert len(metrics["history"]) == 3
        assert metrics["final"]["validation_bits_per_dim"] < 2
        assert metrics["config"]["model"]["name"] == "pixelcnn"
        assert metrics["config"]["model"]["config"]["levels"] == 4

    def test_tells_what_it_did(self, run, data):
        status, output, errors = run(
            "train", "gated-pixelcnn", "--data", data, "--epochs", 2, "--class-conditional", *SMALL
        )
        assert status == 0
        assert "validation_bits_per_dim" in output and "runs/gated-pixelcnn-rising/samples.png" in output
        assert errors.count("validation_bits_per_dim") == 2, "a line for each epoch"
        assert Image.open("runs/gated-pixelcnn-rising/samples.png")

    def test_pixelcnnpp(self, run, data):
        small = ["--channels", 4, "--set", "resnets=1", "--set", "scales=2", "--set", "num_mixtures=2", "--quiet"]
        status, output, errors = run("train", "pixelcnnpp", "--data", data, "--epochs", 1, "--device", "cpu", *small)
        assert status == 0, errors
        assert "runs/pixelcnnpp-rising/best" in output

    def test_same_command_same_numbers(self, run, data, trained):
        command = ["train", "pixelcnn", "--data", data, "--epochs", 3, "--batch-size", 8, "--out", "again", *SMALL]
        assert run(*command)[0] == 0
        first, again = (json.loads((out / "metrics.json").read_text()) for out in (trained, Path("again")))
        assert (first["history"], first["final"]) == (again["history"], again["final"])

    def test_a_finished_run_may_get_more_epochs(self, run, data):
        assert run("train", "pixelcnn", "--data", data, "--epochs", 1, "--out", "x", *SMALL)[0] == 0
        assert run("train", "--resume", "x", "--epochs", 2, "--quiet")[0] == 0
        assert len(json.loads(Path("x/metrics.json").read_text())["history"]) == 2

    def test_does_not_overwrite_a_run_unasked(self, run, data):
        command = ["train", "pixelcnn", "--data", data, "--epochs", 1, "--out", "x", *SMALL]
        assert run(*command)[0] == 0
        assert fails(run(*command), "x already holds a run", "--resume", "--overwrite")
        assert run(*command, "--overwrite")[0] == 0
        assert run(*command, "--resume")[0] == 0

    def test_presets_suit_their_models_and_data(self):
        from fastgen.data import DATASETS, load
        from fastgen.models import MODELS
        from fastgen.train import Settings
        from fastgen.train.launch import build_model
        from fastgen.train.settings import preset, recipe_of

        for name, data in product(MODELS, DATASETS):
            defaults = preset(MODELS[name], data)
            wanted = defaults["model"]["config"]
            if not wanted:
                continue
            options = {name: value for name, value in {"channels": 16, "transforms": 3}.items() if name in wanted}
            model = build_model(name, load(data), options, wanted)
            assert (wanted | options).items() <= model.config.items()
            assert Settings(**defaults["settings"]) and recipe_of(model, **defaults["recipe"])
        known = {*DATASETS, "points", "other"}
        assert all(kind.presets.keys() <= known for kind in MODELS.values())
        assert all("digits" in kind.presets or "points" in kind.presets for kind in MODELS.values())


class TestTrainErrors:
    def test_unknown_model_lists_the_choices(self, run):
        assert fails(run("train", "pixelrnn", "--data", "digits"), "'pixelrnn'", "pixelcnn, gated-pixelcnn, pixelcnnpp")

    def test_unknown_data_lists_the_choices(self, run):
        assert fails(run("train", "pixelcnn", "--data", "mnits"), "'mnits'", "digits")

    def test_no_data(self, run):
        assert fails(run("train", "pixelcnn"), "--data")

    def test_no_model(self, run):
        assert fails(run("train", "--data", "digits"), "pixelcnn, gated-pixelcnn, pixelcnnpp")

    def test_data_that_is_not_one(self, run):
        Path("x.npz").write_bytes(b"PK not an archive")
        assert fails(run("train", "pixelcnn", "--data", "x.npz"), "x.npz is not a whole NumPy file")

    def test_output_folder_that_cannot_be_written(self, run):
        Path("file").touch()
        assert fails(run("train", "pixelcnn", "--data", "digits", "--out", "file/run"), "cannot write", "file/run")

    @pytest.mark.parametrize(
        ("option", "value", "said"),
        [
            ("--epochs", "0", "epochs is 0, expected at least 1"),
            ("--epochs", "many", "argument --epochs: invalid int value: 'many'"),
            ("--batch-size", "-3", "batch_size is -3, expected at least 1"),
            ("--lr", "nan", "lr is nan, expected a positive number"),
            ("--lr", "-1", "lr is -1.0"),
            ("--ema-decay", "1", "ema_decay is 1.0"),
            ("--levels", "1", "levels is 1"),
            ("--channels", "0", "channels"),
            ("--channels", "7", "channels"),
            ("--dropout", "2", "dropout"),
            ("--validation-fraction", "1", "fraction is 1.0"),
            ("--set", "kernel_size=4", "kernel_size"),
            ("--set", "kernels=3", "no argument kernels, expected one of: image_size"),
            ("--set", "kernel_size", "expected KEY=VALUE"),
            ("--set", "kernel_size=wide", "kernel_size"),
            ("--seed", "-1", "seed"),
            ("--precision", "fp8", "invalid choice: 'fp8'"),
            ("--image-size", "8", "for folders of pictures"),
            ("--speed", "8", "unrecognized arguments: --speed"),
        ],
    )
    def test_bad_values(self, run, data, option, value, said):
        assert fails(run("train", "pixelcnn", "--data", data, option, value), said)
        assert not list(Path("runs").glob("*/last"))

    def test_classes_without_labels(self, run):
        np.save("x.npy", rising_images()["images"].astype(np.uint8))
        command = ["train", "gated-pixelcnn", "--data", "x.npy", "--class-conditional"]
        assert fails(run(*command), "--class-conditional needs labels")

    def test_resuming_another_model(self, run, trained):
        assert fails(run("train", "gated-pixelcnn", "--resume", trained), "is a run of pixelcnn, not of gated-pixelcnn")

    def test_resuming_with_other_values(self, run, trained):
        assert fails(run("train", "--resume", trained, "--lr", 0.5), "recipe.lr is 0.001, this run's is 0.5")
        assert fails(
            run("train", "--resume", trained, "--channels", 16), "model.config.channels is 8, this run's is 16"
        )

    def test_resuming_nothing(self, run):
        assert fails(run("train", "--resume", "nowhere"), "nowhere does not exist")

    def test_resuming_a_truncated_checkpoint(self, run, trained, tmp_path):
        copy = copied(trained, tmp_path)
        truncate(copy / "last" / "optimizers.safetensors")
        assert fails(run("train", "--resume", copy), "optimizers.safetensors is missing, truncated or damaged")

    def test_debug_shows_where(self, run):
        status, _, errors = run("train", "pixelrnn", "--data", "digits", "--debug")
        assert status == 2
        assert "Traceback" in errors and errors.splitlines()[-1].startswith("fastgen: error: no model 'pixelrnn'")

    def test_divergence(self, run, data):
        result = run(
            "train", "pixelcnn", "--data", data, "--lr", 1e30, "--epochs", 3, "--warmup", 0, "--out", "x", *SMALL
        )
        status, _, errors = result
        assert status == 2
        assert "try a lower learning rate" in errors.splitlines()[-1] and "Traceback" not in errors
        assert run("sample", "x", "-n", 1)[0] == 0


def copied(run, folder):
    import shutil

    return Path(shutil.copytree(run, folder / "copy"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


class TestSample:
    def test_draws_a_picture(self, run, trained):
        status, output, _ = run("sample", trained, "-n", 9, "--seed", 3)
        assert status == 0 and "9 images in samples.png" in output
        assert Image.open("samples.png").size == (3 * (48 + 6) + 6,) * 2

    def test_draws_numbers(self, run, trained):
        assert run("sample", trained, "-n", 5, "--out", "x.npy")[0] == 0
        images = np.load("x.npy")
        assert images.shape == (5, 1, 4, 4) and images.max() < 4
        assert run("sample", trained, "-n", 5, "--out", "again.npy")[0] == 0
        assert run("sample", trained, "-n", 5, "--out", "other.npy", "--seed", 1)[0] == 0
        assert np.array_equal(images, np.load("again.npy"))
        assert not np.array_equal(images, np.load("other.npy"))

    def test_compare_times_both_methods(self, run, trained):
        status, output, _ = run("sample", trained, "-n", 4, "--compare")
        assert status == 0
        assert "cached" in output and "naive" in output and "same images 4 of 4" in output

    def test_errors(self, run, trained, tmp_path):
        assert fails(run("sample", "nowhere"), "nowhere does not exist")
        assert fails(run("sample", trained, "-n", 0), "-n is 0, expected at least 1")
        assert fails(run("sample", trained, "--out", "x.jpg"), "expected a name ending in .png, .npy or .csv")
        assert fails(run("sample", trained, "--labels", "1"), "not trained with --class-conditional")
        assert fails(run("sample", trained, "--method", "slow"), "invalid choice: 'slow'")
        Path("file").touch()
        assert fails(run("sample", trained, "--out", "file/x.png"), "cannot write")

    def test_damaged_checkpoints(self, run, trained, tmp_path):
        copy = copied(trained, tmp_path)
        truncate(copy / "best" / "ema.safetensors")
        assert fails(run("sample", copy), "best/ema.safetensors is missing, truncated or damaged")
        # A folder with another model's weights under this model's name.
        config = json.loads((copy / "last" / "config.json").read_text())
        config["model"]["config"]["channels"] = 16
        (copy / "last" / "config.json").write_text(json.dumps(config))
        assert fails(run("sample", copy / "last"), "is of another model than this PixelCNN")
        for entry in ({"name": "pixelrnn", "config": {}}, "pixelcnn", None):
            (copy / "last" / "config.json").write_text(json.dumps({**config, "model": entry}))
            assert fails(run("sample", copy / "last"), "names no known model, expected one of: pixelcnn")
        config["model"]["config"]["depth"] = 3
        (copy / "last" / "config.json").write_text(json.dumps(config))
        assert fails(run("sample", copy / "last"), "does not describe a pixelcnn", "depth")


class TestEvaluate:
    def test_gives_the_numbers_of_the_run(self, run, trained):
        final = json.loads((trained / "metrics.json").read_text())["final"]
        for part in ("train", "validation"):
            status, output, _ = run("evaluate", trained, "--part", part, "--json", "--device", "cpu")
            assert status == 0
            assert json.loads(output)["bits_per_dim"] == pytest.approx(final[f"{part}_bits_per_dim"], rel=1e-6)

    def test_other_data(self, run, trained):
        np.savez("other.npz", **rising_images(30))
        status, output, _ = run("evaluate", trained, "--data", "other.npz", "--part", "train")
        assert status == 0 and "other.npz, 27 train images: bits_per_dim" in output

    def test_few_images(self, run, trained):
        np.savez("few.npz", **rising_images(5))
        for options in ((), ("--json",)):
            status, output, errors = run("evaluate", trained, "--data", "few.npz", "--part", "train", *options)
            assert status == 0 and "fid" in output
            said = "fastgen: warning: fid of 4 examples is biased upwards: compare it only with that of as many"
            assert errors.startswith(said) and errors.count("\n") == 1
        assert run("evaluate", trained, "--data", "few.npz", "--part", "train", "--metrics", "none")[2] == ""

    def test_errors(self, run, trained):
        assert fails(run("evaluate", trained, "--part", "test"), "has no part 'test'")
        assert fails(run("evaluate", trained, "--data", "digits"), "the model was trained on [1, 4, 4] of 4")
        assert fails(run("evaluate", trained, "--batch-size", 0), "batch_size is 0")


TINY_FLOW = ["--transforms", "2", "--hidden-features", "8", "--epochs", "2", "--device", "cpu", "--quiet"]
TABLE = np.random.default_rng(0).normal(size=(300, 3)) * [1000, 1, 0.01] + [3000, 0, 7]


def write_table(path):
    path.write_text("mass,charge,spin\n" + "\n".join(",".join(map(repr, map(float, row))) for row in TABLE))
    return path


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """The folder of a finished run of a flow of the plane."""
    out = tmp_path_factory.mktemp("runs") / "flow"
    assert main(["train", "nsf", "--data", "two-moons", "--size", "600", "--out", str(out), *TINY_FLOW]) == 0
    return out


class TestFlows:
    def test_of_the_plane(self, flow):
        metrics = json.loads((flow / "metrics.json").read_text())
        assert metrics["config"]["data"] == {"name_or_path": "two-moons", "size": 600}
        assert metrics["config"]["model"]["config"]["transforms"] == 2
        assert metrics["history"][-1]["validation_nats"] < metrics["history"][0]["validation_nats"]
        width, height = Image.open(flow / "samples.png").size
        assert width > 2.5 * height, "data, samples and density"

    @pytest.mark.parametrize("model", ["realnvp", "maf", "iaf"])
    def test_of_a_table(self, run, model):
        write_table(Path("x.csv"))
        status, output, errors = run("train", model, "--data", "x.csv", "--out", "x", *TINY_FLOW)
        assert status == 0, errors
        assert "validation_nats" in output
        assert run("sample", "x", "-n", 400, "--out", "new.csv")[0] == 0
        lines = Path("new.csv").read_text().splitlines()
        assert lines[0] == "mass,charge,spin"
        rows = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
        assert rows.shape == (400, 3)
        # Hardly trained, but in the units of each column.
        assert (np.abs(np.median(rows, 0) - TABLE.mean(0)) < 2 * TABLE.std(0)).all()
        Path("x.csv").unlink()
        assert run("sample", "x", "-n", 50)[0] == 0, "without the data it draws what it has"
        assert run("train", model, "--resume", "x", "--quiet")[0] == 2

    @pytest.mark.parametrize("model", ["realnvp", "glow"])
    def test_of_images(self, run, data, model):
        small = ["--channels", 8, "--epochs", 1, "--set", "scales=2" if model == "realnvp" else "scales=1"]
        small += ["--set", "num_blocks=1"] if model == "realnvp" else ["--set", "steps=2"]
        command = ["train", model, "--data", data, "--class-conditional", "--out", "x", "--device", "cpu", "--quiet"]
        status, output, errors = run(*command, *small)
        assert status == 0, errors
        final = json.loads(Path("x/metrics.json").read_text())["final"]
        assert final["validation_bits_per_dim"] > 0
        status, output, _ = run("evaluate", "x", "--json", "--device", "cpu")
        assert json.loads(output)["bits_per_dim"] == pytest.approx(final["validation_bits_per_dim"], rel=1e-6)
        assert run("sample", "x", "-n", 6, "--labels", "1,0", "--temperature", 0.7, "--out", "x.npy")[0] == 0
        images = np.load("x.npy")
        assert images.shape == (6, 1, 4, 4) and images.dtype == np.uint8 and images.max() < 4

    def test_draws_pictures_and_numbers(self, run, flow):
        status, output, _ = run("sample", flow)
        assert status == 0 and "5000 vectors in samples.png" in output
        assert run("sample", flow, "-n", 7, "--out", "x.npy")[0] == 0
        assert run("sample", flow, "-n", 7, "--out", "again.npy")[0] == 0
        assert np.load("x.npy").shape == (7, 2) and np.array_equal(np.load("x.npy"), np.load("again.npy"))

    def test_temperature_zero_draws_one_point_alone(self, run, flow):
        assert run("sample", flow, "-n", 9, "--temperature", 0, "--out", "x.npy")[0] == 0
        assert np.ptp(np.load("x.npy"), axis=0).max() < 1e-5

    def test_evaluate_gives_the_numbers_of_the_run(self, run, flow):
        final = json.loads((flow / "metrics.json").read_text())["final"]
        status, output, _ = run("evaluate", flow, "--json", "--device", "cpu")
        assert status == 0
        found = json.loads(output)
        expected = {
            "data": "two-moons",
            "part": "validation",
            "vectors": 60,
            "nats": pytest.approx(final["validation_nats"], rel=1e-6),
            "samples": 60,
            "features": "standardised",
        }
        assert {key: found[key] for key in expected} == expected and found["fid"] > 0
        status, output, _ = run("evaluate", flow, "--data", "circles", "--size", 100, "--part", "train")
        assert status == 0 and output.startswith("circles, 90 train vectors: nats ")

    def test_errors_in_training(self, run):
        Path("x.csv").write_text("a,b\n" + "1,2\n" * 20)
        np.save("x.npy", np.full((20, 2), np.nan))
        assert fails(run("train", "pixelcnn", "--data", "two-moons"), "pixelcnn learns images, two-moons holds vectors")
        assert fails(run("train", "nsf", "--data", "digits"), "nsf learns vectors, digits holds images")
        assert fails(run("train", "nsf", "--data", "x.csv"), "column 1 (a) is always 1, so it has no density")
        assert fails(run("train", "nsf", "--data", "x.npy"), "x.npy: vectors holds nan in row 1, column 1")
        assert fails(run("train", "nsf", "--data", "two-moons", "--size", 3), "size is 3, expected at least 10")
        assert fails(run("train", "nsf", "--data", "two-moons", "--channels", 3), "nsf has no argument channels")
        assert fails(run("train", "nsf", "--data", "two-moons", "--transforms", 0), "transforms")
        assert fails(run("train", "nsf", "--data", "two-moons", "--class-conditional"), "needs labels")
        Path("x.csv").write_text("a,b\n" + "1,2\n" * 20 + "3,four\n")
        assert fails(run("train", "nsf", "--data", "x.csv"), "x.csv, line 22, column 2 (b): 'four' is no finite number")

    def test_errors_in_sampling_and_evaluation(self, run, flow, trained):
        assert fails(run("sample", flow, "--compare"), "this one is a flow")
        assert fails(run("sample", flow, "--method", "naive"), "this one is a flow")
        assert fails(run("sample", flow, "--temperature", -1), "temperature")
        assert fails(run("sample", flow, "--temperature", "nan"), "temperature")
        assert fails(run("sample", trained, "--temperature", 0.5), "--temperature is for flows")
        assert fails(run("sample", trained, "--out", "x.csv"), "expected .png or .npy for images")
        assert fails(run("evaluate", flow, "--data", "digits"), "digits has images [1, 8, 8] of 17 levels", "on [2]")
        assert fails(run("evaluate", trained, "--data", "circles"), "circles has vectors [2]", "on [1, 4, 4] of 4")


class TestOtherCommands:
    def test_demo(self, run):
        status, output, errors = run("demo", "--epochs", 1, "--quiet")
        assert status == 0, errors
        assert "independent pixels" in output and "runs/demo/samples.png" in output and "ratio" in output
        assert run("train", "--resume", "runs/demo", "--quiet", "--epochs", 1)[0] == 0, "a demo is a run like any other"

    @pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["evaluate"], ["demo"]])
    def test_help_teaches(self, run, command):
        status, output, _ = run(*command, "--help")
        assert status == 0
        assert len(output.splitlines()) < 100
        assert command == ["demo"] or "examples:" in output

    def test_help_names_every_model(self, run):
        from fastgen.models import MODELS

        assert all(name in run("train", "--help")[1] for name in MODELS)

    def test_unknown_command(self, run):
        assert fails(run("trian"), "invalid choice: 'trian'", "train")
        assert fails(run(), "COMMAND")

    @pytest.mark.parametrize("command", ["info", "bench"])
    def test_what_a_command_returns_is_the_exit_status(self, run, monkeypatch, command):
        def instead(args):
            print(args.json)
            return 3

        monkeypatch.setattr(f"fastgen.cli.{command}.run", instead)
        value = ["x"] if command == "bench" else []
        assert run(command, "--json", *value) == (3, f"{value[0] if value else True}\n", "")

    def test_a_missing_package_is_named(self, run, monkeypatch):
        def missing(_):
            raise ModuleNotFoundError("No module named 'tqdm'", name="tqdm")

        monkeypatch.setattr("fastgen.cli.demo.run", missing)
        assert fails(run("demo"), "the package tqdm is missing: pip install 'fastgen[train]'")


class TestFullDisk:
    COMMAND = ["train", "pixelcnn", "--epochs", 2, "--batch-size", 30, "--save-every", 1, "--out", "x", *SMALL]

    @pytest.mark.parametrize("at", [1, 8, 15, 22, 37])
    def test_training_says_what_is_safe_and_goes_on_from_there(self, run, data, trained, monkeypatch, at):
        """Each file that is written is one call of `fsync`, and a checkpoint seven."""
        calls = []

        def full(descriptor):
            calls.append(descriptor)
            if len(calls) >= at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            status, output, errors = run(*self.COMMAND, "--data", data)
        assert (status, output) == (2, "") and "Traceback" not in errors
        said = errors.splitlines()[-1]
        assert said.startswith("fastgen: error: x/") and "No space left on device" in said
        assert not [path for path in Path("x").rglob("*") if path.name.startswith(".")], "nothing half-written"
        if at <= 7:
            assert "nothing was saved yet: make room and start again" in said and not list(Path("x").iterdir())
            return
        assert "in x/last is whole: make room and go on with: fastgen train --resume x" in said
        step = json.loads(Path("x/last/state.json").read_text())["step"]
        assert f"the checkpoint of step {step} " in said
        assert run("train", "--resume", "x", "--quiet")[0] == 0
        resumed = json.loads(Path("x/metrics.json").read_text())
        assert run(*self.COMMAND, "--data", data, "--overwrite")[0] == 0
        unbroken = json.loads(Path("x/metrics.json").read_text())
        assert (resumed["history"], resumed["final"]) == (unbroken["history"], unbroken["final"])

    @pytest.mark.parametrize(
        "command",
        [
            ["sample", "FLOW", "--out", "x.png"],
            ["sample", "FLOW", "--out", "x.npy"],
            ["sample", "FLOW", "--out", "x.csv"],
            ["sample", "TRAINED", "--out", "x.png"],
            ["fid", "digits", "--features", "pixels", "--save", "x.npz"],
            ["dynamics", "--steps", 3, "--out", "x.png"],
        ],
    )
    def test_every_file_is_written_in_whole_or_not_at_all(self, run, trained, flow, command):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            result = run(*({"FLOW": flow, "TRAINED": trained}.get(word, word) for word in command))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert fails(result, f"{command[-1]}: File too large") and not list(Path().iterdir())

    def test_names_of_files_in_capitals(self, run, trained, flow):
        commands = {
            "X.PNG": ["sample", trained, "--out"],
            "X.Npy": ["sample", flow, "--out"],
            "X.CSV": ["sample", flow, "--out"],
            "Y.PNG": ["dynamics", "--steps", 3, "--out"],
            "X.NPZ": ["fid", "digits", "--features", "pixels", "--save"],
        }
        for name, command in commands.items():
            assert run(*command, name)[0] == 0 and Path(name).exists(), name
        assert run("fid", "X.NPZ", "X.NPZ")[0] == 0 and len(np.load("X.Npy")) == 5000

    def test_a_folder_in_the_place_of_a_file(self, run, trained, flow):
        for name in ("x.png", "x.npz"):
            Path(name).mkdir()
        for command in (["sample", trained], ["sample", flow], ["dynamics"]):
            assert fails(run(*command, "--out", "x.png"), "x.png is a folder, expected the name of a file")
        assert fails(run("fid", "digits", "--features", "pixels", "--save", "x.npz"), "x.npz is a folder")


class TestProcesses:
    """What needs a process of its own."""

    def start(self, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fastgen", *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def started(self, out, *arguments):
        """A process that has written a checkpoint of the second epoch or later."""
        running = self.start(*arguments)
        deadline = time.monotonic() + 120
        while not (out / "metrics.json").exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return running

    def test_stopped_and_killed_runs_go_on_as_if_nothing_had_happened(self, data, tmp_path):
        command = ["train", "pixelcnn", "--data", data, "--epochs", 25, "--batch-size", 4, "--save-every", 10, *SMALL]
        assert main([*map(str, command), "--out", str(tmp_path / "unbroken")]) == 0

        out = tmp_path / "broken"
        running = self.started(out, *command, "--out", out)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
        assert running.returncode == 130, errors
        assert errors.splitlines()[-1].endswith(f"Go on with: fastgen train --resume {out}")
        assert "Traceback" not in errors

        before = (out / "metrics.json").stat().st_mtime_ns
        running = self.start("train", "--resume", out, "--quiet")
        while running.poll() is None and (out / "metrics.json").stat().st_mtime_ns == before:
            time.sleep(0.005)
        running.kill()
        running.communicate(timeout=60)

        running = self.start("train", "--resume", out, "--quiet")
        _, errors = running.communicate(timeout=120)
        assert running.returncode == 0, errors
        unbroken, broken = (json.loads((path / "metrics.json").read_text()) for path in (tmp_path / "unbroken", out))
        assert (unbroken["history"], unbroken["final"]) == (broken["history"], broken["final"])

    def test_a_second_run_in_one_folder_is_refused_until_the_first_is_gone(self, run, data, tmp_path):
        out = tmp_path / "shared"
        command = ["train", "pixelcnn", "--data", data, "--epochs", 1000, "--batch-size", 4, "--out", out, *SMALL]
        first = self.started(out, *command)
        refusal = f"another run is training in {out}: wait for it, or go elsewhere (--out)"
        try:
            for more in ([], ["--overwrite"], ["--resume"]):
                assert fails(run(*command, *more), refusal)
            assert fails(run("train", "--resume", out), refusal)
            # To look at what it has is no harm.
            assert run("sample", out, "-n", 1)[0] == 0
        finally:
            first.kill()
            _, errors = first.communicate(timeout=60)
        assert "Traceback" not in errors and "rror" not in errors
        assert run("train", "--resume", out, "--epochs", 1, "--quiet")[0] == 0
        assert sorted(path.name for path in out.iterdir()) == ["best", "last", "metrics.json", "samples.png"]

    def test_help_imports_no_large_packages(self):
        code = "import sys, fastgen.cli as c; c.parser().format_help(); print(sorted(sys.modules))"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        output = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert "'fastgen.cli.train'" in output
        for package in ("torch", "numpy", "accelerate", "sklearn", "matplotlib", "PIL", "tqdm"):
            assert f"'{package}'" not in output, package
