"""`fastgen bench` as people call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fastgen.bench import machine
from fastgen.bench.command import DTYPES
from fastgen.bench.suites import AGAINST, SUITES
from fastgen.cli import bench as arguments
from fastgen.cli import main
from fastgen.ops.registry import BACKENDS, REGISTRY


def test_a_run_restarts_itself_with_its_memory_settings(tmp_path):
    file, chart = tmp_path / "rows.json", tmp_path / "bars.png"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "TRITON_"))}
    argv = ["gated_activation", "--quick", "--pass", "forward", "--threads", "1", "--against", "eager"]
    done = subprocess.run(
        [sys.executable, "-m", "fastgen.bench", *argv, "--json", str(file), "--plot", str(chart)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())
    assert row["malloc"] == {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "4294967296",
        "transparent_hugepage": row["malloc"]["transparent_hugepage"],
    }
    assert (row["op"], row["threads"], list(row["baselines"])) == ("gated_activation", 1, ["eager"])
    table = done.stdout.splitlines()
    assert table[0].startswith(row["machine"]) and "huge pages" in table[0]
    assert [line.index("forward") == table[2].index("pass") for line in table[3:]] == [True]
    assert f"{row['ratios']['eager']:.2f}x" in table[3] and f"{row['limit_fraction']:.0%} copy" in table[3]
    assert chart.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 2


def test_list_names_every_op_case_and_suite(bench):
    status, out, _ = bench("--list")
    assert status == 0
    for name in [*REGISTRY, *SUITES]:
        assert f"  {name}" in out
    assert "64x128x28x28, conditioned" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["gated_activatoin"], "did you mean gated_activation?"),
        (["nothing_like_it_at_all"], "there are "),
        (["--against", "friends"], "--against: expected some of eager,compile,peers, got 'friends'"),
        (["--backend", "openmp"], "--backend: expected some of auto,cuda"),
        (["--dtype", "float8"], "--dtype: expected some of float32"),
        (["--pass", "sideways"], "--pass: expected some of "),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--threads", "none"], "invalid int value: 'none'"),
        (["--json", "/dev/null/rows.json"], "its folder does not exist"),
        (["--plot", "chart.txt"], "expected a .png, .svg or .pdf"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_line_and_exit_2(bench, argv, words):
    status, out, err = bench(*argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fastgen bench: ") and words in err


def test_the_help_names_all_that_there_is():
    assert ",".join(AGAINST) == arguments.AGAINST and ",".join(DTYPES) == arguments.DTYPES
    assert ",".join(("auto", *BACKENDS)) == arguments.BACKENDS


@pytest.mark.parametrize(("said", "threads"), [("1", 1), ("3", 3), ("4,2", 4)])
def test_threads_are_those_of_the_environment(said, threads):
    assert machine.default_threads({"OMP_NUM_THREADS": said}) == threads


@pytest.mark.parametrize("environment", [{}, {"OMP_NUM_THREADS": ""}, {"OMP_NUM_THREADS": "many"}])
def test_threads_where_the_environment_says_none(environment):
    assert machine.default_threads(environment) == min(2, os.cpu_count() or 1)


def test_a_run_takes_the_threads_of_the_environment(bench, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(machine, "is_set", lambda threads: True)
    assert ", 1 threads, " in bench("gated_activation", "--quick", "--pass", "forward", "--against", "eager")[1]


def test_threads_below_one(capsys):
    assert main(["bench", "--threads", "0"]) == 2
    assert "--threads: expected at least 1, got 0" in capsys.readouterr().err


def test_some_cases_by_name(bench, make_op):
    make_op("test_cases", cases=12)
    status, out, _ = bench("test_cases", "--case", "case 1", "--pass", "forward", "--against", "eager", "--quick")
    assert status == 0 and "case 1 " in out and "case 0" not in out
    assert bench("test_cases", "--case", "nothing")[0] == 2


def test_a_backend_that_cannot_run_is_skipped_by_name(bench):
    status, out, err = bench("gated_activation", "--backend", "cuda", "--quick", "--pass", "forward")
    assert status == 0
    assert "skipped, gated_activation: cuda was asked for" in err and "time" not in out


def test_overhead_of_every_differentiable_op(bench, make_op, tmp_path):
    make_op()
    file = tmp_path / "rows.json"
    status, out, _ = bench("overhead", "--quick", "--json", str(file))
    rows = json.loads(file.read_text())
    assert status == 0
    assert {r["op"] for r in rows} == {f"overhead/{name}" for name, op in REGISTRY.items() if op.grad_order}
    for r in rows:
        difference = (r["median_s"] - r["baselines"]["eager"]) * 1e6
        assert r["metrics"]["overhead_us"] == pytest.approx(difference) and f"overhead_us {difference:.4g}" in out
