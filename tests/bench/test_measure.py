"""What the numbers mean: time, memory, limits, baselines, the machine's name."""

from __future__ import annotations

import time

import pytest
import torch

from fastgen.bench import baselines, machine, measure
from fastgen.bench.limits import limit, limit_methods
from fastgen.bench.measure import Timing, interleave, peak_bytes
from fastgen.conformance.calls import bind, copy_case, draw_output_gradients, with_gradients
from fastgen.ops.registry import Cost, Sample


def test_methods_are_interleaved_and_ranked():
    order = []

    def method(name: str, seconds: float):
        def call():
            order.append(name)
            time.sleep(seconds)

        return [call]

    methods = {"fast": method("fast", 4e-3), "slow": method("slow", 8e-3)}
    timings = interleave(methods, "cpu", budget_s=0, min_rounds=9)
    assert all(t.rounds == 9 and t.p20_s <= t.median_s <= t.p80_s for t in timings.values())
    assert timings["fast"].median_s >= 4e-3 and timings["slow"].median_s >= 8e-3
    # Each is called once before it is timed.
    rounds = [tuple(order[-36:][i : i + 4]) for i in range(0, 36, 4)]
    assert set(rounds) == {("fast", "fast", "slow", "slow"), ("slow", "slow", "fast", "fast")}


def test_a_first_call_is_cold_and_not_in_the_median():
    calls = {"warming": 0, "other": 0}

    def warming():
        # The first call after one of the other method is slow.
        time.sleep(9e-3 if calls["other"] != calls["warming"] else 4e-3)
        calls["warming"] = calls["other"]

    def other():
        calls["other"] += 1
        time.sleep(4e-3)

    timing = interleave({"warming": [warming], "other": [other]}, "cpu", budget_s=0, min_rounds=9)["warming"]
    assert timing.median_s < 8e-3 and timing.cold_s > 9e-3


def test_a_long_call_is_not_made_twice():
    calls = 0

    def long():
        nonlocal calls
        calls += 1
        time.sleep(60e-3)

    timing = interleave({"long": [long]}, "cpu", budget_s=0, min_rounds=3)["long"]
    assert timing.cold_s is None and calls == 2 + 3


def test_a_method_that_is_many_times_slower_is_in_three_rounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "_SLOW_S", 0.05)
    monkeypatch.setattr(measure, "_SLOW_RATIO", 3)
    methods = {"quick": [lambda: time.sleep(5e-3)], "slow": [lambda: time.sleep(0.15)]}
    timings = interleave(methods, "cpu", budget_s=0, min_rounds=5)
    assert timings["quick"].rounds == 5 and timings["slow"].rounds == 3 and timings["slow"].median_s >= 0.15
    both_slow = {name: [lambda: time.sleep(0.15)] for name in ("one", "other")}
    assert all(timing.rounds == 4 for timing in interleave(both_slow, "cpu", budget_s=0, min_rounds=4).values())


def test_short_calls_are_timed_in_blocks():
    calls = 0

    def call():
        nonlocal calls
        calls += 1

    timing = interleave({"short": [call]}, "cpu", budget_s=0, min_rounds=3)["short"]
    assert timing.median_s < 20e-6 and calls > 3 * 10


def test_peak_bytes_counts_what_lives_together():
    x = torch.randn(1 << 16)

    def counted(tensors: int):
        # The numbers in the expressions are tensors too, of a few bytes.
        return pytest.approx(tensors * x.nbytes, abs=64)

    assert peak_bytes(lambda: x + 1, "cpu") == counted(1)
    assert peak_bytes(lambda: (x + 1) * (x + 2), "cpu") == counted(3)
    # The first temporary is gone before the third is made.
    assert peak_bytes(lambda: ((x + 1) + 1) + 1, "cpu") == counted(2)
    assert peak_bytes(lambda: x.view(-1), "cpu") == 0


