"""The log of a sum of Gaussians at several bandwidths with one exponential for each chain of them;
`csrc/cpu/kde_bandwidths.cpp` tells the algebra.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.kde_rows import LOWEST, NOWHERE, load_rows, prepare, problem_and_rows, width

BLOCK = 32


@triton.jit
def kde_bandwidths_kernel(
    queries, points, bias, weights, starts, precisions, nearest, sums, m, n, columns, bandwidths,
    LEAVE_OWN: tl.constexpr, WIDTH: tl.constexpr, BANDWIDTHS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """nearest_i is the largest exponent at h = 1, sums[i, s] the logarithm (base 2) of the sum relative to it."""
    problem, row = problem_and_rows(m, BLOCK)
    q = load_rows(queries + problem * m * columns, row, m, columns, WIDTH)
    which = tl.arange(0, BANDWIDTHS)
    precision = tl.load(precisions + which, mask=which < bandwidths, other=0.0)
    largest = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK, BANDWIDTHS), tl.float32)
    for first in range(0, n, BLOCK):
        other = first + tl.arange(0, BLOCK)
        x = load_rows(points + problem * n * columns, other, n, columns, WIDTH)
        b = tl.load(bias + problem * n + other, mask=other < n, other=NOWHERE)
        weight = tl.load(weights + problem * n + other, mask=other < n, other=0.0)
        c = tl.dot(q, tl.trans(x), input_precision="ieee") + b[None, :]
        if LEAVE_OWN:
            c = tl.where(row[:, None] == other[None, :], NOWHERE, c)
        highest = tl.max(c, 1)
        raised = tl.where(highest > largest, highest, largest)
        total *= tl.exp2((largest - raised)[:, None] * precision[None, :])
        largest = raised
        e = tl.zeros((BLOCK, BLOCK), tl.float32)
        for s in range(0, bandwidths):
            # 1 / h^2 where a chain starts, and zero where it is twice the one before.
            start = tl.load(starts + s)
            if start > 0:  # noqa: SIM108 (of scalars, in Triton)
                e = tl.exp2((c - largest[:, None]) * start)
            else:
                e = e * e
            total += tl.where(which[None, :] == s, tl.sum(e * weight[None, :], 1)[:, None], 0.0)
    tl.store(nearest + problem * m + row, largest, mask=row < m)
    to = sums + (problem * m + row)[:, None] * bandwidths + which[None, :]
    tl.store(to, tl.log2(total), mask=(row < m)[:, None] & (which < bandwidths)[None, :])


def kde_log_densities(
    queries: Tensor,
    points: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    chains: Tensor,
    leave_one_out: bool,
) -> Tensor:
    q, x, bias, half_norms = prepare(queries, points, offsets, None)
    (problems, m, columns), n, bandwidths = q.shape, x.shape[1], len(chains)
    precisions = _precisions(chains.tolist())
    nearest, sums = q.new_empty((problems, m)), q.new_empty((problems, m, bandwidths))
    if nearest.numel():
        starts, of_all = chains.to(q), torch.tensor(precisions, dtype=torch.float32).to(q.device)
        weights = torch.ones_like(bias) if weights is None else weights
        kde_bandwidths_kernel[(problems * triton.cdiv(m, BLOCK),)](
            q, x, bias, weights, starts, of_all, nearest, sums, m, n, columns, bandwidths,
            leave_one_out, width(columns), max(16, triton.next_power_of_2(bandwidths)), BLOCK,
        )  # fmt: skip
    # Two large numbers of which a small one is left.
    exponent = nearest.double() * math.log(2) - half_norms
    scale = torch.tensor(precisions, dtype=torch.float64).to(q.device).view(-1, 1, 1)
    return (exponent * scale + sums.double().movedim(-1, 0) * math.log(2)).to(queries.dtype)


def _precisions(chains: list[float]) -> list[float]:
    found: list[float] = []
    for start in chains:
        found.append(start if start > 0 else 2 * found[-1])
    return found


_TENSORS = ("queries", "points", "bias", "weights", "starts", "precisions", "nearest", "sums")

# What the kernel is compiled for without a GPU: its signature and constants.
COMPILE = {
    kde_bandwidths_kernel: [
        (
            {**dict.fromkeys(_TENSORS, "*fp32"), **dict.fromkeys(("m", "n", "columns", "bandwidths"), "i32")},
            {"LEAVE_OWN": columns == 64, "WIDTH": columns, "BANDWIDTHS": 32, "BLOCK": BLOCK},
        )
        for columns in (16, 64, 128)
    ]
}
