"""`fastgen compare`, on flows of a small table that are trained in seconds."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from tests.command_errors import fails

COMMAND = ("compare", "nsf", "maf", "--data", "table.npy", "--epochs", 1, "-n", 40, "--device", "cpu", "--quiet")
OUT = Path("runs/compare-table")


@pytest.fixture(autouse=True)
def table(run):
    """A table of 400 rows in the folder of the command."""
    rows = np.random.default_rng(0).standard_normal((400, 2))
    np.save("table.npy", rows + 3 * np.sign(rows))


def trained(errors):
    """The lines that training prints, one for each epoch."""
    return [line for line in errors.splitlines() if line.startswith("epoch 1/1")]


def test_trains_and_tabulates_and_does_not_train_again(run):
    status, output, errors = run(*COMMAND, "--seeds", 1, "--json", "one.json")
    assert status == 0 and len(trained(errors)) == 2
    first = OUT / "nsf-0" / "metrics.json"
    written = first.stat().st_mtime_ns
    status, output, errors = run(*COMMAND, "--seeds", 2, "--json", "two.json")
    assert status == 0 and len(trained(errors)) == 2 and Path("compare.png").stat().st_size > 10_000
    assert first.stat().st_mtime_ns == written
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    for before, after in zip(one["families"], two["families"], strict=True):
        assert (len(before["runs"]), len(after["runs"]), len(after["seconds"])) == (1, 2, 2)
        # The other seed is another training, beside the same held-out examples.
        assert after["runs"][0]["fid"] == pytest.approx(before["runs"][0]["fid"])
        assert after["runs"][1]["fid"] != after["runs"][0]["fid"]
    mean = statistics.fmean(corner["fid"] for corner in two["families"][0]["runs"])
    (line,) = (line for line in output.splitlines() if line.startswith("nsf  "))
    assert f" {mean:,.3g} (" in line
    configs = [json.loads((OUT / f"nsf-{seed}" / "best" / "config.json").read_text()) for seed in (0, 1)]
    assert configs[0]["dataset"] == configs[1]["dataset"] and configs[1]["settings"]["seed"] == 1


def test_a_comparison_that_was_stopped_goes_on(run):
    assert run(*COMMAND, "--seeds", 1)[0] == 0
    finished = OUT / "maf-0" / "metrics.json"
    metrics = json.loads(finished.read_text())
    finished.write_text(json.dumps({**metrics, "final": None}))
    status, output, errors = run(*COMMAND, "--seeds", 1)
    assert status == 0 and not trained(errors)
    assert "maf, seed 0" in output and "nsf, seed 0" not in output
    assert json.loads(finished.read_text())["final"] == metrics["final"]


def test_errors(run):
    rest = ("--data", "table.npy")
    assert fails(run("compare", "nsf", "nosuch", *rest), "no model 'nosuch': expected some of:")
    assert fails(run("compare", "nsf", "nsf", *rest), "a model stands twice")
    assert fails(run("compare", "nsf", *rest, "--seeds", 0), "--seeds is 0, expected at least 1")
    assert fails(run("compare", "pixelcnn", *rest), "pixelcnn learns images")
    assert fails(run("compare", "nsf", *rest, "--picture", "x.txt"), "expected a file that ends with")
