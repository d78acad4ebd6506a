"""A build that is damaged, or for something else, is told in one line, and the rest of the package works."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastgen.cli.reports import installation
from fastgen.ops import extensions
from fastgen.ops.extensions import PACKAGE, UNUSABLE, build_report, build_warning, library_damage

built = pytest.mark.skipif(not (PACKAGE / "_C.so").exists(), reason="no CPU kernels here")
LIBRARY = (PACKAGE / "_C.so").read_bytes() if (PACKAGE / "_C.so").exists() else b""


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A folder in the package's place."""
    monkeypatch.setattr(extensions, "PACKAGE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "content", [b"", b'{"isas": ["avx2"', b"[1, 2]", b"null", b'{"skipped": 3}', b"\xff\xfe\x00", b"{}\x00"]
)
def test_a_report_that_is_damaged(package, content):
    (package / "_build.json").write_bytes(content)
    assert build_report() == {}
    assert build_warning().startswith("_build.json") and build_warning().endswith(": build again")
    assert f"\n  {build_warning()}\n" in installation.text(installation.report())
    assert extensions._load("_C.so") == "_C.so was not built: the package was installed without it"


def test_a_report_that_nobody_may_read(package):
    (package / "_build.json").mkdir()
    assert build_report() == {} and build_warning().startswith("_build.json cannot be read (")


def test_a_build_for_another_torch(package):
    (package / "_build.json").write_text(json.dumps({"torch": "2.11.0+cpu"}))
    warning = f"built for torch 2.11.0+cpu, this is {torch.__version__}: build again"
    assert build_warning() == warning and f"\n  {warning}\n" in installation.text(installation.report())
    (package / "_C.so").write_bytes(b"nothing of the kind")
    assert extensions._load("_C.so").endswith(f"({warning})")
    # The same one for another device loads the same kernels.
    (package / "_build.json").write_text(json.dumps({"torch": torch.__version__.split("+")[0] + "+cu999"}))
    assert build_warning() == ""


def test_the_loaders_reason_is_kept(package, monkeypatch):
    def load_library(path):
        raise OSError(f"Could not load this library: {path}") from OSError(f"{path}: undefined symbol: aoti_torch_new")

    (package / "_C.so").write_bytes(LIBRARY)
    monkeypatch.setattr(torch.ops, "load_library", load_library)
    assert extensions._load("_C.so").startswith("_C.so does not load: ")
    assert "undefined symbol: aoti_torch_new" in extensions._load("_C.so")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_an_undefined_symbol(package):
    source = package / "broken.c"
    source.write_text("extern int missing_in_torch; int *there(void) { return &missing_in_torch; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", package / "_C.so", source], check=True)
    assert "undefined symbol: missing_in_torch" in extensions._load("_C.so")


@built
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.1, 0.5, 0.9])
def test_a_library_that_is_cut_short(package, share):
    """To open it would end the process."""
    (package / "_C.so").write_bytes(LIBRARY[: int(share * len(LIBRARY))])
    reason = extensions._load("_C.so")
    assert reason.startswith("_C.so does not load: ") and "\n" not in reason
    assert "cut short" in reason or "too short" in reason


@built
def test_a_library_of_another_machine(package):
    library = bytearray(LIBRARY)
    struct.pack_into("<H", library, 18, 183 if library[18] != 183 else 62)
    (package / "_C.so").write_bytes(library)
    assert "_C.so does not load: it is built for " in extensions._load("_C.so")
    (package / "_C.so").write_bytes(b"\xcf\xfa\xed\xfe" + bytes(200))
    assert "_C.so does not load: " in extensions._load("_C.so")


@built
def test_a_library_of_other_sources(monkeypatch):
    monkeypatch.setattr(extensions, "_OF_LIBRARY", ("_set_cpu_level", "_of_next_year"))
    assert extensions._load_cpu() == "_C.so was built from other sources, it has no _of_next_year: build again"


@built
def test_what_was_built_here_is_whole():
    for path in PACKAGE.glob("*.so"):
        assert library_damage(path) == ""


@built
def test_a_package_of_damaged_parts_is_imported(tmp_path):
    """All at once, in a process of its own: ops run their references, and `fastgen info` says why."""
    copy = tmp_path / "fastgen"
    # Where it is not installed, the Triton kernels lie elsewhere.
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "results"), symlinks=False)
    for path in (*copy.glob("*.so"), copy / "_build.json"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    script = """
import torch, fastgen
from fastgen.cli.reports import installation
from fastgen.sampling.run.native import why_unavailable
assert fastgen.__file__.startswith({root!r})
fastgen.ops.gated_activation(torch.randn(2, 8))
print(installation.text(installation.report()))
print(why_unavailable())
"""
    environment = {name: value for name, value in os.environ.items() if name != "FASTGEN_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", script.format(root=str(tmp_path))],
        env=environment | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "  _build.json cannot be read (" in done.stdout
    assert "_C.so does not load: it is cut short" in done.stdout
    assert "fastgen._host does not load: it is cut short" in done.stdout


def test_what_is_told_here():
    assert build_warning() == "" and not any("\n" in reason for reason in UNUSABLE.values())
