"""Every decision of `count_within` is that of float64, in little memory; prdc's metrics follow from it."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.conformance import best_capability, running_on
from fastgen.ops import ball_counts, ball_counts_reference, count_within, knn

VARIANTS = ["cpp/AVX2"] + ["cpp/AVX512"] * (best_capability() == "AVX512")


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


@pytest.fixture(params=["reference", *VARIANTS])
def backend(request):
    with running_on(request.param) if "/" in request.param else fastgen.use_backend(request.param):
        yield request.param


def exact_distances(queries: Tensor, points: Tensor, dtype: torch.dtype) -> Tensor:
    """By differences in float64, rounded once."""
    difference = queries.double().unsqueeze(-2) - points.double().unsqueeze(-3)
    return difference.square().sum(-1).sqrt().to(dtype)


@pytest.mark.parametrize("offset", [0.0, 3000.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_decision_is_that_of_float64(variant: str, offset: float):
    """Radii that are themselves distances: many pairs lie nearer to a radius than a product in float32 can tell."""
    queries, points = offset + randn(130, 12), offset + randn(150, 12)
    distances = exact_distances(queries, points, torch.float32)
    point_radii = distances.kthvalue(20, 0).values
    query_radii = distances.kthvalue(30, 1).values
    # Just less, just as much and just more than a distance.
    step = torch.arange(150) % 3 - 1
    point_radii = torch.where(step == 0, point_radii, torch.nextafter(point_radii, step * torch.tensor(torch.inf)))
    with running_on(variant):
        found = ball_counts(queries, points, query_radii, point_radii)
        alone = count_within(queries, points, point_radii)
    held, reached = distances <= point_radii, distances <= query_radii[:, None]
    assert torch.equal(found.query_covered, held.sum(1)) and torch.equal(alone, held.sum(1))
    assert torch.equal(found.query_members, reached.sum(1)) and (found.query_members == 30).all()
    assert torch.equal(found.point_covered, reached.sum(0))
    assert torch.equal(found.point_members, held.sum(0))
    assert torch.equal(found.point_members, 20 + step.clamp(max=0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kth_neighbour_is_within_its_distance(variant: str):
    """A radius from `knn` holds the neighbour it is of, and strictly less than the radius does not."""
    points = randn(300, 20)
    with running_on(variant):
        radii = knn(points, points, 4)[0][:, -1]
        assert (ball_counts(points, points, radii, radii).point_members == 4).all()
        strict = torch.nextafter(radii, torch.tensor(-1.0))
        assert (ball_counts(points, points, strict, strict).point_members == 3).all()


@pytest.mark.parametrize("n", [50, 700])
def test_prdc_is_its_definition(backend, n: int):
    real, fake, k = randn(n, 9, dtype=torch.float64), 0.9 * randn(n + 7, 9, dtype=torch.float64), 3
    real_radii = knn(real, real, k, exclude_self=True)[0][:, -1]
    fake_radii = knn(fake, fake, k, exclude_self=True)[0][:, -1]
    found = ball_counts(fake, real, fake_radii, real_radii)
    distances = torch.cdist(real, fake, compute_mode="donot_use_mm_for_euclid_dist")
    within = distances <= real_radii[:, None]
    assert torch.equal(found.query_covered > 0, within.any(0))
    assert torch.equal(found.point_covered > 0, (distances <= fake_radii).any(1))
    assert torch.equal(found.query_covered, within.sum(0))
    assert torch.equal(found.point_members > 0, distances.min(1).values <= real_radii)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_any_scale(backend, scale: float):
    queries, points = randn(40, 3) * scale, randn(50, 3) * scale
    distances = exact_distances(queries, points, torch.float64)
    radii = (distances.median(0).values * 1.01).float()
    expected = (distances <= radii.double()).sum(1)
    if backend == "reference":
        queries, points = queries.double(), points.double()
    assert torch.equal(count_within(queries, points, radii), expected)


def test_zero_infinite_and_not_a_number(backend):
    points = randn(70, 3)
    queries = torch.cat([points[:60], randn(9, 3)])
    assert count_within(queries, points, torch.zeros(70)).tolist() == [1] * 60 + [0] * 9
    queries[3, 1] = torch.nan
    assert count_within(queries, points, torch.full((70,), torch.inf)).tolist() == [70] * 3 + [0] + [70] * 65


def test_dense_counts_of_many_threads():
    queries, points = randn(2000, 4), randn(1500, 4)
    radii = torch.full((2000,), 2.0), torch.full((1500,), 2.5)
    before, expected = torch.get_num_threads(), ball_counts_reference(queries, points, *radii)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found = ball_counts(queries, points, *radii)
        # A pair within rounding of a radius may go either way in the reference.
        assert all(torch.equal(a, b) for a, b in zip(found, ball_counts(queries, points, *radii), strict=True))
        assert all((a - b).abs().max() <= 1 for a, b in zip(found, expected, strict=True))
    torch.set_num_threads(before)


def test_batches_broadcast(backend):
    queries, points, radii = randn(4, 1, 6, 2), randn(3, 9, 2), torch.rand(4, 3, 9) * 2
    found = count_within(queries, points, radii)
    assert found.shape == (4, 3, 6) and found.dtype == torch.int64
    for i in range(4):
        for j in range(3):
            assert torch.equal(found[i, j], count_within(queries[i, 0], points[j], radii[i, j]))


def test_memory_is_that_of_the_arguments():
    queries, points, radii = torch.randn(20_000, 16), torch.randn(20_000, 16), torch.full((20_000,), 1.0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        count_within(queries, points, radii)
    allocated = sum(max(0, e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    assert allocated <= queries.numel() * 4


def test_the_reference_goes_in_chunks(monkeypatch):
    args = randn(40, 3), randn(30, 3), torch.rand(40), torch.rand(30)
    found = []
    for chunk in (2**22, 100):
        monkeypatch.setattr(sys.modules[count_within.__module__], "CHUNK", chunk)
        found.append(ball_counts_reference(*args))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


BAD = [
    ({"radii": torch.ones(4)}, ValueError, r"radii: expected \[..., N\] = \[..., 5\], one for each of points, got"),
    ({"radii": torch.tensor(1.0)}, ValueError, r"radii: expected \[..., N\] = .*got \(\)"),
    ({"radii": -torch.ones(5)}, ValueError, "radii: expected numbers that are not negative, got -1.0"),
    ({"radii": torch.full((5,), torch.nan)}, ValueError, "radii: expected numbers that are not negative, got nan"),
    ({"radii": torch.ones(5, dtype=torch.int64)}, TypeError, "radii: expected a floating dtype"),
    ({"radii": 1.0}, TypeError, "radii: expected a tensor, got float"),
    ({"radii": torch.ones(3, 5), "points": torch.zeros(2, 5, 2)}, ValueError, "batch dimensions that broadcast"),
    ({"points": torch.zeros(5, 3)}, ValueError, r"queries: expected \[..., M, 3\] as points, got \(4, 2\)"),
    ({"points": torch.full((5, 2), torch.inf)}, ValueError, r"points: expected finite .* at \[0, 0\], in 5 rows"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change: dict, error: type, message: str):
    arguments = {"queries": torch.zeros(4, 2), "points": torch.zeros(5, 2), "radii": torch.ones(5), **change}
    with pytest.raises(error, match=message):
        count_within(**arguments)


def test_bad_radii_of_both():
    with pytest.raises(ValueError, match=r"query_radii: expected \[..., M\] = \[..., 4\], one for each of queries"):
        ball_counts(torch.zeros(4, 2), torch.zeros(5, 2), torch.ones(5), torch.ones(5))
