"""Kernel density estimates: the log-density of a sum of bumps on given points, its score, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen.ops.kde import cases
from fastgen.ops.kde.arguments import check_arguments, check_bandwidths, check_values
from fastgen.ops.kde.bandwidth import CLOSE, chains_of
from fastgen.ops.kde.gradient import log_sums, score
from fastgen.ops.kde.kernels import COMPACT
from fastgen.ops.kde.problem import Problem, problem_of
from fastgen.ops.kde.reference import kde_log_densities_reference, kde_log_density_reference, kde_score_reference
from fastgen.ops.pairs import fewer_queries
from fastgen.ops.registry import Op, Tolerance, always, needs_gradient


def kde_log_density(
    queries: Tensor,
    points: Tensor,
    bandwidth: float | Tensor,
    *,
    weights: Tensor | None = None,
    kernel: str = "gaussian",
    precision: str = "highest",
    leave_one_out: bool = False,
    bandwidth_form: str = "scalar",
) -> Tensor:
    """The log-density of a kernel density estimate.

        log p(q_i) = log sum_j w_j K(|q_i - x_j| / h) / (V h^d) - log sum_j w_j

    where V is the volume of the kernel K, so that p integrates to one in any number of dimensions d:

        gaussian: exp(-u^2 / 2)    exponential: exp(-u)
        epanechnikov: 1 - u^2,  tophat: 1,  linear: 1 - u,  cosine: cos(pi u / 2)    for u < 1, else 0

    The sum is one of logarithms: a query far from every point has a finite log-density under the Gaussian and the
    exponential kernel. Under the others it is minus infinity where no kernel reaches, with gradient zero.

    Args:
        queries: [..., M, d]. Batch dimensions of all arguments broadcast.
        points: [..., N, d].
        bandwidth: what `bandwidth_form` says.
        weights: [..., N], not negative; they need not sum to one. None: all alike. The gradient in a weight of exactly
            zero counts the sum of the weights, and not the kernel that it would switch on.
        kernel: one of the six above.
        precision: "highest" takes the float64 kernel, several times slower, where on a CPU (outside torch.compile) a
            point in float32 lies more than 32 bandwidths (of other kernels than the Gaussian 1024) from the points'
            middle. "high" never does, and allows products of split bfloat16 where a kernel has them; none has them yet.
        leave_one_out: the queries are the points, and point i does not count in the density at query i.
        bandwidth_form: how the shape of `bandwidth` is to be read; never guessed from it.
            "scalar": h, a number or a tensor [...] with one for each problem.
            "diagonal": [..., d], one for each dimension, u^2 = sum_k (q - x)_k^2 / h_k^2.
            "adaptive": [..., N], one for each point, u = |q - x_j| / h_j.
            "full": [..., d, d], the covariance H of the kernel, u^2 = (q - x)^T H^-1 (q - x). It is h^2 I where h is a
            number.

    Returns:
        The log-density [..., M], nats, in the dtype of queries and points (promoted). NaN for a query that has NaN.

    Raises:
        ValueError: shapes that do not match, no points, no dimensions; where it can be seen without waiting for a
            device (on a CPU outside torch.compile), a bandwidth that is not positive (definite) and finite, points
            that are not finite, weights that are negative, not finite or all zero.
        TypeError: a dtype that is not floating, or tensors on different devices.

    Memory is O(M + N) in the kernels, forward and backward. Gradients in queries, points, weights and bandwidth of
    every order; the first is one kernel for the Gaussian. Half types are computed in float32. In float32 the error of
    a Gaussian log-density is about 6e-8 times the largest |q - c| |x - c| / h^2, c the mean of the points.

    Source: Silverman, "Density Estimation for Statistics and Data Analysis" (1986), sections 4.2 and 5.3.
    """
    batch = check_arguments(queries, points, bandwidth, weights, kernel, precision, leave_one_out, bandwidth_form)
    backend = KDE_LOG_DENSITY.choose((queries, points, _tensor(bandwidth), weights), kernel)
    if backend == "reference":
        return kde_log_density_reference(
            queries, points, bandwidth, weights=weights, kernel=kernel, leave_one_out=leave_one_out,
            bandwidth_form=bandwidth_form,
        )  # fmt: skip
    settings = (bandwidth, weights, leave_one_out, kernel, bandwidth_form, batch)
    problem = _precise_problem(queries, points, settings, precision, backend)
    answer = log_sums(problem, kernel, leave_one_out, backend).view(problem.shape)
    if kernel in COMPACT and needs_gradient(queries, points, _tensor(bandwidth), weights):
        # Where no point reaches, the gradient is zero, also that through the volume of the kernel.
        sized = torch.where(answer == -torch.inf, answer, answer - problem.log_size)
        density = sized - problem.log_total
    else:
        density = answer - problem.log_constant
    return density.to(torch.promote_types(queries.dtype, points.dtype))


def kde_score(
    queries: Tensor,
    points: Tensor,
    bandwidth: float | Tensor,
    *,
    weights: Tensor | None = None,
    kernel: str = "gaussian",
    precision: str = "highest",
    leave_one_out: bool = False,
    bandwidth_form: str = "scalar",
) -> Tensor:
    """The score of a kernel density estimate, the gradient of its log-density in the queries, in one pass.

    For the Gaussian, with p_ij the share of point j in the density at query i,

        score(q_i) = sum_j p_ij (x_j - q_i) / h^2

    Args:
        queries: [..., M, d]; this and all others as for `kde_log_density`.
        points: [..., N, d].
        bandwidth: in the form of `bandwidth_form`.
        weights: [..., N].
        kernel: zero is the score where no compact kernel reaches, and of a kernel at its own centre.
        precision: "highest" or "high".
        leave_one_out: the queries are the points, and point i does not count at query i.
        bandwidth_form: "scalar", "diagonal", "adaptive" or "full".

    Returns:
        The score, [..., M, d], in nats per unit of the queries and in their dtype (promoted with the points').

    Raises:
        ValueError: as `kde_log_density`.
        TypeError: as `kde_log_density`.

    Its own gradients are those of the reference, whose memory is O(M N d).

    Source: Fukunaga and Hostetler, "The Estimation of the Gradient of a Density Function" (1975), equation 21.
    """
    batch = check_arguments(queries, points, bandwidth, weights, kernel, precision, leave_one_out, bandwidth_form)
    tensors = (queries, points, _tensor(bandwidth), weights)
    backend = "reference" if needs_gradient(*tensors) else KDE_SCORE.choose(tensors, kernel)
    if backend == "reference":
        return kde_score_reference(
            queries, points, bandwidth, weights=weights, kernel=kernel, leave_one_out=leave_one_out,
            bandwidth_form=bandwidth_form,
        )  # fmt: skip
    settings = (bandwidth, weights, leave_one_out, kernel, bandwidth_form, batch)
    problem = _precise_problem(queries, points, settings, precision, backend)
    of_queries = score(problem, kernel, leave_one_out, backend).view(*problem.shape, points.shape[-1])
    return problem.bandwidth.scale_gradient(of_queries).to(torch.promote_types(queries.dtype, points.dtype))


def kde_log_densities(
    queries: Tensor,
    points: Tensor,
    bandwidths: Tensor | Sequence[float],
    *,
    weights: Tensor | None = None,
    kernel: str = "gaussian",
    precision: str = "highest",
    leave_one_out: bool = False,
) -> Tensor:
    """The log-density of a kernel density estimate at several bandwidths, with distances computed once.

    What a search for a bandwidth needs: with `leave_one_out` the mean of a row is that bandwidth's leave-one-out
    log-likelihood. Bandwidths on a geometric grid of ratio 2^(1 / 2 k) take k exponentials for each pair, whatever
    their number, the rest being squares of those; any others take one each.

    Args:
        queries: [..., M, d]; this and all others as for `kde_log_density`.
        points: [..., N, d].
        bandwidths: [S], numbers, the same for every problem.
        weights: [..., N].
        kernel: one of the six.
        precision: "highest" or "high".
        leave_one_out: the queries are the points, and point i does not count at query i.

    Returns:
        The log-densities, [S, ..., M], nats.

    Raises:
        ValueError: as `kde_log_density`; no bandwidths.
        TypeError: as `kde_log_density`.

    Where a gradient is needed, and under torch.compile, it is `kde_log_density` once for each bandwidth. In one pass a
    weight below 1e-30 of the largest may count as zero where the bandwidth is small, and float32 stays float32: the
    error is that of `precision="high"`.

    Source: Silverman, "Density Estimation for Statistics and Data Analysis" (1986), section 3.4.4.
    """
    bandwidths = check_bandwidths(bandwidths, queries)
    settings = (weights, kernel, precision, leave_one_out, "scalar")
    batch = check_arguments(queries, points, bandwidths[0], *settings)
    check_values(points, bandwidths, None, "scalar")
    tensors = (queries, points, bandwidths, weights)
    backend = KDE_LOG_DENSITIES.choose(tensors, kernel)
    if backend == "reference" or needs_gradient(*tensors) or torch.compiler.is_compiling():
        options = {"weights": weights, "kernel": kernel, "precision": precision, "leave_one_out": leave_one_out}
        return torch.stack([kde_log_density(queries, points, h, **options) for h in bandwidths.unbind()])
    problem = problem_of(queries, points, 1.0, weights, leave_one_out, kernel, "scalar", batch)
    widths = bandwidths.double()
    chains, place = chains_of(widths.tolist(), 1e-14 if bandwidths.dtype == torch.float64 else CLOSE)
    shares, present = None, None
    if problem.offsets is not None:
        shares = problem.offsets.softmax(-1)
        present = torch.where(shares > 0, 0.0, -torch.inf).to(shares.dtype)
    call = KDE_LOG_DENSITIES.call[backend]["kde_log_densities"]
    answer = call(problem.queries, problem.points, present, shares, chains, leave_one_out)[place]
    log_sizes = points.shape[-1] * widths.log().to(answer.dtype)
    answer = answer.view(len(place), *problem.shape) - log_sizes.view(-1, *(1,) * len(problem.shape))
    constant = problem.log_constant
    if problem.offsets is not None:
        # The shares sum to one, which the weights need not do.
        constant = constant - weights.to(answer.dtype).sum(-1, keepdim=True).log()
    return (answer - constant).to(torch.promote_types(queries.dtype, points.dtype))


def _precise_problem(queries: Tensor, points: Tensor, settings: tuple, precision: str, backend: str) -> Problem:
    """The problem, in float64 where a CPU kernel would lose digits of it."""
    problem = problem_of(queries, points, *settings)
    if backend == "cpp" and precision == "highest" and problem.loses_digits(settings[3]):
        return problem_of(queries.double(), points.double(), *settings)
    return problem


def _tensor(bandwidth: float | Tensor) -> Tensor | None:
    return bandwidth if isinstance(bandwidth, Tensor) else None


def _fake(queries: Tensor, points: Tensor, offsets, precisions, leave_one_out: bool) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape[:2]), queries.new_empty(queries.shape[:2])


def _fake_score(queries: Tensor, points: Tensor, offsets, precisions, leave_one_out: bool) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape[:2]), queries.new_empty(queries.shape)


def _fake_backward(grad, inner, queries: Tensor, points: Tensor, offsets, precisions, leave_one_out: bool):
    of_precisions = points.new_empty(points.shape[:2] if precisions is not None else (0,))
    of_points = points.new_empty(points.shape), points.new_empty(points.shape[:2])
    return queries.new_empty(queries.shape), *of_points, of_precisions


def _fake_several(queries: Tensor, points, offsets, weights, chains: Tensor, leave_one_out: bool) -> Tensor:
    return queries.new_empty((chains.shape[0], *queries.shape[:2]))


def _fake_direct(queries: Tensor, points, offsets, precisions, leave_one_out: bool, kernel: int) -> Tensor:
    return queries.new_empty(queries.shape[:2])


def _fake_direct_backward(
    grad, log_sums, queries: Tensor, points: Tensor, offsets, precisions, leave_one_out, kernel: int, of_points: bool
):
    problems, n, d = points.shape
    if not of_points:
        problems = 0
    of_each = points.new_empty(problems, n), points.new_empty(problems, n)
    return queries.new_empty(queries.shape), points.new_empty(problems, n, d), *of_each


def _supports_several(queries, points, bandwidths, weights, kernel: str) -> str:
    return "" if kernel == "gaussian" else f"no kernel for several bandwidths of {kernel!r} in one pass"


def _supports_several_triton(queries, points, bandwidths, weights, kernel: str) -> str:
    if len(bandwidths) > 64:
        return "more than 64 bandwidths"
    return _supports_several(queries, points, bandwidths, weights, kernel) or _supports_triton(
        queries, points, bandwidths, weights, kernel
    )


def _supports_triton(queries: Tensor, points, bandwidth, weights, kernel: str) -> str:
    # An adaptive bandwidth takes one more column, and a tile has a power of two of columns, 128 at most.
    return "more than 127 dimensions" if queries.shape[-1] > 127 else ""


_PROBLEM = "Tensor queries, Tensor points, Tensor? offsets, Tensor? precisions, bool leave_one_out"
# The floor is the rounding of a matrix product, which the reference's direct differences do not have.
_TOLERANCE = {
    torch.float64: Tolerance(2, 1e-12),
    torch.float32: Tolerance(2, 6e-6),
    torch.bfloat16: Tolerance(2, 1e-4),
    torch.float16: Tolerance(2, 1e-5),
}

KDE_LOG_DENSITY = Op(
    "kde_log_density",
    schema=(
        f"kde_log_density({_PROBLEM}) -> (Tensor, Tensor)",
        f"kde_log_density_backward(Tensor grad, Tensor inner, {_PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor)",
        f"kde_direct_log_sums({_PROBLEM}, int kernel) -> Tensor",
        f"kde_direct_backward(Tensor grad, Tensor log_sums, {_PROBLEM}, int kernel, bool of_points) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
    ),
    fake=(_fake, _fake_backward, _fake_direct, _fake_direct_backward),
    reference=kde_log_density_reference,
    supports={"triton": _supports_triton, "cpp": always},
    samples=cases.samples,
    draw=cases.drawn,
    cases=cases.cases,
    tolerance=_TOLERANCE,
    cost=cases.cost,
    gate_part=fewer_queries,
)

KDE_SCORE = Op(
    "kde_score",
    schema=(f"kde_score({_PROBLEM}) -> (Tensor, Tensor)",),
    fake=(_fake_score,),
    reference=kde_score_reference,
    supports={"triton": _supports_triton, "cpp": always},
    samples=cases.score_samples,
    draw=cases.score_drawn,
    cases=cases.cases,
    tolerance=_TOLERANCE,
    cost=cases.score_cost,
    gate_part=fewer_queries,
    grad_order=0,
    passes=("forward",),
)

KDE_LOG_DENSITIES = Op(
    "kde_log_densities",
    schema=(
        "kde_log_densities(Tensor queries, Tensor points, Tensor? offsets, Tensor? weights, Tensor chains, "
        "bool leave_one_out) -> Tensor",
    ),
    fake=(_fake_several,),
    reference=kde_log_densities_reference,
    supports={"triton": _supports_several_triton, "cpp": _supports_several},
    samples=cases.several_samples,
    draw=cases.several_drawn,
    cases=cases.several_cases,
    # The smallest bandwidth of a grid has the largest exponents, and one pass computes all in one dtype.
    tolerance={**_TOLERANCE, torch.float32: Tolerance(2, 2e-5)},
    cost=cases.several_cost,
    grad_order=0,
    passes=("forward",),
)
