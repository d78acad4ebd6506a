"""The campaign of drawn calls: a short one of every op, and that it sees, survives, shrinks and resumes."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import time
import types

import pytest
import torch
from torch import Tensor

from fastgen.conformance import fuzz
from fastgen.conformance.guard import Guarded
from fastgen.conformance.trial import draw_trial
from fastgen.ops.registry import REGISTRY, Cost, Op, Sample, Tolerance

OPS = list(REGISTRY)


@pytest.fixture
def make_op(monkeypatch):
    """Register an op whose public function is `kernel`, held to 3 sin x; it is gone after the test."""

    def make(kernel) -> str:
        module = types.ModuleType("test_family_fuzzed")

        def reference(x: Tensor) -> Tensor:
            return 3 * x.sin()

        def public(x: Tensor) -> Tensor:
            op.choose((x,))
            return kernel(x)

        reference.__module__ = public.__module__ = module.__name__
        module.test_fuzzed = public
        monkeypatch.setitem(sys.modules, module.__name__, module)
        op = Op(
            "test_fuzzed",
            schema=(),
            fake=(),
            reference=reference,
            supports={},
            dtypes={},
            samples=lambda device, dtype: [
                Sample(f"{n}x3", (torch.randn(n, 3, device=device, dtype=dtype),)) for n in (4, 5, 9)
            ],
            cases=lambda device, dtype: [],
            tolerance={torch.float32: Tolerance(2, 1e-6)},
            cost=lambda pass_, x: Cost(0, 1),
        )
        return op.name

    yield make
    REGISTRY.pop("test_fuzzed", None)


def campaign(*arguments: object) -> int:
    return fuzz.main([str(argument) for argument in arguments])


def _backends(op: str) -> str:
    """Those whose kernels are tried by themselves: an op has no other."""
    return next(b for b in ("cpp", "library", "reference") if b in REGISTRY[op].backends)


@pytest.mark.parametrize("op", OPS)
def test_some_calls_of_every_op_are_right(op: str, capsys):
    status = campaign("--op", op, "--backend", _backends(op), "--calls", 20, "--seed", 1)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert printed.out.endswith("nothing wrong\n")


@pytest.mark.parametrize("op", OPS)
def test_calls_of_every_op_are_of_many_shapes_and_settings(op: str):
    """An op without a `draw` is varied from its samples; most of either are calls that it takes."""
    backend = _backends(op)
    shapes, settings = set(), set()
    for number in range(60):
        case = draw_trial(REGISTRY[op], backend, 0, number).case
        tensors = [v for v in (*case.args, *case.kwargs.values()) if isinstance(v, Tensor)]
        shapes.add(tuple(tuple(t.shape) for t in tensors))
        settings.add(repr([v for v in (*case.args, *case.kwargs.items()) if not isinstance(v, Tensor)]))
    assert len(shapes) >= 20, f"{len(shapes)} shapes"
    parameters = inspect.signature(REGISTRY[op].public).parameters.values()
    keywords = [p for p in parameters if any(kind in str(p.annotation) for kind in ("bool", "int", "float", "str"))]
    assert len(settings) >= 3 or not keywords, f"{len(settings)} settings"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_million_calls(capsys, tmp_path):
    status = campaign("--calls", 1_000_000 // len(OPS), "--state", tmp_path / "state.json")
    assert status == 0, capsys.readouterr().err


def test_a_wrong_op_is_seen_and_shrunk(make_op, capsys):
    op = make_op(lambda x: 3 * x.sin() + 1e-3 * (x.shape[0] >= 3))
    assert campaign("--op", op, "--backend", "reference", "--calls", 40) == 1
    out, err = capsys.readouterr()
    assert " wrong" in out and "WRONG test_fuzzed reference: output 0: error" in err
    # Three rows are wrong and two are not.
    assert "fastgen.ops.test_fuzzed(torch.tensor([" in err and ".reshape((3, 1))" in err
    number = err.split("--only ")[1].split()[0]
    assert campaign("--op", op, "--backend", "reference", "--only", number) == 1
    assert "wrong" in capsys.readouterr().out


def crash(x: Tensor) -> Tensor:
    if x.shape[-1] > 6:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 3 * x.sin()


def hang(x: Tensor) -> Tensor:
    if x.shape[-1] > 6:
        time.sleep(60)
    return 3 * x.sin()


def read_beyond(x: Tensor) -> Tensor:
    x.as_strided((x.numel() + 1,), (1,)).sum()
    return 3 * x.sin()


@pytest.mark.parametrize(("kernel", "how"), [(crash, "crashes: SIGSEGV"), (hang, "hangs: no result after 1 s")])
def test_a_crash_and_a_hang_do_not_end_the_campaign(make_op, capsys, kernel, how):
    op = make_op(kernel)
    assert campaign("--op", op, "--backend", "reference", "--calls", 8, "--limit", 1, "--seed", 3) == 1
    out, err = capsys.readouterr()
    assert f"WRONG test_fuzzed reference: {how}" in err and "fastgen.ops.test_fuzzed(torch." in err
    assert out.splitlines()[1].split()[2] == "8"


def test_one_element_too_many_is_a_crash(make_op, capsys):
    op = make_op(read_beyond)
    assert campaign("--op", op, "--backend", "reference", "--calls", 4, "--limit", 5) == 1
    assert "crashes: SIG" in capsys.readouterr().err


def test_a_campaign_goes_on_where_it_stopped(make_op, capsys, tmp_path):
    op, state = make_op(lambda x: 3 * x.sin()), tmp_path / "runs" / "state.json"
    arguments = ("--op", op, "--backend", "reference", "--state", state)
    assert campaign(*arguments, "--calls", 15) == 0
    assert campaign(*arguments, "--calls", 40) == 0
    once = json.loads(state.read_text())
    assert once["done"] == {"test_fuzzed/reference": 40} and not list(state.parent.glob("*.partial"))
    assert campaign("--op", op, "--backend", "reference", "--calls", 40, "--state", tmp_path / "other.json") == 0
    other = json.loads((tmp_path / "other.json").read_text())
    for tallies in (once["tallies"], other["tallies"]):
        tallies["test_fuzzed reference"].pop("seconds")
    assert once == other
    assert campaign(*arguments, "--seed", 1) == 2
    state.write_text("{}")
    assert campaign(*arguments) == 2
    assert capsys.readouterr().err.count("fuzz: ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--op", "nothing"), "--op: no op 'nothing'"), (("--backend", "tpu"), "--backend: expected cpp")],
)
def test_wrong_arguments(arguments, message, capsys):
    assert campaign(*arguments) == 2
    assert message in capsys.readouterr().err


def test_guarded_tensors_are_the_same_numbers():
    place = Guarded(1)
    for tensor in (torch.randn(5, 7), torch.randn(7, 5).t(), torch.randn(3, 1).expand(3, 4), torch.randn(9)[::2]):
        for at_end in (False, True):
            held = place.hold(tensor, at_end=at_end)
            assert torch.equal(held, tensor) and held.stride() == tensor.stride()
    too_large = torch.zeros(5000)
    assert place.hold(too_large, at_end=True) is too_large
