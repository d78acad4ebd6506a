"""What an installation contains, with and without a compiler, and that kernel objects stay private."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = [p for p in sorted(ROOT.glob("csrc/cpu/*.cpp")) if not p.stem.endswith("_register")]
KERNELS += sorted(ROOT.glob("csrc/sampling/*.cpp"))
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a person clones, so that building leaves nothing in this tree."""
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build.json", "results")
    for name in ("fastgen", "bench", "csrc", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    return tmp_path


def build_wheel(checkout: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", "out", "."]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTGEN_")}
    return subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, env={**clean, **environment}, timeout=200
    )


def test_without_a_compiler_the_wheel_holds_the_reference_and_says_why(checkout: Path):
    done = build_wheel(checkout, CXX="/nonexistent/c++", CC="/nonexistent/cc")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fastgen: _C not built: " in done.stdout + done.stderr
    (wheel,) = (checkout / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if n.endswith(".so")]
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"fastgen"}, "only fastgen is installed, never kernels"
    for room in (
        "ops/gated_activation.py",
        "_triton/gated_activation.py",
        "bench/__init__.py",
        "_build.json",
        "py.typed",
    ):
        assert f"fastgen/{room}" in names


def test_a_required_extension_that_cannot_be_built_is_an_error(checkout: Path):
    done = build_wheel(checkout, CXX="/nonexistent/c++", CC="/nonexistent/cc", FASTGEN_REQUIRE_EXT="1")
    assert done.returncode != 0
    assert "(FASTGEN_REQUIRE_EXT=1)" in done.stdout + done.stderr


def kernel_object(source: Path, isa: str, folder: Path) -> Path:
    """What the last build compiled of the source, or what is compiled now where the source is newer."""
    newest = max(path.stat().st_mtime for path in ROOT.glob("csrc/*/*"))
    for built in ROOT.glob(f"build/temp.*/{isa}/{source.relative_to(ROOT).with_suffix('.o')}"):
        if built.stat().st_mtime > newest:
            return built
    target = folder / f"{isa}.o"
    flags = ["-std=c++17", "-O1", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", f"-DFASTGEN_ISA={isa}"]
    flags += {"avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": AVX512}[isa]
    subprocess.run(["g++", "-c", str(source), "-o", str(target), *flags], check=True)
    return target


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("nm") is None, reason="needs g++ and nm")
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
@pytest.mark.parametrize("source", KERNELS, ids=lambda p: p.stem)
def test_kernel_objects_have_no_weak_symbols(source: Path, isa: str, tmp_path: Path):
    """A weak symbol compiled for AVX-512 could be the one the linker picks for a machine without it."""
    command = ["nm", "-C", str(kernel_object(source, isa, tmp_path))]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert not [line for line in symbols if " W " in line or " V " in line]
    exported = [line for line in symbols if " D " in line or " R " in line or " T " in line]
    assert exported and all(line.endswith(f"_{isa}") for line in exported)
