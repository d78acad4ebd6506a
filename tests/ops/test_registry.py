"""Choosing, forcing and explaining kernels."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import threading

import pytest
import torch

import fastgen
from fastgen.ops import gated_activation


def test_explain_names_the_kernel_and_why_not_the_others():
    told = fastgen.explain(lambda x: gated_activation(gated_activation(x)), torch.randn(2, 8))
    assert [choice.op for choice in told] == ["gated_activation"] * 2
    assert {choice.backend for choice in told} == {"cpp"}
    assert "not triton: the tensors are on cpu" in str(told)
    assert str(fastgen.explain(torch.sin, torch.zeros(1))) == "no fastgen op was called"


def test_explain_tells_the_reference_for_a_dtype_without_a_kernel():
    (choice,) = fastgen.explain(gated_activation, torch.randn(2, 8, dtype=torch.float16))
    assert choice.backend == "reference"
    assert choice.reasons["cpp"] == "no kernel for torch.float16"


def test_use_backend_takes_the_first_that_can_run_and_restores():
    x = torch.randn(2, 8)
    with fastgen.use_backend("cuda", "reference"):
        assert fastgen.explain(gated_activation, x)[0].backend == "reference"
    assert fastgen.explain(gated_activation, x)[0].backend == "cpp"


def in_another_thread(function, *args):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def test_use_backend_and_explain_are_of_the_calling_thread():
    x = torch.randn(2, 8)

    def backend():
        return fastgen.explain(gated_activation, x)[0].backend

    def forced():
        with fastgen.use_backend("reference"):
            entered.set()
            assert left.wait(60)
            return backend()

    entered, left = threading.Event(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(forced)
        assert entered.wait(60)
        # The other thread is inside its block meanwhile.
        assert backend() == "cpp"
        left.set()
        assert other.result() == "reference"
    with fastgen.use_backend("reference"):
        assert in_another_thread(backend) == "cpp"
    # Another thread's calls are not in the explanation.
    assert not fastgen.explain(in_another_thread, gated_activation, x)


def test_a_compiled_function_follows_the_backend_of_its_thread():
    seen = []

    def backend(graph, _):
        seen.append(any("fastgen" in str(node.target) for node in graph.graph.nodes))
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: gated_activation(x), backend=backend, fullgraph=True)
    x = torch.randn(2, 8)
    compiled(x)
    with fastgen.use_backend("reference"):
        compiled(x)
        in_another_thread(compiled, x)
        compiled(x)
    compiled(x)
    # The kernel, the reference, and the kernel while another thread is held to the reference.
    assert seen == [True, False, True]


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match="expected one of cuda, triton, cpp, library, reference, got 'tpu'"),
        fastgen.use_backend("tpu"),
    ):
        pass


def test_a_tensor_subclass_takes_the_reference():
    class Tagged(torch.Tensor):
        pass

    (choice,) = fastgen.explain(gated_activation, torch.randn(2, 8).as_subclass(Tagged))
    assert choice.backend == "reference" and "tensor subclass" in choice.reasons["cpp"]


@pytest.mark.parametrize("named", ["reference", "cpp"])
def test_backend_from_the_environment(named: str, monkeypatch):
    monkeypatch.setenv("FASTGEN_BACKEND", named)
    code = "import torch, fastgen; print(fastgen.explain(fastgen.ops.gated_activation, torch.randn(2, 8))[0].backend)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == named


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FASTGEN_BACKEND", "tpu", "backend: expected one of"),
        ("FASTGEN_CPU_CAPABILITY", "sse", "FASTGEN_CPU_CAPABILITY: expected one of AVX2, AVX512"),
    ],
)
def test_wrong_environment_is_an_error_that_names_it(variable: str, value: str, message: str, monkeypatch):
    monkeypatch.setenv(variable, value)
    done = subprocess.run([sys.executable, "-c", "import fastgen.ops"], capture_output=True, text=True)
    assert done.returncode and message in done.stderr


def test_importing_fastgen_imports_neither_triton_nor_the_upper_floors():
    above = ("triton", "fastgen.models", "fastgen.train", "accelerate")
    code = f"import sys, fastgen; print([m for m in {above} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
