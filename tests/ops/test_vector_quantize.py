"""Nearest codes are those of float64, counts and sums exact, gradients straight through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen import conformance as c
from fastgen.ops import code_perplexity, residual_vector_quantize, vector_quantize

VARIANTS = sorted({variant for op, variant in c.variants("cpu") if op.name == "vector_quantize"})


@pytest.fixture(params=["reference", *VARIANTS])
def backend(request):
    with fastgen.use_backend("reference") if request.param == "reference" else c.running_on(request.param):
        yield request.param


def truth(x: Tensor, codebook: Tensor) -> Tensor:
    """The lowest index of the smallest squared distance, in float64."""
    squared = (x.double().unsqueeze(1) - codebook.double()).square().sum(-1)
    return (squared == squared.amin(1, keepdim=True)).int().argmax(1)


def hard_codes(kind: str) -> tuple[Tensor, Tensor]:
    """Vectors whose nearest code a product in float32 gets wrong."""
    n, k = 400, 70
    if kind == "far from the origin":
        x, codebook = 1e4 + torch.randn(n, 16), 1e4 + torch.randn(k, 16)
    elif kind == "codes nearly twice":
        codebook = torch.randn(k // 2, 24) * 30
        codebook = torch.cat([codebook, codebook * (1 + 1e-7 * torch.randn(k // 2, 24))])
        x = codebook[torch.randint(k, (n,))] + 1e-3 * torch.randn(n, 24)
    elif kind == "codes twice":
        codebook = torch.randn(k // 2, 9).repeat(2, 1)
        x = torch.randn(n, 9)
    elif kind == "half way":
        codebook = torch.randint(-3, 4, (k, 4)).float()
        x = torch.randint(-6, 7, (n, 4)) / 2
    elif kind == "one code at a great distance":
        codebook = torch.randn(k, 8) * 1e-3
        codebook[17] = 1e6
        x = torch.randn(n, 8) * 1e-3
    elif kind == "steps on a line":
        codebook = (1000 + torch.arange(k) * 2.0**-13).unsqueeze(1).expand(k, 3)
        x = 1000 + torch.rand(n, 1).expand(n, 3) * k * 2.0**-13
    elif kind == "tiny":
        x, codebook = torch.randn(n, 5) * 1e-25, torch.randn(k, 5) * 1e-25
    elif kind == "huge":
        x, codebook = torch.randn(n, 5) * 1e25, torch.randn(k, 5) * 1e25
    return x.contiguous(), codebook.contiguous()


KINDS = ["far from the origin", "codes nearly twice", "codes twice", "half way", "one code at a great distance",
         "steps on a line", "tiny", "huge"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_float64(backend, kind: str):
    x, codebook = hard_codes(kind)
    assert torch.equal(vector_quantize(x, codebook).indices, truth(x, codebook))


def test_a_product_alone_gets_them_wrong():
    """What the hard codes are hard for: else the test above would show nothing."""
    wrong = 0
    for kind in KINDS:
        x, codebook = hard_codes(kind)
        found = torch.addmm(codebook.square().sum(1), x, codebook.T, alpha=-2).argmin(1)
        wrong += not torch.equal(found, truth(x, codebook))
    assert wrong >= 4


def test_large_problem(backend):
    x, codebook = torch.randn(5000, 64), torch.randn(300, 64)
    found = vector_quantize(x, codebook)
    assert torch.equal(found.indices, truth(x, codebook))
    assert torch.equal(found.quantized, codebook[found.indices])


def test_counts_and_sums(backend):
    x, codebook = torch.randn(3, 50, 6), torch.randn(40, 6)
    _, indices, counts, sums = vector_quantize(x, codebook)
    assert torch.equal(counts, torch.bincount(indices.flatten(), minlength=40)) and counts.sum() == 150
    expected = torch.zeros(40, 6, dtype=torch.float64)
    for i, row in zip(indices.flatten(), x.view(-1, 6), strict=True):
        expected[i] += row.double()
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-6)


def test_sums_of_one_code_that_has_everything(backend):
    x = torch.full((100_000, 1), 0.1)
    _, _, counts, sums = vector_quantize(x, torch.tensor([[5.0], [0.0]]))
    assert counts.tolist() == [0, 100_000] and sums[0] == 0
    # The kernel adds up in double; the others where PyTorch adds one row after another.
    tolerance = 1e-6 if backend.startswith("cpp") else 1e-3
    assert abs(float(sums[1]) / (100_000 * float(x[0])) - 1) < tolerance


def test_gradient_goes_straight_through(backend):
    x, codebook = torch.randn(4, 5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    found = vector_quantize(x, codebook)
    grad = torch.randn(4, 5, 3)
    assert torch.equal(*torch.autograd.grad(found.quantized, x, grad, retain_graph=True), grad)
    assert not found.indices.requires_grad and not found.counts.requires_grad and not found.sums.requires_grad
    # Twice: what is behind has a second derivative, what is straight through has none of its own.
    (first,) = torch.autograd.grad(found.quantized.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, 6 * found.quantized)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(found.quantized.sum(), codebook)


def test_a_vector_that_is_not_finite_has_no_code(backend):
    x, codebook = torch.randn(70, 3), torch.randn(40, 3)
    x[7, 1], x[69, 0], x[20, 2] = torch.nan, torch.inf, -torch.inf
    quantized, indices, counts, sums = vector_quantize(x, codebook)
    assert (indices < 0).nonzero().flatten().tolist() == [7, 20, 69] and indices.min() == -1
    assert quantized.isnan().all(1).nonzero().flatten().tolist() == [7, 20, 69]
    assert counts.sum() == 67 and sums.isfinite().all()
    finite = indices >= 0
    assert torch.equal(indices[finite], truth(x[finite], codebook))


def test_half_types_decide_as_float32(backend):
    x, codebook = torch.randn(30, 4).bfloat16(), torch.randn(40, 4)
    found, wide = vector_quantize(x, codebook), vector_quantize(x.float(), codebook)
    assert found.quantized.dtype == torch.bfloat16 and found.sums.dtype == torch.float32
    assert torch.equal(found.indices, wide.indices) and torch.equal(found.quantized, wide.quantized.bfloat16())


def test_threads_change_nothing():
    x, codebook = torch.randn(3000, 20), torch.randn(70, 20)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(vector_quantize(x, codebook))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


def test_memory_is_that_of_the_answer():
    x, codebook = torch.randn(20_000, 8), torch.randn(1000, 8)
    vector_quantize(x, codebook)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        vector_quantize(x, codebook)
    allocated = sum(max(0, e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    assert allocated <= x.nbytes + 8 * 20_000 + codebook.nbytes + 8 * 1000 + 1000


def test_residual(backend):
    x, codebooks = (
        torch.randn(5, 9, 4, requires_grad=True),
        torch.randn(3, 20, 4) * torch.tensor([1, 0.5, 0.2]).view(3, 1, 1),
    )
    found = residual_vector_quantize(x, codebooks)
    residual = x.detach()
    for i, codebook in enumerate(codebooks):
        stage = vector_quantize(residual, codebook)
        assert torch.equal(found.indices[..., i], stage.indices) and torch.equal(found.counts[i], stage.counts)
        torch.testing.assert_close(found.sums[i], stage.sums)
        residual = residual - stage.quantized
    torch.testing.assert_close(found.quantized, x - residual)
    (grad,) = torch.autograd.grad(found.quantized.sum(), x)
    assert torch.equal(grad, torch.ones_like(x))
    # Every stage leaves less.
    errors = [
        float((x - residual_vector_quantize(x, codebooks[:q]).quantized).detach().square().mean()) for q in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2]
    same = residual_vector_quantize(x, list(codebooks))
    assert all(torch.equal(a, b) for a, b in zip(same, found, strict=True))


def test_perplexity():
    assert code_perplexity(torch.tensor([5, 5, 5, 5])) == 4
    assert code_perplexity(torch.tensor([7, 0, 0])) == 1
    both = code_perplexity(torch.tensor([[5, 5, 0], [9, 0, 0]]))
    torch.testing.assert_close(both, torch.tensor([2.0, 1.0]))
    assert code_perplexity(torch.zeros(3)).isnan()


BAD = [
    ({"codebook": torch.zeros(5, 3)}, ValueError, r"x: expected \[..., 3\] for codebook \(5, 3\), got \(4, 2\)"),
    ({"codebook": torch.zeros(5)}, ValueError, r"codebook: expected \[k, d\] with at least one code, got \(5,\)"),
    ({"codebook": torch.zeros(0, 2)}, ValueError, r"codebook: expected \[k, d\] with at least one code, got \(0, 2\)"),
    ({"codebook": torch.zeros(5, 2).int()}, TypeError, "codebook: expected a floating dtype, got torch.int32"),
    ({"codebook": [[0.0, 1.0]]}, TypeError, "codebook: expected a tensor, got list"),
    ({"codebook": torch.tensor([[0.0, torch.nan]])}, ValueError, r"codebook: expected finite numbers.*at \[0, 1\]"),
    ({"x": torch.zeros(4, 2).int()}, TypeError, "x: expected a floating dtype"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x: expected \[..., 2\]"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        vector_quantize(**{"x": torch.zeros(4, 2), "codebook": torch.zeros(5, 2), **change})


def test_bad_codebooks():
    with pytest.raises(ValueError, match="codebooks: expected at least one, got none"):
        residual_vector_quantize(torch.zeros(4, 2), [])
    with pytest.raises(ValueError, match=r"codebooks: expected one shape, got \[\(3, 2\), \(4, 2\)\]"):
        residual_vector_quantize(torch.zeros(4, 2), [torch.zeros(3, 2), torch.zeros(4, 2)])
