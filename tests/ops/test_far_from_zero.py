"""Numbers far from zero, in float32: what depends on differences alone is as exact there, for every op and kernel."""

from __future__ import annotations

import functools
from itertools import combinations

import pytest
import torch
from torch import Tensor

from fastgen import conformance as c
from fastgen.ops import kde_log_density, kde_log_density_reference
from fastgen.ops.registry import REGISTRY, Op, Sample

FAR = 1e5


def moved(sample: Sample, places: tuple[int, ...], by: float) -> Sample:
    args = tuple(a + by if i in places else a for i, a in enumerate(sample.args))
    return sample._replace(args=args)


def has(sample: Sample, places: tuple[int, ...]) -> bool:
    return max(places) < len(sample.args) and all(isinstance(sample.args[i], Tensor) for i in places)


def small_samples(op: Op, drawn: list[Sample]) -> list[Sample]:
    sizes = [[t.numel() for t in c.floating(s.args)] for s in drawn]
    kept = [s for s, n in zip(drawn, sizes, strict=True) if all(n) and sum(n) < 3000]
    return [s for s in kept if "extreme" not in s.name and "saturated" not in s.name]


@functools.cache
def invariant_places(op: Op) -> tuple[int, ...]:
    """The arguments that can all be moved by a number with which each result moves too, or does not change."""
    with torch.random.fork_rng():
        samples = small_samples(op, list(op.samples("cpu", torch.float64)))[:6]
    floating = [i for i, a in enumerate(samples[0].args) if isinstance(a, Tensor) and a.is_floating_point()]

    def changes(places: tuple[int, ...]) -> bool:
        for sample in samples:
            if not has(sample, places):
                continue
            try:
                pair = [c.as_tuple(op.reference(*s.args, **s.kwargs)) for s in (sample, moved(sample, places, 0.7))]
            except ValueError:
                return True
            for a, b in zip(*pair, strict=True):
                if not any(torch.allclose(a + by, b, rtol=1e-9, atol=1e-9) for by in (0, 0.7)):
                    return True
        return False

    for count in (2, 1):
        for places in combinations(floating, count):
            if not changes(places):
                return places
    return ()


# Their means are rounded to float32 far from zero, as PyTorch's are.
NORMALISATIONS = {"group_norm_silu", "norm_modulate"}
# Zuko's parameters are squashed, and say nothing far from zero.
SPLINES = {"rational_quadratic_spline"}
VARIANTS = [
    (op, v)
    for op, v in [*c.variants("cpu"), *((op, "reference") for op in c.EVERY_OP)]
    if op.name not in NORMALISATIONS | SPLINES
]


def test_ops_of_differences_are_found():
    for name in ("kde_log_density", "kde_score", "kde_log_densities", "knn", "count_within", "rbf_mmd"):
        assert invariant_places(REGISTRY[name]) == (0, 1)


@pytest.mark.parametrize(("op", "variant"), VARIANTS, ids=c.ids)
def test_values_and_gradients_far_from_zero(op: Op, variant: str):
    places, gradient, dtype = invariant_places(op), op.grad_order > 0, torch.float32
    if not places:
        pytest.skip("depends on more than differences")
    drawn = list(op.samples("cpu", dtype)) if variant == "reference" else c.samples(op, variant, dtype)
    samples = [s for s in small_samples(op, drawn) if has(s, places)]
    for sample in samples[:1] if variant == "triton" else samples:
        near = c.values_and_gradients(op.reference, sample, torch.float64, gradient=gradient)
        usual = c.values_and_gradients(op.reference, sample, dtype, gradient=gradient)
        sample = moved(sample, places, FAR)
        exact = c.values_and_gradients(op.reference, sample, torch.float64, gradient=gradient)
        with c.running_on(variant):
            found = c.values_and_gradients(op.public, sample, dtype, gradient=gradient)
        for i, (value, true, *before) in enumerate(zip(found, exact, usual, near, strict=True)):
            if not true.is_floating_point():
                assert torch.equal(value, true)
                continue
            finite = true.isfinite()
            error = c.relative_error(value[finite], true[finite])
            bound = 10 * c.relative_error(*(t[t.isfinite()] for t in before)) + 10 * op.tolerance[dtype].floor + 1e-6
            assert error <= bound, f"{op.name} {variant} {sample.name!r} result {i}: {error:.2e}, {bound:.2e}"


@pytest.mark.parametrize("kernel", ["gaussian", "exponential", "epanechnikov", "linear"])
@pytest.mark.parametrize("form", ["scalar", "diagonal", "adaptive", "full"])
def test_kde_of_groups_far_from_each_other(kernel: str, form: str):
    """No centre is near both of two groups, or near all where one point lies far off."""
    points = torch.cat([torch.randn(40, 3), 1e5 + torch.randn(39, 3), torch.full((1, 3), 1e12)])
    queries = torch.cat([torch.randn(5, 3), 1e5 + torch.randn(5, 3)])
    widths = 0.5 + torch.rand({"scalar": 1, "diagonal": 3, "adaptive": 80, "full": 3}[form])
    bandwidth = {"scalar": 0.8, "full": torch.diag(widths)}.get(form, widths)
    options = {"kernel": kernel, "bandwidth_form": form}
    truth = kde_log_density_reference(
        queries.double(), points.double(), bandwidth.double() if form != "scalar" else bandwidth, **options
    )
    found = kde_log_density(queries, points, bandwidth, **options)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-4)


def test_the_density_of_the_report():
    """Eight dimensions, 0.3 wide, a hundred thousand from zero."""
    queries, points = (1e5 + torch.randn(n, 8) for n in (20, 500))
    truth = kde_log_density_reference(queries.double(), points.double(), 0.3)
    assert (kde_log_density(queries, points, 0.3) - truth).abs().max() < 1e-4
