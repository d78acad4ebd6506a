"""A kernel that is wrong is never timed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from fastgen.conformance.calls import draw_output_gradients, with_gradients
from fastgen.conformance.measure import Judge
from fastgen.ops.registry import Sample


def test_a_wrong_op_prints_no_speed_and_exits_1(make_op, bench, tmp_path):
    make_op(factor=1.0001)
    file = tmp_path / "rows.json"
    status, out, _ = bench("test_tripling", "--against", "eager", "--json", str(file))
    assert status == 1
    assert "RED: test_tripling, case 0, forward" in out and "bound" in out
    assert "time" not in out.replace("not timed", "") and not file.exists()


def test_a_wrong_op_does_not_hide_the_right_ones(make_op, bench):
    make_op("test_wrong", factor=1.0001)
    make_op("test_right")
    status, out, _ = bench("test_wrong", "test_right", "--against", "eager", "--quick")
    assert status == 1
    assert "RED: test_wrong" in out and "\ntest_right  case 0" in out and "\ntest_wrong" not in out


@pytest.mark.parametrize("broken", ["value", "gradient", "nan", "shape"])
def test_the_gate_sees(make_op, broken):
    class WrongGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return 3 * x.sin()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad * 3 * ctx.saved_tensors[0].cos() * 1.001

    kernels = {
        "value": lambda x: 3 * x.sin() + 1e-4,
        "gradient": WrongGradient.apply,
        "nan": lambda x: 3 * x.sin() + torch.tensor([float("nan")] + [0.0] * (len(x) - 1)),
        "shape": lambda x: (3 * x.sin())[None],
    }
    op = make_op()
    case = with_gradients(Sample("inputs", (torch.randn(50),)), "forward_backward")
    judge = Judge(op, case, "forward_backward", draw_output_gradients(op.reference, case, "forward_backward"))
    assert not judge.judge(op.public, torch.float32).wrong
    wrong = judge.judge(kernels[broken], torch.float32).wrong
    assert wrong.startswith({"gradient": "gradient 0: ", "shape": "fails: "}.get(broken, "output 0: "))


def test_rounding_of_the_inputs_is_no_error(make_op):
    """A reference may be lucky on the element that decides the norm: x = 1 comes out exact, its neighbours do not."""
    op = make_op()
    op.reference = lambda x: (x - 1) * 1e6 + 1
    judge = Judge(op, Sample("inputs", (torch.ones(3),)), "forward", [])
    rounding = torch.finfo(torch.float32).eps
    assert not judge.judge(lambda x: op.reference(x * (1 + rounding / 2)), torch.float32).wrong
    assert judge.judge(lambda x: op.reference(x) + 3e6 * rounding, torch.float32).wrong


def test_a_baseline_that_computes_something_else_is_left_out(make_op, bench, monkeypatch, tmp_path):
    make_op()
    monkeypatch.setattr(
        "fastgen.bench.baselines.find",
        lambda op: {"eager": op.reference, "other": torch.cos, "missing": _missing_library, "same": op.reference},
    )
    file = tmp_path / "rows.json"
    status, _, err = bench("test_tripling", "--against", "eager,peers", "--quick", "--json", str(file))
    assert status == 0
    assert "without other: its result is" in err and "without missing: no module named peer" in err
    assert list(json.loads(file.read_text())[0]["baselines"]) == ["eager", "same"]


def _missing_library(x):
    raise ImportError("no module named peer")
