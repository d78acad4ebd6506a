"""Every Triton and CUDA kernel compiles for the GPUs we name, on a machine without one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastgen.ops  # noqa: F401  (fills the registry)
from fastgen.ops.registry import REGISTRY

ROOT = Path(__file__).parents[2]
CUDA_SOURCES = sorted(ROOT.glob("csrc/cuda/*.cu"))
OTHERS = ("sm_80", "sm_100", "gfx942")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("target", "variants"),
    [
        ("sm_90", "all"),
        *((target, "first") for target in OTHERS),
        *(pytest.param(target, "all", marks=pytest.mark.slow) for target in OTHERS),
    ],
)
def test_triton_kernels_compile(target: str, variants: str):
    """Every variant of every kernel for one GPU, and one of every kernel for the others."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("triton_targets.py")
    command = [sys.executable, str(script), target, variants]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {op.family for op in REGISTRY.values() if "triton" in op.backends} <= {row["family"] for row in rows}
    assert not [row for row in rows if row["spilled"]]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("architecture", ["80", "90a"])
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda p: p.stem)
def test_cuda_sources_compile(source: Path, architecture: str, tmp_path: Path):
    include = Path(torch.__file__).parent / "include"
    command = ["nvcc", "-c", str(source), "-o", str(tmp_path / "out.o"), "-std=c++17", "-O3", "-DUSE_CUDA"]
    command += [
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-DTORCH_STABLE_ONLY",
        "-Xcompiler",
        "-fPIC",
        f"-I{include}",
    ]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xptxas", "-v"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    spills = re.findall(r"(\d+) bytes spill stores", done.stderr + done.stdout)
    assert spills and not any(int(n) for n in spills), "registers spill"
