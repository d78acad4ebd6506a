"""`fastgen info` tells what runs here, and why the rest does not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from fastgen.cli.reports import installation
from fastgen.ops import extensions
from fastgen.ops.registry import REGISTRY


def test_every_op_and_backend_with_state_and_reason(run):
    status, out, _ = run("info")
    assert status == 0
    for word in ("versions", "torch", "devices", "cpu: ", "build", "transparent huge pages"):
        assert word in out
    for name, op in REGISTRY.items():
        block = out.split(f"\n{name} on cpu\n")[1].splitlines()[: len(op.backends)]
        states = {line.split()[0]: line.strip().split(maxsplit=1)[1] for line in block}
        assert list(states) == list(op.backends) and states["reference"] == "ready"


def test_json_has_the_same_states(run):
    status, out, _ = run("info", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["ops"].keys() == REGISTRY.keys()
    for name, op in REGISTRY.items():
        assert list(found["ops"][name]["cpu"]) == list(op.backends)


def test_a_ready_backend_really_ran_and_a_broken_one_says_so(monkeypatch):
    op = REGISTRY["gated_activation"]
    if extensions.UNUSABLE["cpp"]:
        pytest.skip(f"no CPU kernels here: {extensions.UNUSABLE['cpp']}")
    assert installation.backends(op, "cpu")["cpp"] == "ready"

    def broken(*args):
        raise RuntimeError("illegal instruction\nat line 3")

    monkeypatch.setitem(op.call["cpp"], "gated_activation", broken)
    assert installation.backends(op, "cpu")["cpp"] == "fails: illegal instruction"


def test_an_unusable_library_gives_its_reason(monkeypatch):
    monkeypatch.setitem(extensions.UNUSABLE, "cpp", "_C.so was not built: no compiler")
    assert installation.backends(REGISTRY["gated_activation"], "cpu")["cpp"] == "_C.so was not built: no compiler"


@pytest.mark.parametrize("build", [{}, {"isas": ["avx2"], "skipped": {"_C": "torch is not importable here"}}])
def test_an_install_without_kernels_says_how_to_get_them(monkeypatch, build):
    monkeypatch.setattr(installation, "build_report", lambda: build)
    out = installation.text(installation.report())
    assert "--no-build-isolation" in out and ("nothing was built" in out or "not built: _C (torch is not" in out)


def test_unknown_argument_is_one_line_and_exit_2(run):
    said = "fastgen info: error: unrecognized arguments: --everything (see fastgen info --help)\n"
    assert run("info", "--everything") == (2, "", said)


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "fastgen", "info", "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and json.loads(done.stdout)["ops"].keys() == REGISTRY.keys()
