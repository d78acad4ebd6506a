"""The contract of an op on a GPU: `make gpu` runs these, with Triton compiled and not interpreted."""

from __future__ import annotations

import pytest
import torch

from fastgen import conformance as c
from fastgen.ops.registry import Op, Sample

pytestmark = pytest.mark.gpu
VARIANTS = c.variants("cuda")


def first_sample(op: Op, variant: str, elements: int) -> Sample:
    """The first sample in which every tensor has at least so many elements."""
    samples = c.samples(op, variant, torch.float32, "cuda")
    return next(s for s in samples if all(t.numel() >= elements for t in c.floating(s.args)))


@pytest.mark.parametrize(
    ("op", "variant", "dtype"), [(op, v, d) for op, v in VARIANTS for d in c.dtypes(op, v)], ids=c.ids
)
def test_values_and_gradients(op: Op, variant: str, dtype: torch.dtype, poisoned_memory):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tolerance, gradient = op.tolerance[dtype], op.grad_order > 0
    for sample in c.samples(op, variant, dtype, "cuda"):
        with c.running_on(variant):
            found = c.values_and_gradients(op.public, sample, dtype, gradient=gradient)
        truth = c.values_and_gradients(op.reference, sample, torch.float64, gradient=gradient)
        plain = c.values_and_gradients(op.reference, sample, dtype, gradient=gradient)
        for value, true, usual in zip(found, truth, plain, strict=True):
            bound = tolerance.factor * c.relative_error(usual, true) + tolerance.floor
            assert c.relative_error(value, true) <= bound, f"{op.name} {variant} {dtype} {sample.name!r}"


@pytest.mark.parametrize(("op", "variant"), [p for p in VARIANTS if p[1] != "library"], ids=c.ids)
def test_replays_from_a_captured_graph(op: Op, variant: str):
    """Kernels run on the current stream: a graph captured on a side stream replays to the same numbers on new input."""
    sample = next(
        s for s in c.samples(op, variant, torch.float32, "cuda") if all(t.numel() for t in c.floating(s.args))
    )
    with c.running_on(variant), torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            op.public(*sample.args, **sample.kwargs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = op.public(*sample.args, **sample.kwargs)
        sample.args[0].mul_(0.5)
        graph.replay()
        direct = op.public(*sample.args, **sample.kwargs)
    for one, other in zip(c.as_tuple(captured), c.as_tuple(direct), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("op", "variant"), [p for p in VARIANTS if p[1] != "library"], ids=c.ids)
def test_compiles_as_one_graph(op: Op, variant: str):
    torch._dynamo.reset()
    sample = next(
        s for s in c.samples(op, variant, torch.float32, "cuda") if all(t.numel() > 1 for t in c.floating(s.args))
    )
    gradient = op.grad_order > 0
    with c.running_on(variant):
        compiled = torch.compile(op.public, fullgraph=True)
        found = c.values_and_gradients(compiled, sample, torch.float32, gradient=gradient)
        eager = c.values_and_gradients(op.public, sample, torch.float32, gradient=gradient)
    for value, usual in zip(found, eager, strict=True):
        torch.testing.assert_close(value, usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_offsets_beyond_two_to_the_31(backend: str):
    """The last elements of a tensor of more than 2^31 elements are computed, not written over the first ones."""
    from fastgen.ops import gated_activation

    x = torch.zeros(2, 2, 2**30, dtype=torch.bfloat16, device="cuda")
    x[1, :, -1] = 1.0
    with c.running_on(backend):
        y = gated_activation(x)
    expected = torch.tanh(torch.tensor(1.0)) * torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(y[1, 0, -1].float().cpu(), expected, rtol=1e-2, atol=0)
    assert not y[0, 0, -1]
