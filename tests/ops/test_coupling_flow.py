"""A chain of couplings in one kernel equals its layers for any sizes, and refuses a program that is not one."""

from __future__ import annotations

import pytest
import torch

import fastgen
from fastgen import conformance as c
from fastgen.ops.coupling_flow import coupling_flow, coupling_flow_reference, random_flow
from fastgen.ops.coupling_flow import program as fp

SPLINE = fp.Spline(8, "linear", 3.0, 1e-3, 1e-3, 1e-3)
SMALL = fp.Spline(3, "linear", 2.0, 1e-2, 1e-2, 1e-2)
CAPABILITIES = ["AVX2"] + ["AVX512"] * (c.best_capability() == "AVX512")
# Around the edges of register tiles (6 rows), of chunks (64 elements) and of cache tiles (96 rows).
BATCHES = (0, 1, 2, 5, 6, 7, 12, 13, 31, 64, 65, 95, 96, 97, 102, 103, 191, 192, 193, 200)


def kernel(capability: str, x, context, weights, program, inverse=False):
    with c.running_on(f"cpp/{capability}"):
        return coupling_flow(x, context, weights, program, inverse)


def assert_close(found, expected, tolerance: float):
    for value, true in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), true.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("features", "context"), [(6, 0), (5, 3)])
