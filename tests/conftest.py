"""What every test shares: Triton in its interpreter, uninitialised memory full of NaN, fixed seeds."""

import gc
import importlib.util
import os

import pytest

# Before anything imports a Triton kernel: without a GPU they all run in the interpreter, on CPU tensors.
if not os.environ.get("FASTGEN_TEST_GPU"):
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from fastgen.conformance.kernels import round_to_bfloat16_as_hardware_does

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    round_to_bfloat16_as_hardware_does()


def pytest_collection_finish(session):
    """Takes out of the garbage collector's sight what lives until the end: modules and thousands of tests."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory():
    """Every fresh tensor, in Python and in C++, starts as NaN (or the largest integer), so an unwritten output
    shows.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder; gives its status, its output and its errors."""
    from fastgen.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run