def test_the_limit_is_the_longer_of_copy_and_gemm():
    timings = {"copy": Timing(2.0, 2.0, 2.0, 1), "gemm": Timing(1.0, 1.0, 1.0, 1)}
    assert limit(Cost(bytes=8, flops=2 * 1024**3), "cpu", timings) == (2.0, "copy")
    assert limit(Cost(bytes=8, flops=6 * 1024**3), "cpu", timings) == (3.0, "gemm")
    assert list(limit_methods(Cost(bytes=800, flops=800), "cpu", torch.float32)) == ["copy"]
    assert list(limit_methods(Cost(bytes=800, flops=80000), "cpu", torch.float32)) == ["copy", "gemm"]


def test_a_pass_computes_the_gradients_that_the_case_asks_for():
    case = Sample("case", (torch.randn(4), torch.arange(4)), {"scale": torch.randn(4)})

    def function(x, index, *, scale, inverse=False):
        return x * scale if not inverse else x / scale

    assert len(bind(function, with_gradients(case, "forward"), "forward")()) == 1
    both = with_gradients(case, "forward_backward")
    (grad,) = draw_output_gradients(function, both, "forward_backward")
    output, grad_x, grad_scale = bind(function, both, "forward_backward", [grad])()
    assert torch.equal(grad_x, grad * case.kwargs["scale"]) and torch.equal(grad_scale, grad * case.args[0])
    (inverse,) = bind(function, with_gradients(case, "inverse"), "inverse")()
    assert torch.equal(inverse, case.args[0] / case.kwargs["scale"]) and not torch.equal(inverse, output)
    marked = Sample("case", (torch.randn(4).requires_grad_(), torch.arange(4)), {"scale": torch.randn(4)})
    assert len(bind(function, with_gradients(marked, "forward_backward"), "forward_backward", [grad])()) == 2


def test_a_copied_case_has_the_strides_and_not_the_memory():
    x = torch.randn(4, 6).t().requires_grad_()
    (copy,) = copy_case(Sample("case", (x,)), torch.float64).args
    assert copy.stride() == x.stride() and copy.dtype == torch.float64 and copy.requires_grad
    (again,) = copy_case(Sample("case", (x,))).args
    assert torch.equal(again, x) and again.data_ptr() != x.data_ptr()


def test_baselines_belong_to_the_op_they_are_named_after(make_op, monkeypatch, tmp_path):
    first, second = make_op("test_conv"), make_op("test_conv_step")
    second.reference.__module__ = first.family
    (tmp_path / f"{first.family}.py").write_text(
        "from math import sqrt\n"
        "def eager(x): ...\n"
        "def cropped(x): ...\n"
        "def test_conv_step_eager(x): ...\n"
        "def test_conv_other(x): ...\n"
        "def _helper(x): ...\n"
    )
    monkeypatch.setattr(baselines, "__path__", [str(tmp_path)])
    assert {name: f.__name__ for name, f in baselines.find(first).items()} == {
        "eager": "eager",
        "cropped": "cropped",
        "other": "test_conv_other",
    }
    assert {name: f.__name__ for name, f in baselines.find(second).items()} == {"eager": "test_conv_step_eager"}
    assert baselines.find(make_op("test_alone")) == {"eager": machine_reference("test_alone")}


def machine_reference(name: str):
    from fastgen.ops.registry import REGISTRY

    return REGISTRY[name].reference


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("AMD EPYC", "amd-epyc"),
        ("AMD EPYC 9654 96-Core Processor", "amd-epyc-9654"),
        ("Intel(R) Xeon(R) Processor @ 2.10GHz", "intel-xeon"),
        ("Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz", "intel-xeon-e5-2686-v4"),
        ("NVIDIA H200", "nvidia-h200"),
    ],
)
def test_machine_name(model, name, monkeypatch):
    monkeypatch.setattr(machine, "cpu_model", lambda: model)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert machine.machine_name("cpu") == f"{name}-2c"


def test_the_profiler_leaves_stderr_alone(capfd):
    measure.peak_bytes(lambda: torch.ones(3), "cpu")
    assert capfd.readouterr().err == ""
