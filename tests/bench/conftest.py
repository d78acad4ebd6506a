"""An op that lives for one test, right or wrong, and a command that measures in this process."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from fastgen.bench import machine, measure
from fastgen.bench.suites import Options
from fastgen.cli import main
from fastgen.ops.registry import REGISTRY, Cost, Op, Sample, Tolerance


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Measurements take as few rounds as there may be, of few calls each."""
    monkeypatch.setattr(Options, "budget_s", 0.0)
    monkeypatch.setattr(measure, "_BLOCK_S", 1e-4)


@pytest.fixture
def make_op(monkeypatch):
    """Register an op `name` whose public function is `reference(x) * factor`; it is gone after the test."""

    def make(name: str = "test_tripling", factor: float = 1.0, passes=("forward", "forward_backward"), cases=1) -> Op:
        module = types.ModuleType(f"test_family_{name}")

        def reference(x):
            return 3 * x.sin()

        def public(x):
            op.choose((x,))
            return reference(x) * factor

        reference.__module__ = public.__module__ = module.__name__
        setattr(module, name, public)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        op = Op(
            name,
            schema=(),
            fake=(),
            reference=reference,
            supports={},
            dtypes={},
            samples=lambda device, dtype: [Sample("three", (torch.randn(3, device=device, dtype=dtype),))],
            cases=lambda device, dtype: [
                Sample(f"case {i}", (torch.randn(1000, device=device, dtype=dtype),)) for i in range(cases)
            ],
            tolerance={torch.float32: Tolerance(2, 1e-7)},
            cost=lambda pass_, x: Cost(bytes=2 * x.numel() * x.element_size(), flops=x.numel()),
            passes=passes,
        )
        made.append(name)
        return op

    made: list[str] = []
    yield make
    for name in made:
        del REGISTRY[name]


@pytest.fixture
def bench(monkeypatch, capsys):
    """`fastgen bench` in this process, which is left with its own threads: (exit status, stdout, stderr)."""
    for name, value in machine.settings(1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "pin", lambda threads: None)

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            status = main(["bench", *argv, "--threads", "1"])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run
