"""Neighbours are scikit-learn's in the order of float64, in memory of the answer's size."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.conformance import best_capability, running_on
from fastgen.ops import knn, knn_reference

VARIANTS = ["library", "cpp/AVX2"] + ["cpp/AVX512"] * (best_capability() == "AVX512")


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


@pytest.fixture(params=["reference", *VARIANTS])
def backend(request):
    with running_on(request.param) if "/" in request.param else fastgen.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("d", [1, 2, 16, 70])
def test_neighbours_of_scikit_learn(backend, d: int):
    neighbors = pytest.importorskip("sklearn.neighbors")
    queries, points = randn(70, d), randn(300, d)
    distances, indices = knn(queries, points, 5)
    theirs = neighbors.NearestNeighbors(n_neighbors=5, algorithm="brute").fit(points.numpy())
    expected, expected_indices = theirs.kneighbors(queries.numpy())
    torch.testing.assert_close(distances, torch.from_numpy(expected), rtol=1e-7, atol=0)
    assert torch.equal(indices, torch.from_numpy(expected_indices))


def truth(queries: Tensor, points: Tensor, k: int, **kwargs) -> tuple[Tensor, Tensor]:
    with fastgen.use_backend("reference"):
        return knn(queries.double(), points.double(), k, **kwargs)


def hard_points(kind: str) -> tuple[Tensor, Tensor, int]:
    """Points whose neighbours a product in float32 gets wrong: nearer to each other than their norms round."""
    n = 500
    if kind == "far from the origin":
        points = 1e4 + randn(n, 16)
    elif kind == "clusters":
        centres = randn(25, 40) * 30
        points = centres.repeat(n // 25, 1) + 1e-4 * randn(n, 40)
    elif kind == "near duplicates":
        half = randn(n // 2, 8) * 100
        points = torch.cat([half, half + 1e-4 * randn(n // 2, 8)])
    elif kind == "one point at a great distance":
        points = randn(n, 8) * 1e-3
        points[17] = 1e6
    elif kind == "steps on a line":
        points = (1000 + torch.arange(n, dtype=torch.float64) * 2**-13).unsqueeze(1).expand(n, 3)
    elif kind == "tiny":
        points = randn(n, 5) * 1e-25
    elif kind == "huge":
        points = randn(n, 5) * 1e25
    elif kind == "integers":
        points = torch.randint(4, (n, 3)).double()
    points = points.float()
    return points + 0.0, points, 7


KINDS = ["far from the origin", "clusters", "near duplicates", "one point at a great distance", "steps on a line",
         "tiny", "huge", "integers"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_order_is_that_of_float64(variant: str, kind: str, exclude_self: bool):
    """Not only the set: indices are equal, ties by the lower index included, and distances are rounded once."""
    queries, points, k = hard_points(kind)
    expected, expected_indices = truth(queries, points, k, exclude_self=exclude_self)
    with running_on(variant):
        distances, indices = knn(queries, points, k, exclude_self=exclude_self)
    assert torch.equal(indices, expected_indices)
    torch.testing.assert_close(distances.double(), expected, rtol=1.2e-7, atol=1e-45)


def test_a_product_alone_gets_them_wrong():
    """What the hard points are hard for: else the test above would show nothing."""
    wrong = 0
    for kind in KINDS[:6]:
        queries, points, k = hard_points(kind)
        centre = points.mean(0)
        q, x = queries - centre, points - centre
        found = torch.addmm(x.square().sum(1), q, x.T, alpha=-2).topk(k, largest=False).indices
        expected = truth(queries, points, k)[1]
        wrong += not torch.equal(found.sort(1).values, expected.sort(1).values)
    assert wrong >= 4


@pytest.mark.parametrize("k", [1, 5, 16, 17, 60, 400])
@pytest.mark.parametrize("n", [400, 3001])
def test_any_number_of_neighbours(backend, k: int, n: int):
    # The order of the reference in float32 is that of float32.
    dtype = torch.float64 if backend == "reference" else torch.float32
    queries, points = randn(65, 4, dtype=dtype), randn(n, 4, dtype=dtype)
    expected, expected_indices = truth(queries, points, k)
    distances, indices = knn(queries, points, k)
    assert torch.equal(indices, expected_indices)
    torch.testing.assert_close(distances.double(), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_many_queries_and_panels(variant: str):
    """More queries than are held at once, and more points than a panel has."""
    queries, points = randn(9000, 1, dtype=torch.float32), randn(50, 1, dtype=torch.float32)
    with running_on(variant):
        assert torch.equal(knn(queries, points, 3)[1], truth(queries, points, 3)[1])
        queries, points = randn(20, 30_000, dtype=torch.float32), randn(300, 30_000, dtype=torch.float32)
        assert torch.equal(knn(queries, points, 3)[1], truth(queries, points, 3)[1])


def test_points_that_all_coincide(backend):
    points = torch.full((100, 3), 7.5)
    distances, indices = knn(points, points, 4)
    assert not distances.any() and torch.equal(indices, torch.arange(4).expand(100, 4))
    distances, indices = knn(points, points, 2, exclude_self=True)
    assert indices[0].tolist() == [1, 2] and indices[1].tolist() == [0, 2] and indices[50].tolist() == [0, 1]


def test_not_a_number_stays_in_its_query(backend):
    queries, points = randn(70, 3, dtype=torch.float32), randn(40, 3, dtype=torch.float32)
    queries[7, 1], queries[69, 0] = torch.nan, torch.inf
    distances, indices = knn(queries, points, 2)
    assert distances.isnan().any(1).nonzero().flatten().tolist() == [7]
    assert indices[7].tolist() == [-1, -1] and (indices[8:] >= 0).all()
    assert distances[69].tolist() == [torch.inf] * 2 and indices[69].tolist() == [0, 1]


def test_batches_broadcast(backend):
    queries, points = randn(4, 1, 6, 2), randn(3, 9, 2)
    distances, indices = knn(queries, points, 2)
    assert distances.shape == indices.shape == (4, 3, 6, 2)
    for i in range(4):
        for j in range(3):
            one = knn(queries[i, 0], points[j], 2)
            assert torch.equal(distances[i, j], one[0]) and torch.equal(indices[i, j], one[1])


def test_gradients(backend):
    queries, points = randn(6, 3).requires_grad_(), randn(8, 3).requires_grad_()

    def distances(queries: Tensor, points: Tensor) -> Tensor:
        return knn(queries, points, 3)[0]

    assert torch.autograd.gradcheck(distances, (queries, points))
    assert torch.autograd.gradgradcheck(distances, (queries, points))
    # A query on a point: the distance of zero has gradient zero.
    on_points = points.detach()[:2].clone().requires_grad_()
    knn(on_points, points, 1)[0].sum().backward()
    assert not on_points.grad.any() and not points.grad.any()


def test_threads_change_nothing():
    queries, points = randn(700, 8, dtype=torch.float32), randn(900, 8, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((*knn(queries, points, 4), *knn(queries.view(70, 10, 8), points.view(9, 100, 8)[:1], 4)))
    torch.set_num_threads(before)
    for result in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, found[0], strict=True))


def test_memory_is_that_of_the_answer():
    queries, points = torch.randn(40_000, 2), torch.randn(40_000, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        knn(queries, points, 3)
    allocated = sum(max(0, e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    assert allocated <= 40_000 * 3 * 12 + 1000


def test_half_types_round_the_float32_answer():
    queries, points = randn(30, 4).bfloat16(), randn(40, 4).bfloat16()
    distances, indices = knn(queries, points, 3)
    expected = knn(queries.float(), points.float(), 3)
    assert distances.dtype == torch.bfloat16 and torch.equal(indices, expected[1])
    assert torch.equal(distances, expected[0].bfloat16())
    assert knn(queries, points.float(), 3)[0].dtype == torch.float32


BAD = [
    ({"k": 0}, ValueError, r"k: expected 1 to N = 5 for points \(5, 2\), got 0"),
    ({"k": 6}, ValueError, r"k: expected 1 to N = 5 for points \(5, 2\), got 6"),
    ({"k": 2.0}, TypeError, "k: expected an int, got float"),
    ({"k": True}, TypeError, "k: expected an int, got bool"),
    ({"points": torch.zeros(5, 3)}, ValueError, r"queries: expected \[..., M, 3\] as points, got \(4, 2\)"),
    ({"points": torch.zeros(5)}, ValueError, r"points: expected \[..., N, d\], got \(5,\); .*one dimension"),
    ({"points": torch.zeros(0, 2)}, ValueError, r"k: expected 1 to N = 0 for points \(0, 2\), got 1"),
    ({"queries": torch.zeros(4, 0), "points": torch.zeros(5, 0)}, ValueError, "points: expected at least one dim"),
    ({"queries": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "queries: expected a floating dtype"),
    ({"points": torch.zeros(5, 2, dtype=torch.int64)}, TypeError, "points: expected a floating dtype"),
    ({"points": [[0.0, 1.0]]}, TypeError, "points: expected a tensor, got list"),
    ({"points": torch.tensor([[0.0, torch.nan], [1.0, 0.0]])}, ValueError, r"points: .*NaN.* at \[0, 1\], in 1 row"),
    ({"queries": torch.zeros(3, 4, 2), "points": torch.zeros(2, 5, 2)}, ValueError, "batch dimensions that broadcast"),
    ({"exclude_self": True}, ValueError, r"queries: with exclude_self they are the points, expected \[..., 5, d\]"),
    (
        {"queries": torch.zeros(5, 2), "k": 5, "exclude_self": True},
        ValueError, r"k: expected 1 to N - 1 = 4 for points \(5, 2\), got 5",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change: dict, error: type, message: str):
    arguments = {"queries": torch.zeros(4, 2), "points": torch.zeros(5, 2), "k": 1, **change}
    with pytest.raises(error, match=message):
        knn(**arguments)


def test_no_queries_and_no_problems(backend):
    assert knn(randn(0, 3), randn(4, 3), 2)[0].shape == (0, 2)
    assert knn(randn(0, 5, 3), randn(0, 4, 3), 2)[1].shape == (0, 5, 2)


def test_the_reference_goes_in_chunks(monkeypatch):
    queries, points = randn(40, 3), randn(40, 3)
    found = []
    for chunk in (2**22, 100):
        monkeypatch.setattr(sys.modules[knn.__module__], "CHUNK", chunk)
        found.append((*knn_reference(queries, points, 3), *knn_reference(points, points, 3, exclude_self=True)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
