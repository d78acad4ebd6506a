"""`make gpu`: builds the CUDA kernels, runs the suite on the GPU, then the benchmarks, and leaves one JSON.

Runs with the Python that calls it and the packages it has; nothing is downloaded. Exits non-zero where there is no GPU,
where a test fails, or where a benchmark's correctness gate is red.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, **environment: str) -> int:
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode


def sanitizer() -> list[str]:
    """compute-sanitizer over the kernels on their samples, where the tool is installed."""
    found = shutil.which("compute-sanitizer")
    return [found, "--tool", "memcheck", "--error-exitcode", "1", "--launch-timeout", "120"] if found else []


def main() -> int:
    try:
        import torch
    except ImportError:
        print("make gpu: torch is not installed for this Python", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("make gpu: no NVIDIA GPU here (torch.cuda.is_available() is False)", file=sys.stderr)
        return 1
    major, minor = torch.cuda.get_device_capability()
    # 9.0a: the instructions of Hopper that later GPUs do not have.
    architecture = f"{major}.{minor}" + ("a" if (major, minor) == (9, 0) else "")
    python = sys.executable
    install = (python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--editable", ".")
    if failed := run(*install, FASTGEN_BUILD_CUDA="1", FASTGEN_REQUIRE_EXT="1", TORCH_CUDA_ARCH_LIST=architecture):
        return failed
    pytest = (python, "-m", "pytest")
    failures = run(*pytest, "-m", "gpu", FASTGEN_TEST_GPU="1")
    failures += run(*pytest, "tests/ops", "tests/sampling", "tests/models", "-m", "not gpu and not slow")
    if check := sanitizer():
        failures += run(*check, *pytest, "tests/ops/test_gpu.py", "-m", "gpu", "-k", "values", FASTGEN_TEST_GPU="1")
    failures += run(python, "-m", "fastgen", "bench", "--device", "cuda", "--json", "bench/results/")
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
