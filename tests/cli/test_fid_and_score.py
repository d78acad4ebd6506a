"""`fastgen fid` and `fastgen score` as a person meets them: what they print, what they write, how they fail."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.metrics import DensityCoverage, FrechetInceptionDistance, KernelInceptionDistance
from tests.command_errors import but_bias, fails


def pictures(n, seed, size=(6, 5), color=False):
    random = np.random.default_rng(seed)
    images = (255 * random.beta(1 + seed, 2, (n, *size, *([3] if color else [])))).astype(np.uint8)
    return images.transpose(0, 3, 1, 2) if color else images[:, None]


def write_folder(path, images):
    Path(path).mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(Path(path) / f"{i:03}.png")
    return path


@pytest.fixture
def folders(run):
    """Two folders of grey pictures, a and b."""
    return write_folder("a", pictures(40, 0)), write_folder("b", pictures(30, 1))


def found(result):
    status, output, errors = result
    assert (status, but_bias(errors)) == (0, ""), errors
    return json.loads(output)


PIXELS = ("--features", "pixels")


class TestFid:
    def test_of_folders(self, run, folders):
        status, output, errors = run("fid", *folders, *PIXELS)
        assert (status, but_bias(errors)) == (0, "")
        metric = FrechetInceptionDistance("pixels")
        metric.update(torch.from_numpy(pictures(40, 0)), real=True)
        metric.update(torch.from_numpy(pictures(30, 1)), real=False)
        assert float(output.split()[1]) == pytest.approx(metric.compute().item(), rel=1e-5)
        assert "pixels features; a: 40 images, b: 30 images" in output
        again = found(run("fid", *folders, *PIXELS, "--json", "--batch-size", 7))
        assert again["metrics"]["fid"] == pytest.approx(metric.compute().item(), rel=1e-9)
        assert (again["reference_count"], again["sample_count"]) == (40, 30)

    def test_statistics_are_kept_and_read(self, run, folders):
        whole = found(run("fid", *folders, *PIXELS, "--json"))["metrics"]["fid"]
        status, output, _ = run("fid", "a", *PIXELS, "--save", "a.npz")
        assert status == 0 and "statistics of a in a.npz" in output
        assert sorted(np.load("a.npz").files) == ["mu", "sigma"]
        assert found(run("fid", "a.npz", "b", *PIXELS, "--json"))["metrics"]["fid"] == pytest.approx(whole, rel=1e-9)
        run("fid", "b", *PIXELS, "--save", "b.npz")
        # Of statistics alone there is nothing to look at.
        assert found(run("fid", "a.npz", "b.npz", "--json"))["metrics"]["fid"] == pytest.approx(whole, rel=1e-9)

    def test_arrays_and_folders_agree(self, run, folders):
        whole = found(run("fid", *folders, *PIXELS, "--json"))["metrics"]["fid"]
        np.save("b.npy", pictures(30, 1))
        np.savez("b_last.npz", images=pictures(30, 1).transpose(0, 2, 3, 1))
        np.savez("b_unit.npz", images=pictures(30, 1) / 255)
        for name in ("b.npy", "b_last.npz", "b_unit.npz"):
            assert found(run("fid", "a", name, *PIXELS, "--json"))["metrics"]["fid"] == pytest.approx(whole, rel=1e-5)

    def test_color(self, run):
        write_folder("a", pictures(12, 0, color=True))
        np.save("b.npy", pictures(12, 1, color=True))
        metric = FrechetInceptionDistance("pixels")
        metric.update(torch.from_numpy(pictures(12, 0, color=True)), real=True)
        metric.update(torch.from_numpy(pictures(12, 1, color=True)), real=False)
        value = found(run("fid", "a", "b.npy", *PIXELS, "--json"))["metrics"]["fid"]
        assert value == pytest.approx(metric.compute().item(), rel=1e-9)

    def test_samples_take_the_levels_of_their_data(self, run):
        from fastgen.data.digits import digits

        np.save("samples.npy", digits().images[:500].numpy())
        value = found(run("fid", "digits", "samples.npy", *PIXELS, "--json"))["metrics"]["fid"]
        assert value < 0.2
        # As 256 levels they would be nearly black.
        np.savez("said.npz", images=digits().images[:500].numpy(), levels=256)
        assert found(run("fid", "digits", "said.npz", *PIXELS, "--json"))["metrics"]["fid"] > 5


class TestScore:
    def test_gives_the_numbers_of_the_metrics(self, run, folders):
        numbers = found(run("score", *folders, *PIXELS, "--json", "--metrics", "fid,kid,prdc,swd,cmmd", "--seed", 3))
        assert numbers["features"] == "pixels" and numbers["seed"] == 3
        numbers = numbers["metrics"]
        a, b = torch.from_numpy(pictures(40, 0)), torch.from_numpy(pictures(30, 1))
        for metric in (DensityCoverage("pixels"), KernelInceptionDistance("pixels", subset_size=30, seed=3)):
            metric.update(a, real=True)
            metric.update(b, real=False)
            value = metric.compute()
            value = value if isinstance(value, dict) else dict(zip(("kid", "kid_std"), value, strict=True))
            for name, expected in value.items():
                assert numbers[name] == pytest.approx(expected.item(), rel=1e-9, abs=1e-12), name
        assert set(numbers) == {
            *("fid", "kid", "kid_std", "precision", "recall", "density", "coverage", "sliced_wasserstein", "cmmd")
        }

    def test_the_same_seed_gives_the_same_numbers(self, run, folders):
        command = ("score", *folders, *PIXELS, "--metrics", "kid,swd", "--json")
        first, again, other = (run(*command, "--seed", seed) for seed in (1, 1, 2))
        assert first == again and found(first)["metrics"] != found(other)["metrics"]
        # In another order, and in other batches, too.
        write_folder("c", pictures(40, 0)[::-1])
        assert found(run("score", "c", "b", *command[3:], "--seed", 1, "--batch-size", 11))["metrics"] == pytest.approx(
            found(first)["metrics"], rel=1e-9
        )

    def test_prints_a_table(self, run, folders):
        status, output, errors = run("score", *folders, *PIXELS)
        assert (status, but_bias(errors)) == (0, "")
        lines = output.splitlines()
        assert lines[0] == "pixels features; a: 40 images, b: 30 images; seed 0"
        assert [line.split()[0] for line in lines[1:]] == ["fid", "kid", "precision", "recall", "density", "coverage"]

    def test_rows_of_features(self, run):
        random = np.random.default_rng(0)
        np.save("a.npy", random.normal(size=(50, 4)))
        np.savez("b.npz", features=random.normal(size=(40, 4)).astype(np.float32))
        numbers = found(run("score", "a.npy", "b.npz", "--json", "--metrics", "fid,prdc,parzen"))
        assert numbers["features"] == "given" and numbers["metrics"]["coverage"] > 0.8

    def test_classes(self, run):
        from fastgen.data.digits import digits

        images = digits()
        np.savez("x.npz", images=images.images[images.labels < 4][:200].numpy(), levels=17)
        numbers = found(run("score", "digits", "x.npz", "--features", "digits", "--metrics", "is,modes", "--json"))
        numbers = numbers["metrics"]
        assert numbers["modes"] in (4, 5) and numbers["classes"] == 10
        assert numbers["mode_kl"] == pytest.approx(np.log(10 / 4), abs=0.1)
        assert 3 < numbers["inception_score"] < 4.5


class TestFew:
    """Of a Fréchet distance of few examples the figure is given, and that it is biased."""

    SAID = "fastgen: warning: fid of 30 examples is biased upwards: compare it only with that of as many, or take 300"

    def test_fid(self, run, folders):
        for options in ((), ("--json",)):
            status, output, errors = run("fid", *folders, *PIXELS, *options)
            assert status == 0 and "fid" in output
            assert errors.startswith(self.SAID) and errors.count("\n") == 1 and "10 for each of 30 features" in errors
        run("fid", "a", *PIXELS, "--save", "a.npz")
        assert run("fid", "a.npz", "b", *PIXELS)[2].startswith(self.SAID)
        run("fid", "b", *PIXELS, "--save", "b.npz")
        assert run("fid", "a.npz", "b.npz")[2] == "", "of statistics nobody knows the number"

    def test_score(self, run, folders):
        assert run("score", *folders, *PIXELS)[2].startswith(self.SAID)
        assert run("score", *folders, *PIXELS, "--metrics", "kid,prdc")[2] == ""

    def test_enough_of_them(self, run):
        np.save("x.npy", np.random.default_rng(0).normal(size=(40, 4)))
        np.save("y.npy", np.random.default_rng(0).normal(size=(39, 4)))
        assert run("score", "x.npy", "x.npy", "--metrics", "fid")[2] == run("fid", "x.npy", "x.npy")[2] == ""
        assert "fid of 39 examples" in run("fid", "x.npy", "y.npy")[2]

    def test_the_bias_of_as_many_as_are_enough_is_small(self):
        """A twentieth of the variance of the features, and half of it where a tenth of them are there."""
        for rows, share in ((400, 0.055), (40, 0.55)):
            metric = FrechetInceptionDistance("given")
            for real in (True, False):
                metric.update(torch.randn(rows, 40, dtype=torch.float64), real=real)
            assert metric.compute().item() / 40 == pytest.approx(share, rel=0.2)


class TestErrors:
    def test_names(self, run, folders):
        assert fails(run("score", *folders, "--metrics", "fid,fod"), "no metric 'fod', expected some of: fid, kid")
        assert fails(run("score", *folders, "--metrics", ""), "no metric named")
        assert fails(run("score", *folders, *PIXELS, "--metrics", "is"), "metric 'is' needs features with classes")
        assert fails(run("fid", *folders, "--features", "nothing"), "features: no 'nothing'")
        assert fails(run("fid", "a", "nowhere", *PIXELS), "no folder or file nowhere")
        assert fails(run("fid", "a", *PIXELS), "B is missing")
        assert fails(run("fid", "a", *PIXELS, "--save", "a.txt"), "--save a.txt: expected a file that ends with .npz")
        assert fails(run("fid", "a", *PIXELS, "--save", "no/a.npz"), "no is no folder")

    def test_options(self, run, folders):
        for option, value in (("--batch-size", 0), ("--image-size", 0), ("--levels", 1), ("--seed", -1)):
            assert fails(run("fid", *folders, *PIXELS, option, value), f"{option} is {value}")

    def test_a_folder_without_pictures(self, run, folders):
        Path("empty").mkdir()
        (Path("empty") / "notes.txt").write_text("none")
        assert fails(run("fid", "a", "empty", *PIXELS), "empty holds no pictures")

    def test_a_truncated_picture(self, run, folders):
        broken = Path("b/007.png")
        broken.write_bytes(broken.read_bytes()[:60])
        assert fails(run("fid", "a", "b", *PIXELS), "b/007.png cannot be read as a picture", "--skip-bad")
        status, output, errors = run("fid", "a", "b", *PIXELS, "--skip-bad", "--json")
        assert status == 0 and json.loads(output)["sample_count"] == 29
        assert "passed over 1 of 30 pictures" in errors and "b/007.png" in errors
        whole = json.loads(output)["metrics"]["fid"]
        broken.unlink()
        assert found(run("fid", "a", "b", *PIXELS, "--json"))["metrics"]["fid"] == pytest.approx(whole, rel=1e-9)

    def test_nothing_but_bad_pictures(self, run, folders):
        for file in Path("b").iterdir():
            file.write_bytes(b"")
        assert fails(run("score", "a", "b", *PIXELS, "--skip-bad"), "b: no picture can be read")
        assert fails(run("fid", "a", "b", *PIXELS, "--skip-bad"), "b: no picture can be read")

    def test_pictures_of_several_sizes(self, run, folders):
        Image.new("L", (9, 9)).save("b/031.png")
        assert fails(run("fid", "a", "b", *PIXELS), "b/031.png is 9x9 but b/000.png is 5x6", "--image-size")
        assert found(run("fid", "a", "b", *PIXELS, "--image-size", 4, "--json"))["sample_count"] == 31

    def test_sets_of_different_size(self, run, folders):
        write_folder("large", pictures(9, 0, (8, 8)))
        assert fails(run("fid", "a", "large", *PIXELS), "features of different width: 30 (a) and 64 (large)")
        assert fails(run("score", "a", "large", *PIXELS), "features of different width: 30 of the reference, 64")

    def test_too_few(self, run, folders):
        write_folder("one", pictures(1, 0))
        assert fails(run("fid", "a", "one", *PIXELS), "at least 2 generated examples, got 1")
        assert fails(run("score", "a", "one", *PIXELS), "fid: expected at least 2 examples of the samples, got 1")
        write_folder("five", pictures(5, 0))
        assert fails(run("score", "a", "five", *PIXELS), "prdc: expected at least 6 examples of the samples, got 5")

    def test_statistics_files(self, run, folders):
        np.savez("half.npz", mu=np.zeros(30))
        assert fails(run("fid", "half.npz", "b", *PIXELS), "half.npz holds no sigma, expected mu and sigma")
        np.savez("other.npz", theta=np.zeros(30))
        assert fails(run("fid", "other.npz", "b", *PIXELS), "other.npz holds theta: expected statistics (mu and sigma)")
        np.savez("whole.npz", mu=np.zeros(30), sigma=np.eye(30))
        assert fails(run("score", "whole.npz", "b", *PIXELS), "whole.npz holds statistics, which only `fastgen fid`")
        np.savez("lopsided.npz", mu=np.zeros(30), sigma=np.triu(np.ones((30, 30))))
        assert fails(run("fid", "lopsided.npz", "b", *PIXELS), "symmetric")
        np.savez("narrow.npz", mu=np.zeros(3), sigma=np.eye(3))
        assert fails(run("fid", "narrow.npz", "b", *PIXELS), "features of different width: 3 (narrow.npz) and 30 (b)")

    def test_arrays(self, run, folders):
        np.save("x.npy", np.full((5, 4), np.nan))
        np.save("y.npy", np.zeros((5, 4)))
        assert fails(run("score", "x.npy", "y.npy"), "features: 5 of 5 rows hold NaN or infinity")
        np.save("z.npy", np.zeros((5, 4, 4), dtype=complex))
        assert fails(run("fid", "a", "z.npy", *PIXELS), "z.npy holds complex128 [5, 4, 4]")
        np.save("w.npy", np.full((5, 4, 4), 300))
        assert fails(run("fid", "a", "w.npy", *PIXELS), "images run from 300 to 300, expected 0 to 255")
        np.save("u.npy", np.full((5, 6, 5), 2.0))
        assert fails(run("fid", "a", "u.npy", *PIXELS), "floats in [0, 1], got 2 to 2")
        assert fails(run("fid", "a", "y.npy", *PIXELS), "one holds images and the other features")
        np.savez("v.npz", images=np.full((5, 6, 5), 9, dtype=np.uint8), levels=8)
        assert fails(run("fid", "a", "v.npz", *PIXELS), "v.npz holds the value 9, expected 0 to 7")
        Path("t.npy").write_bytes(Path("y.npy").read_bytes()[:100])
        assert fails(run("fid", "a", "t.npy", *PIXELS), "t.npy is not a whole NumPy file")
        Path("t.doc").touch()
        assert fails(run("fid", "a", "t.doc", *PIXELS), "expected a folder of pictures, an .npz or .npy file")

    def test_weights(self, run, folders):
        Path("w.pth").write_bytes(b"other weights")
        assert fails(run("fid", *folders, "--weights", "w.pth"), "w.pth has the SHA-256", "expected 6726825d")
        assert fails(run("fid", *folders, "--weights", "none.pth"), "no file none.pth")
        assert fails(run("fid", *folders, *PIXELS, "--weights", "w.pth"), "weights: they are Inception's")

    def test_without_torchmetrics(self, run, folders, monkeypatch):
        for name in [name for name in sys.modules if name.startswith(("fastgen.metrics", "torchmetrics"))]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "torchmetrics", None)
        assert fails(run("fid", *folders, *PIXELS), "torchmetrics is missing: pip install 'fastgen[metrics]'")


@pytest.mark.parametrize("command", ["fid", "score", "trilemma"])
def test_help_teaches(run, command):
    status, output, _ = run(command, "--help")
    assert status == 0 and "examples:" in output
    assert len(output.splitlines()) < 80 and all(len(line) <= 120 for line in output.splitlines())


def test_nothing_is_left_behind(run, folders):
    run("fid", "a", *PIXELS, "--save", "a.npz")
    shutil.rmtree("a")
    shutil.rmtree("b")
    assert [path.name for path in Path().iterdir()] == ["a.npz"]
