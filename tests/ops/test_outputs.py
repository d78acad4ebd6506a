"""What an op gives belongs to the caller: it can be written to, and nothing else changes with it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from fastgen import conformance as c
from fastgen.ops.registry import Op, Sample

VARIANTS = [(op, v) for op, v in c.variants("cpu") if v != "cpp/AVX2"] + [(op, "reference") for op in c.EVERY_OP]
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def write_to_each(outputs: tuple[Tensor, ...], others: list[Tensor]) -> None:
    """Of the outputs, and see that neither the others nor the rest of the outputs change."""
    for output in outputs:
        rest = [t for t in (*others, *outputs) if t is not output]
        before = [t.detach().clone() for t in rest]
        output.add_(1)
        for t, expected in zip(rest, before, strict=True):
            assert torch.equal(t.detach().nan_to_num(), expected.nan_to_num())


def small_samples(op: Op, variant: str) -> list[Sample]:
    drawn = list(op.samples("cpu", torch.float32)) if variant == "reference" else c.samples(op, variant, torch.float32)
    drawn = [s for s in drawn if sum(t.numel() for t in c.floating(s.args)) < 5000]
    # Triton's interpreter takes long.
    return drawn[:2] if variant == "triton" else drawn


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("op", "variant"), VARIANTS, ids=c.ids)
def test_outputs_can_be_written_to(op: Op, variant: str, mode: str):
    record = mode == "grad" and op.grad_order > 0
    for sample in small_samples(op, variant):
        with c.running_on(variant), MODES[mode]():
            args = [c.cast(a, torch.float32, record) for a in sample.args]
            # Not leaves, which nobody may write to.
            args = [a * 1 if isinstance(a, Tensor) and a.requires_grad else a for a in args]
            outputs = c.as_tuple(op.public(*args, **sample.kwargs))
            write_to_each(outputs, [a for a in args if isinstance(a, Tensor)])


@pytest.mark.parametrize("record", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("op", [op for op in c.EVERY_OP if not op.random], ids=c.ids)
def test_a_trace_is_plain_pytorch(op: Op, record: bool):
    """A graph of TorchScript knows an operator by its name and arguments, not by its backend: it gets the reference."""
    sample = next(s for s in small_samples(op, "reference") if all(t.numel() > 1 for t in c.floating(s.args)))
    places = [i for i, argument in enumerate(sample.args) if isinstance(argument, Tensor)]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        args = list(sample.args)
        for place, tensor in zip(places, tensors, strict=True):
            args[place] = tensor
        return (
            tuple(op.public(*args, **sample.kwargs))
            if isinstance(expected, tuple)
            else op.public(*args, **sample.kwargs)
        )

    tensors = [c.cast(sample.args[i], torch.float32, record and op.grad_order > 0) for i in places]
    expected = op.public(*sample.args, **sample.kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(run, tuple(tensors))
    assert "fastgen::" not in str(traced.inlined_graph) and "PythonOp" not in str(traced.inlined_graph)
    for value, usual in zip(c.as_tuple(traced(*tensors)), c.as_tuple(expected), strict=True):
        torch.testing.assert_close(value, usual, rtol=1e-4, atol=1e-5, equal_nan=True)