def test_every_batch_size_is_its_rows(capability, inverse, features, context, poisoned_memory):
    transforms = [SMALL, fp.Affine("sigmoid", 1e-3), SMALL]
    weights, program = random_flow(features, transforms, torch.float64, hidden=18, context=context, mixed=True)
    x = torch.randn(max(BATCHES), features, dtype=torch.float64)
    conditions = torch.randn(max(BATCHES), context, dtype=torch.float64) if context else None
    expected = coupling_flow_reference(x, conditions, weights, program, inverse)
    for batch in BATCHES:
        rows = None if conditions is None else conditions[:batch]
        found = kernel(capability, x[:batch], rows, weights, program, inverse)
        assert_close(found, [e[:batch] for e in expected], 1e-11)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("activation", fp.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations(capability, activation, dtype):
    weights, program = random_flow(4, [SMALL, fp.Affine("exp")], dtype, hidden=33, activation=activation, context=2)
    x, context = torch.randn(9, 4, dtype=dtype), torch.randn(9, 2, dtype=dtype)
    expected = coupling_flow_reference(x.double(), context.double(), weights.double(), program)
    assert_close(kernel(capability, x, context, weights, program), expected, 1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("hidden", [1, 15, 16, 17, 47, 63, 64, 65, 79, 128])
def test_widths_around_panels(capability, hidden):
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        weights, program = random_flow(3, [fp.Affine("tanh", 1.0)] * 2, dtype, hidden=hidden, blocks=None)
        x = torch.randn(13, 3, dtype=dtype)
        expected = coupling_flow_reference(x.double(), None, weights.double(), program)
        assert_close(kernel(capability, x, None, weights, program), expected, tolerance)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("num_bins", [2, 3, 8, 10, 33, 64])
@pytest.mark.parametrize("tails", ["linear", "circular"])
def test_bins_and_tails(capability, num_bins, tails):
    spline = fp.Spline(num_bins, tails, 1.5, 1e-3, 2e-3, 1e-2, softmax_scale=0.3)
    weights, program = random_flow(5, [spline] * 2, torch.float64, hidden=12)
    x = 1.2 * torch.randn(40, 5, dtype=torch.float64)
    assert_close(
        kernel(capability, x, None, weights, program), coupling_flow_reference(x, None, weights, program), 1e-10
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_nan_stays_in_its_row(capability):
    weights, program = random_flow(6, [SPLINE, fp.Affine("exp")] * 2, torch.float32, context=2, mixed=True)
    x, context = torch.randn(97, 6), torch.randn(97, 2)
    clean = kernel(capability, x, context, weights, program)
    for poisoned, row in ((x, 50), (context, 95)):
        poisoned[row, 1] = float("nan")
    found = kernel(capability, x, context, weights, program)
    bad = torch.tensor([50, 95])
    assert all(value[bad].isnan().any() for value in found) and found[1][bad].isnan().all()
    good = torch.ones(97, dtype=torch.bool).index_fill(0, bad, False)
    assert all(torch.equal(value[good], before[good]) for value, before in zip(found, clean, strict=True))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_infinite_and_far_inputs_go_through_the_tails(capability):
    weights, program = random_flow(2, [SPLINE], torch.float32, blocks=0)
    x = torch.tensor([[0.1, float("inf")], [0.1, -3e38], [0.1, 3.0], [0.1, -3.0], [0.1, 3.0000002]])
    y, logabsdet = kernel(capability, x, None, weights, program)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=0)
    assert logabsdet.isfinite().all() and logabsdet[0] == logabsdet[1] == logabsdet[4] == 0


def test_inverse_undoes_forward():
    transforms = [SPLINE, fp.Affine("tanh", 1.0)] * 2
    weights, program = random_flow(7, transforms, torch.float64, context=2, mixed=True, scale=0.4)
    x, context = torch.randn(33, 7, dtype=torch.float64), torch.randn(33, 2, dtype=torch.float64)
    y, forward = coupling_flow(x, context, weights, program)
    back, inverse = coupling_flow(y, context, weights, program, True)
    assert_close((back, inverse), (x, -forward), 1e-9)


def test_logabsdet_is_that_of_the_jacobian():
    weights, program = random_flow(5, [SMALL, fp.Affine("sigmoid", 1e-3)], torch.float64, mixed=True)
    x = torch.randn(3, 5, dtype=torch.float64)
    _, logabsdet = coupling_flow(x, None, weights, program)
    jacobian = torch.autograd.functional.jacobian(lambda v: coupling_flow(v, None, weights, program)[0].sum(0), x)
    expected = torch.linalg.slogdet(jacobian.movedim(1, 0)).logabsdet
    torch.testing.assert_close(logabsdet, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inverse", [False, True])
# Rows for a team of threads, and rows for threads of their own.
@pytest.mark.parametrize("batch", [1, 3, 301])
# More threads than most test machines have cores: a team whose members wait for each other parts.
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(batch, inverse, threads):
    transforms = [SPLINE, fp.Affine("tanh", 1.0), SPLINE, fp.Affine("exp")]
    weights, program = random_flow(
        9, transforms, torch.float32, hidden=128, context=3, mixed=True, activation="elu", scale=0.5
    )
    x, context = torch.randn(batch, 9), torch.randn(batch, 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = coupling_flow(x, context, weights, program, inverse)
        torch.set_num_threads(threads)
        for _ in range(20):
            found = coupling_flow(x, context, weights, program, inverse)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_a_recorded_gradient_goes_through_the_reference():
    weights, program = random_flow(4, [SMALL], torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    choices = fastgen.explain(coupling_flow, x, None, weights, program)
    assert choices[0].backend == "reference" and "gradient" in choices[0].reasons["cpp"]
    assert torch.autograd.gradcheck(lambda v: coupling_flow(v, None, weights, program), (x,))


@pytest.mark.parametrize("value", [-1, 7, 2**31, 2**62, -(2**62)])
def test_a_program_never_makes_the_kernel_read_outside(value):
    """Whichever word is wrong, the call raises or returns: the sanitisers and the allocator see the rest."""
    x, context = torch.randn(7, 4), torch.randn(7, 2)
    weights, program = random_flow(4, [SMALL, fp.Affine("exp")], torch.float32, hidden=9, context=2, mixed=True)
    refused = 0
    for word in range(len(program)):
        wrong = program.clone()
        wrong[word] = value
        try:
            for inverse in (False, True):
                operator = torch.ops.fastgen.coupling_flow.cpp
                y, logabsdet = operator(x, context, weights, wrong, inverse)
                assert y.shape == x.shape and logabsdet.shape == (7,)
        except RuntimeError as error:
            assert "coupling_flow" in str(error)
            refused += 1
    # Flags, offsets within the weights and columns within the state may be other valid numbers.
    assert refused > len(program) / (4 if value == 7 else 2)


@pytest.mark.parametrize("length", [0, 1, 3, 6, 20, 60])
def test_a_program_that_ends_early_is_refused(length):
    weights, program = random_flow(4, [SMALL] * 2, torch.float32)
    with pytest.raises(RuntimeError, match="coupling_flow: program"):
        torch.ops.fastgen.coupling_flow.cpp(torch.randn(2, 4), None, weights, program[:length].contiguous(), False)
    with pytest.raises(RuntimeError, match="coupling_flow: program: an offset outside the weights"):
        torch.ops.fastgen.coupling_flow.cpp(torch.randn(2, 4), None, weights[:-16].contiguous(), program, False)


@pytest.mark.parametrize(
    ("replaced", "error", "message"),
    [
        ({"x": torch.zeros(2, 3)}, ValueError, r"x: expected \[batch, 4\], got \(2, 3\)"),
        ({"x": torch.zeros(2, 4, 1)}, ValueError, r"x: expected \[batch, features\], got \(2, 4, 1\)"),
        ({"x": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "x: expected float32 or float64"),
        ({"x": torch.zeros(2, 4, dtype=torch.float64)}, TypeError, "weights: expected torch.float64"),
        ({"context": None}, ValueError, r"context: expected \[2, 3\], got None"),
        ({"context": torch.zeros(1, 3)}, ValueError, r"context: expected \[2, 3\], got \(1, 3\)"),
        ({"context": torch.zeros(2, 3, dtype=torch.float64)}, TypeError, "context: expected torch.float32"),
        ({"program": torch.zeros(9)}, TypeError, "program: expected an int64 vector on the CPU"),
    ],
)
def test_bad_arguments(replaced, error, message):
    weights, program = random_flow(4, [SMALL], torch.float32, context=3)
    arguments = {"x": torch.zeros(2, 4), "context": torch.zeros(2, 3), "weights": weights, "program": program}
    with pytest.raises(error, match=message):
        coupling_flow(**arguments | replaced)
