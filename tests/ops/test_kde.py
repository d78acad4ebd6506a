"""Kernel densities have scipy's, statsmodels' and scikit-learn's numbers, for any bandwidth, weight, chunk and size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.ops.extensions import use_cpu_capability
from fastgen.ops.kde import cases, kde_log_densities, kde_log_density, kde_log_density_reference, kde_score
from fastgen.ops.kde.bandwidth import CLOSE, chains_of
from fastgen.ops.kde.kernels import KERNELS
from tests.ops.denormals import meets_denormals

CAPABILITIES = ["AVX2"] + ["AVX512"] * (torch.backends.cpu.get_cpu_capability() == "AVX512")


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def covariance(d: int) -> Tensor:
    root = randn(d, d)
    return root @ root.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


@pytest.fixture(params=["reference", "auto"])
def backend(request):
    if request.param == "auto":
        yield
    else:
        with fastgen.use_backend(request.param):
            yield


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("d", [1, 3])
def test_numbers_of_scipy(backend, d: int, weighted: bool):
    """Scott's rule: the data's covariance, scaled."""
    stats = pytest.importorskip("scipy.stats")
    queries, points = randn(40, d), randn(60, d) @ covariance(d)
    weights = torch.rand(60, dtype=torch.float64) if weighted else None
    theirs = stats.gaussian_kde(points.T.numpy(), weights=None if weights is None else weights.numpy())
    found = kde_log_density(queries, points, torch.tensor(theirs.covariance), weights=weights, bandwidth_form="full")
    torch.testing.assert_close(found, torch.tensor(theirs.logpdf(queries.T.numpy())), rtol=1e-10, atol=1e-10)


def test_numbers_of_statsmodels(backend):
    kernel_density = pytest.importorskip("statsmodels.nonparametric.kernel_density")
    queries, points, bandwidth = randn(40, 3), randn(60, 3), torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    theirs = kernel_density.KDEMultivariate(points.numpy(), "ccc", bw=bandwidth.numpy())
    found = kde_log_density(queries, points, bandwidth, bandwidth_form="diagonal")
    torch.testing.assert_close(found, torch.tensor(theirs.pdf(queries.numpy())).log(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_numbers_of_scikit_learn(kernel: str, d: int):
    neighbors = pytest.importorskip("sklearn.neighbors")
    if kernel == "cosine" and d % 2 == 0:
        pytest.skip("scikit-learn 1.9 normalises the cosine kernel in odd dimensions only")
    queries, points, weights = randn(50, d), randn(80, d), torch.rand(80, dtype=torch.float64)
    theirs = neighbors.KernelDensity(kernel=kernel, bandwidth=1.3).fit(points, sample_weight=weights)
    expected = torch.tensor(theirs.score_samples(queries.numpy())).exp()
    found = kde_log_density(queries, points, 1.3, weights=weights, kernel=kernel).exp()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [1, 2])
def test_integrates_to_one(backend, kernel: str, d: int):
    points, weights = randn(6, d), torch.rand(6, dtype=torch.float64)
    reach = 40 if kernel == "exponential" else 12
    axis = torch.linspace(-reach, reach, 20001 if d == 1 else 1201, dtype=torch.float64)
    grid = axis.unsqueeze(1) if d == 1 else torch.cartesian_prod(axis, axis)
    density = kde_log_density(grid, points, 0.9, weights=weights, kernel=kernel).exp()
    total = float(density.sum() * (axis[1] - axis[0]) ** d)
    assert abs(total - 1) < (0.02 if kernel == "tophat" else 2e-3)


@pytest.mark.parametrize("d", [4, 30])
@pytest.mark.parametrize("kernel", KERNELS)
def test_volume_in_many_dimensions(kernel: str, d: int):
    """Of the density at the only point, against a quadrature of K over the radius."""
    r = torch.linspace(0, 400 if kernel == "exponential" else 30, 2_000_001, dtype=torch.float64)[1:]
    if kernel not in ("gaussian", "exponential"):
        r = r / r[-1]
    origin = torch.zeros(1, d, dtype=torch.float64)
    at = torch.zeros(r.numel() // 1000, d, dtype=torch.float64)
    at[:, 0] = r[499::1000]
    with fastgen.use_backend("reference"):
        centre = kde_log_density(origin, origin, 1.0, kernel=kernel)
        value = (kde_log_density(at, origin, 1.0, kernel=kernel) - centre).exp()
    log_sphere = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    radial = (value * (at[:, 0].log() * (d - 1)).exp()).sum() * (r[1000] - r[0])
    assert abs(float(centre + log_sphere + radial.log())) < 1e-2


def test_forms_of_a_bandwidth_agree(backend):
    queries, points = randn(2, 5, 3), randn(2, 7, 3)
    h = torch.tensor([0.5, 0.8], dtype=torch.float64)
    expected = torch.stack([kde_log_density(q, x, float(b)) for q, x, b in zip(queries, points, h, strict=True)])
    as_forms = {
        "scalar": h,
        "diagonal": h[:, None].expand(2, 3),
        "adaptive": h[:, None].expand(2, 7),
        "full": h[:, None, None] ** 2 * torch.eye(3, dtype=torch.float64),
    }
    for form, bandwidth in as_forms.items():
        found = kde_log_density(queries, points, bandwidth, bandwidth_form=form)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    scaled = kde_log_density(queries, points, torch.tensor([0.5, 0.8, 2.0]).double(), bandwidth_form="diagonal")
    full = torch.diag(torch.tensor([0.25, 0.64, 4.0]).double())
    torch.testing.assert_close(scaled, kde_log_density(queries, points, full, bandwidth_form="full"))


@pytest.mark.parametrize("form", ["scalar", "diagonal", "adaptive", "full"])
def test_leaving_one_out_is_a_density_of_the_others(backend, form: str):
    points, weights = randn(9, 2), torch.rand(9, dtype=torch.float64) + 0.1
    bandwidth = {
        "scalar": torch.tensor(0.6), "diagonal": torch.tensor([0.4, 0.9]), "adaptive": torch.rand(9) + 0.3,
        "full": covariance(2),
    }[form].double()  # fmt: skip
    found = kde_log_density(points, points, bandwidth, weights=weights, leave_one_out=True, bandwidth_form=form)
    score = kde_score(points, points, bandwidth, weights=weights, leave_one_out=True, bandwidth_form=form)
    for i in range(9):
        others = torch.arange(9) != i
        h = bandwidth[others] if form == "adaptive" else bandwidth
        kwargs = {"weights": weights[others], "bandwidth_form": form}
        expected = kde_log_density(points[i : i + 1], points[others], h, **kwargs)
        torch.testing.assert_close(found[i : i + 1], expected)
        torch.testing.assert_close(score[i : i + 1], kde_score(points[i : i + 1], points[others], h, **kwargs))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["scalar", "diagonal", "adaptive", "full"])
def test_gradients_in_everything(backend, kernel: str, form: str):
    queries, points, weights = randn(5, 2), randn(6, 2), torch.rand(6, dtype=torch.float64) + 0.2
    bandwidth = {
        "scalar": torch.tensor(1.6), "diagonal": torch.tensor([1.4, 1.9]), "adaptive": torch.rand(6) + 1.3,
        "full": 4 * covariance(2),
    }[form].double()  # fmt: skip

    def log_density(queries: Tensor, points: Tensor, bandwidth: Tensor, weights: Tensor) -> Tensor:
        if form == "full":
            bandwidth = (bandwidth + bandwidth.T) / 2
        return kde_log_density(queries, points, bandwidth, weights=weights, kernel=kernel, bandwidth_form=form)

    args = tuple(t.requires_grad_() for t in (queries, points, bandwidth, weights))
    finite = log_density(*args).isfinite()
    assert finite.any()
    assert torch.autograd.gradcheck(lambda *a: log_density(*a)[finite], args)
    if kernel == "gaussian":
        assert torch.autograd.gradgradcheck(lambda *a: log_density(*a)[finite], args, fast_mode=True)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["scalar", "diagonal", "adaptive", "full"])
def test_score_is_the_gradient_in_the_queries(backend, kernel: str, form: str):
    queries, points = randn(3, 20, 2).requires_grad_(), randn(15, 2)
    bandwidth = {
        "scalar": torch.tensor(1.1), "diagonal": torch.tensor([0.9, 1.4]), "adaptive": torch.rand(15) + 0.7,
        "full": covariance(2),
    }[form].double()  # fmt: skip
    kwargs = {"kernel": kernel, "bandwidth_form": form}
    log_density = kde_log_density(queries, points, bandwidth, **kwargs)
    (expected,) = torch.autograd.grad(log_density.sum(), queries)
    assert expected.isfinite().all()
    torch.testing.assert_close(kde_score(queries.detach(), points, bandwidth, **kwargs), expected)
    # Its own gradient goes by the reference.
    if kernel == "gaussian":
        torch.testing.assert_close(kde_score(queries, points, bandwidth, **kwargs), expected)
        assert torch.autograd.gradcheck(lambda q: kde_score(q, points, bandwidth, **kwargs), queries, fast_mode=True)


def test_a_weight_of_zero_is_a_point_that_is_not_there(backend):
    queries, points = randn(8, 2), randn(10, 2)
    weights = torch.ones(10, dtype=torch.float64)
    weights[7:] = 0
    points[7] = queries[0] + 1e-3
    expected = kde_log_density(queries, points[:7], 0.01)
    torch.testing.assert_close(kde_log_density(queries, points, 0.01, weights=weights), expected)
    weights.requires_grad_()
    kde_log_density(queries, points, 0.5, weights=weights).sum().backward()
    # What is left is that of the weights' sum: 8 queries over a sum of 7.
    torch.testing.assert_close(weights.grad[7:], torch.full((3,), -8 / 7, dtype=torch.float64))
    assert weights.grad[:7].isfinite().all()


def test_far_queries_stay_finite(backend):
    for dtype, far in ((torch.float32, 1e15), (torch.float64, 1e120)):
        queries = torch.tensor([[0.0, 0.0], [far, 1.0], [-far, far]], dtype=dtype)
        for kernel in ("gaussian", "exponential"):
            found = kde_log_density(queries, randn(20, 2, dtype=dtype), 0.1, kernel=kernel)
            assert found.isfinite().all() and (found[1:] < -1e10).all()
    for kernel in ("epanechnikov", "tophat", "linear", "cosine"):
        found = kde_log_density(queries, randn(20, 2), 5.0, kernel=kernel)
        assert found[0].isfinite() and (found[1:] == -torch.inf).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_stays_in_its_query(backend, kernel: str):
    queries, points = randn(200, 3), randn(40, 3)
    queries[77, 1] = torch.nan
    for call in (kde_log_density, kde_score):
        found = call(queries, points, 4.0, kernel=kernel)
        rows = found if found.dim() == 1 else found.isnan().any(-1)
        assert (rows.isnan() if found.dim() == 1 else rows).nonzero().tolist() == [[77]]


def test_no_queries_and_no_problems(backend):
    assert kde_log_density(randn(0, 3), randn(4, 3), 0.5).shape == (0,)
    assert kde_score(randn(0, 3), randn(4, 3), 0.5).shape == (0, 3)
    assert kde_log_density(randn(0, 5, 3), randn(0, 4, 3), 0.5).shape == (0, 5)


def test_all_points_equal(backend):
    points = torch.full((50, 3), 2.5, dtype=torch.float64)
    found = kde_log_density(points[:1], points, 0.1)
    torch.testing.assert_close(found, torch.tensor([-3 * math.log(0.1 * math.sqrt(2 * math.pi))]).double())


def test_batches_broadcast(backend):
    queries, points = randn(4, 1, 6, 2), randn(3, 5, 2)
    bandwidth, weights = torch.rand(4, 1).double() + 0.3, torch.rand(3, 5).double() + 0.1
    found = kde_log_density(queries, points, bandwidth, weights=weights)
    assert found.shape == (4, 3, 6)
    for i in range(4):
        for j in range(3):
            alone = kde_log_density(queries[i, 0], points[j], float(bandwidth[i, 0]), weights=weights[j])
            torch.testing.assert_close(found[i, j], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_every_size_count(dtype: torch.dtype):
    """The only point that reaches the query has e^-100 of the largest weight: nothing in float32."""
    points = torch.tensor([[0.0, 0.0], [10.0, 0.0]], dtype=dtype)
    weights = torch.tensor([math.exp(-70), math.exp(30)], dtype=dtype)
    for kernel in KERNELS:
        found = kde_log_density(points[:1] + 0.1, points, 1.0, weights=weights, kernel=kernel)
        alone = kde_log_density(points[:1] + 0.1, points[:1], 1.0, kernel=kernel)
        if kernel not in ("gaussian", "exponential"):
            torch.testing.assert_close(found, alone - 100)
        assert found.isfinite().all()


def test_half_types_round_the_float32_answer():
    queries, points = randn(30, 4).bfloat16(), randn(40, 4).bfloat16()
    found = kde_log_density(queries, points, 0.7)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, kde_log_density(queries.float(), points.float(), 0.7).bfloat16())
    assert kde_log_density(queries, points.float(), 0.7).dtype == torch.float32


def test_large_references_go_in_chunks(monkeypatch):
    queries, points = randn(40, 3).requires_grad_(), randn(30, 3).requires_grad_()
    args, expected = (queries, points, 0.5), []
    for chunk in (2**24, 1000):
        monkeypatch.setattr("fastgen.ops.kde.reference.CHUNK", chunk)
        found = kde_log_density_reference(*args)
        expected.append((found, *torch.autograd.grad(found.square().sum(), (queries, points))))
        points_only = kde_log_density_reference(points, points, 0.5, leave_one_out=True)
        expected[-1] += (points_only,)
    for one, many in zip(*expected, strict=True):
        torch.testing.assert_close(one, many)


BAD = [
    ({"bandwidth": 0.0}, ValueError, "bandwidth: expected a positive, finite number, got 0.0"),
    ({"bandwidth": -1.0}, ValueError, "bandwidth: expected a positive, finite number, got -1.0"),
    ({"bandwidth": math.nan}, ValueError, "bandwidth: expected a positive, finite number, got nan"),
    ({"bandwidth": math.inf}, ValueError, "bandwidth: expected a positive, finite number, got inf"),
    ({"bandwidth": "scott"}, TypeError, "bandwidth: expected a number or a tensor, got str"),
    ({"bandwidth": torch.tensor(0.0)}, ValueError, "bandwidth: expected positive, finite numbers, got 0.0"),
    ({"bandwidth": torch.tensor(torch.nan)}, ValueError, "bandwidth: expected positive, finite numbers, got nan"),
    ({"bandwidth": torch.tensor([1, 2])}, TypeError, "bandwidth: expected a floating dtype"),
    ({"bandwidth": torch.ones(2)}, ValueError, r"one for each problem, \(\), got \(2,\); .*bandwidth_form='diagonal'"),
    ({"bandwidth": torch.ones(3), "bandwidth_form": "diagonal"}, ValueError, r"expected \[..., d\] = \[..., 2\]"),
    ({"bandwidth": torch.ones(2), "bandwidth_form": "adaptive"}, ValueError, r"expected \[..., N\] = \[..., 5\]"),
    ({"bandwidth": torch.ones(2), "bandwidth_form": "full"}, ValueError, r"expected \[..., d, d\] = \[..., 2, 2\]"),
    ({"bandwidth": 1.0, "bandwidth_form": "full"}, ValueError, r"\[..., d, d\] for bandwidth_form='full', got a num"),
    ({"bandwidth": torch.ones(2, 2), "bandwidth_form": "full"}, ValueError, "bandwidth: .*positive definite"),
    ({"bandwidth": -torch.eye(2), "bandwidth_form": "full"}, ValueError, "bandwidth: .*positive definite"),
    ({"bandwidth": torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "bandwidth_form": "full"}, ValueError, "symmetric"),
    ({"bandwidth": torch.full((2, 2), torch.nan), "bandwidth_form": "full"}, ValueError, "bandwidth: .*NaN"),
    ({"bandwidth_form": "matrix"}, ValueError, "bandwidth_form: expected one of scalar, diagonal, adaptive, full"),
    ({"points": torch.zeros(0, 2)}, ValueError, r"points: expected at least one point, got \(0, 2\)"),
    ({"points": torch.zeros(5, 3)}, ValueError, r"queries: expected \[..., M, 3\] as points, got \(4, 2\)"),
    ({"points": torch.zeros(5)}, ValueError, r"points: expected \[..., N, d\], got \(5,\); .*one dimension"),
    ({"queries": torch.zeros(4)}, ValueError, r"queries: expected \[..., M, d\], got \(4,\); .*one dimension"),
    ({"queries": torch.zeros(4, 0), "points": torch.zeros(5, 0)}, ValueError, "points: expected at least one dim"),
    ({"queries": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "queries: expected a floating dtype"),
    ({"points": torch.zeros(5, 2, dtype=torch.int64)}, TypeError, "points: expected a floating dtype"),
    ({"points": [[0.0, 1.0]]}, TypeError, "points: expected a tensor, got list"),
    ({"points": torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])}, ValueError, r"points: .*NaN.* at \[1, 0\]"),
    ({"points": torch.tensor([[0.0, torch.inf]])}, ValueError, r"points: expected finite numbers, got inf"),
    ({"queries": torch.zeros(3, 4, 2), "points": torch.zeros(2, 5, 2)}, ValueError, r"broadcast, got \(3,\), \(2,\)"),
    ({"weights": torch.ones(4)}, ValueError, r"weights: expected \[..., N\] = \[..., 5\], got \(4,\)"),
    ({"weights": -torch.ones(5)}, ValueError, "weights: .*not negative, got -1.0"),
    ({"weights": torch.zeros(5)}, ValueError, "weights: .*all zeros"),
    ({"weights": torch.full((5,), torch.nan)}, ValueError, "weights: .*got nan"),
    ({"weights": torch.ones(5, dtype=torch.bool)}, TypeError, "weights: expected a floating dtype"),
    ({"kernel": "triangle"}, ValueError, "kernel: expected one of gaussian, epanechnikov, .*got 'triangle'"),
    ({"precision": "medium"}, ValueError, "precision: expected one of highest, high, got 'medium'"),
    ({"leave_one_out": True}, ValueError, r"with leave_one_out they are the points, expected \(5, 2\), got \(4, 2\)"),
    (
        {"queries": torch.zeros(1, 2), "points": torch.zeros(1, 2), "leave_one_out": True},
        ValueError, "points: leave_one_out needs two or more",
    ),
]  # fmt: skip


@pytest.mark.parametrize("call", [kde_log_density, kde_score])
@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(call, change: dict, error: type, message: str):
    arguments = {"queries": torch.zeros(4, 2), "points": torch.zeros(5, 2), "bandwidth": 1.0, **change}
    with pytest.raises(error, match=message):
        call(**arguments)


def test_queries_of_float32_are_exact_enough():
    """The direct sum in float64 is the truth; scikit-learn is off by nats above eight dimensions."""
    generator = torch.Generator().manual_seed(1)
    for d in (2, 8, 64):
        n = 3000
        queries, points = (cases.draw(rows, d, generator) for rows in (500, n))
        h = n ** (-1 / (d + 4))
        truth = kde_log_density_reference(queries.double(), points.double(), h)
        assert (kde_log_density(queries, points, h).double() - truth).abs().max() <= 5e-5


@pytest.mark.parametrize("passes", ["forward", "score", "backward"])
@pytest.mark.parametrize("nearest", [0.0, 200.0], ids=["near", "far"])
@pytest.mark.parametrize("exponent", [10.0, 95.0, 115.0])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_exponentials_are_not_denormal(capability: str, exponent: float, nearest: float, passes: str):
    """exp(-95) is denormal; relative to a bound that is 30 powers of two lower, exp(-115) is."""
    directions = torch.nn.functional.normalize(torch.randn(3000, 4), dim=1)
    points = directions * math.sqrt(2 * (nearest + exponent))
    points[0] = directions[0] * math.sqrt(2 * nearest)
    queries = (torch.randn(384, 4) * 1e-2).requires_grad_(passes == "backward")
    points.requires_grad_(passes == "backward")

    def call() -> None:
        if passes == "backward":
            kde_log_density(queries, points, 1.0).sum().backward()
        else:
            (kde_score if passes == "score" else kde_log_density)(queries, points, 1.0)

    with fastgen.use_backend("cpp"), use_cpu_capability(capability):
        assert not meets_denormals(call)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("far", [0.0, 8.0, 14.0, 40.0])
def test_sums_below_the_bound_and_with_a_running_maximum_agree(capability: str, far: float):
    """Queries near the points, where the bound serves, and further and further, where the maximum is tracked."""
    points = randn(700, 2)
    queries = randn(130, 2) + far
    truth = kde_log_density_reference(queries, points, 1.0)
    with fastgen.use_backend("cpp"), use_cpu_capability(capability):
        torch.testing.assert_close(kde_log_density(queries, points, 1.0), truth, rtol=1e-12, atol=1e-12)
        found = kde_log_density(queries.float(), points.float(), 1.0).double()
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=3e-5)


def test_threads_and_many_problems_change_nothing():
    queries, points, weights = randn(1, 300, 5), randn(1, 900, 5), torch.rand(1, 900, dtype=torch.float64) + 0.1
    many = tuple(t.repeat(16, *(1,) * (t.dim() - 1)).requires_grad_() for t in (queries, points, weights))
    few = tuple(t.clone().requires_grad_() for t in (queries, points, weights))
    swapped = (points.clone().requires_grad_(), queries.clone().requires_grad_())
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for q, x, w in (many, few, (*swapped, None)):
            value = kde_log_density(q, x, 0.8, weights=w)
            tensors = [t for t in (q, x, w) if t is not None]
            found.append([value[:1], *(g[:1] for g in torch.autograd.grad(value.sum(), tensors))])
    torch.set_num_threads(before)
    for result in found:
        same = found[2] if len(result) == 3 else found[0]
        for a, b in zip(result, same, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_million_queries_in_little_memory():
    """O(M + N): what is allocated is the inputs scaled and the answers, not a matrix."""
    queries, points = torch.randn(200_000, 16), torch.randn(50, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        kde_log_density(queries, points, 1.0)
    allocated = sum(max(0, e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    assert allocated < 3 * queries.numel() * 4


@pytest.mark.parametrize("ratio", [2**0.5, 2**0.25, 1.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_bandwidths_are_each_its_own(ratio: float, dtype: torch.dtype):
    queries, points = randn(70, 3, dtype=dtype), randn(203, 3, dtype=dtype)
    bandwidths = [0.2 * ratio**k for k in (3, 0, 7, 1, 2, 12, 5)]
    several = kde_log_densities(queries, points, bandwidths)
    assert several.shape == (7, 70)
    for h, found in zip(bandwidths, several, strict=True):
        truth = kde_log_density_reference(queries.double(), points.double(), h)
        bound = 1e-12 if dtype == torch.float64 else 1e-6 * (1 + float(truth.abs().max()) + 4 / h**2)
        assert (found.double() - truth).abs().max() < bound


def test_a_grid_of_roots_of_two_takes_one_exponential():
    starts, place = chains_of([0.1 * 2 ** (k / 2) for k in range(30)], CLOSE)
    assert starts.count_nonzero() == 1 and place == list(range(29, -1, -1))
    assert chains_of([0.1 * 2 ** (k / 4) for k in range(30)], CLOSE)[0].count_nonzero() == 2
    assert chains_of([0.3, 0.3, 0.5], CLOSE)[0].count_nonzero() == 3


def test_leave_one_out_likelihood_finds_a_bandwidth():
    points = randn(400, 1)
    bandwidths = [0.02 * 2 ** (k / 4) for k in range(28)]
    several = kde_log_densities(points, points, bandwidths, leave_one_out=True)
    best = bandwidths[int(several.mean(-1).argmax())]
    assert 0.1 < best < 0.6  # n^(-1/5) is 0.3
    for h, found in zip(bandwidths, several, strict=True):
        torch.testing.assert_close(found, kde_log_density(points, points, h, leave_one_out=True))


def test_gradients_in_several_bandwidths():
    bandwidths = torch.tensor([0.7, 1.2], dtype=torch.float64, requires_grad=True)
    queries, points = randn(4, 2).requires_grad_(), randn(5, 2).requires_grad_()
    assert torch.autograd.gradcheck(kde_log_densities, (queries, points, bandwidths))


@pytest.mark.parametrize(
    ("bandwidths", "error", "message"),
    [
        ([], ValueError, "bandwidths: expected one or more numbers"),
        ([0.5, 0.0], ValueError, "bandwidth: expected positive, finite numbers, got 0.0"),
        ([0.5, math.nan], ValueError, "bandwidth: expected positive, finite numbers, got nan"),
        (torch.ones(2, 2), ValueError, r"bandwidths: expected one or more numbers, \[S\], got shape \(2, 2\)"),
        (torch.ones(2, dtype=torch.int64), TypeError, "bandwidths: expected a floating dtype"),
    ],
)
def test_bad_bandwidths(bandwidths, error: type, message: str):
    with pytest.raises(error, match=message):
        kde_log_densities(torch.zeros(4, 2), torch.zeros(5, 2), bandwidths)


def test_high_precision_runs_what_there_is():
    queries, points = randn(20, 3, dtype=torch.float32), randn(30, 3, dtype=torch.float32)
    high = kde_log_density(queries, points, 0.5, precision="high")
    assert torch.equal(high, kde_log_density(queries, points, 0.5))


def test_few_queries_are_shared_out_too():
    queries, points = randn(50, 3), randn(30_000, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    found = kde_log_density(queries, points, 0.5)
    torch.set_num_threads(before)
    torch.testing.assert_close(found, kde_log_density_reference(queries, points, 0.5), rtol=1e-11, atol=1e-11)


def test_compiles_for_any_number_of_points():
    torch._dynamo.reset()
    compiled = torch.compile(kde_log_density, fullgraph=True, dynamic=True, backend="aot_eager")
    for m, n in ((5, 7), (9, 12)):
        queries, points = randn(m, 2), randn(n, 2)
        torch.testing.assert_close(compiled(queries, points, 0.5), kde_log_density(queries, points, 0.5))


def test_small_bandwidths_keep_their_digits():
    """Points hundreds of bandwidths apart, whose squared norms in float32 would cost hundredths of a nat."""
    points, queries = randn(5000, 1, dtype=torch.float32) + 7, randn(200, 1, dtype=torch.float32) + 7
    truth = kde_log_density_reference(queries.double(), points.double(), 0.005)
    relative = (kde_log_density(queries, points, 0.005).double() - truth).abs() / truth.abs().clamp(min=1)
    assert relative.max() < 1e-6
    assert (kde_log_density(queries, points, 0.005, precision="high").double() - truth).abs().max() < 0.5
    expected = kde_score(queries.double(), points.double(), 0.005)
    torch.testing.assert_close(kde_score(queries, points, 0.005).double(), expected, rtol=1e-5, atol=1e-4)
    adaptive = torch.full((5000,), 0.005)
    found = kde_log_density(queries, points, adaptive, bandwidth_form="adaptive").double()
    assert ((found - truth).abs() / truth.abs().clamp(min=1)).max() < 1e-5
    leaf = queries.clone().requires_grad_()
    kde_log_density(leaf, points, 0.005).sum().backward()
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=1e-5, atol=1e-4)
