"""Scores that two processes share are those of one."""

import numpy as np
import pytest
import torch

from fastgen.density import KernelDensity, score_samples_distributed
from tests.ranks import run_on_ranks


def rows(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_without_processes_it_is_score_samples():
    model = KernelDensity().fit(rows(100, 2))
    x = rows(7, 2, seed=1)
    np.testing.assert_array_equal(score_samples_distributed(model, x), model.score_samples(x))


def test_two_processes_share_the_rows():
    run_on_ranks(worker)


class Counting(KernelDensity):
    """Keeps how many rows it was asked for, and fails on request."""

    asked, fails = 0, False

    def score_samples(self, X):
        type(self).asked = len(X)
        if self.fails:
            raise RuntimeError("no memory")
        return super().score_samples(X)


def worker(rank):
    model = Counting().fit(rows(200, 3))
    for m in (0, 1, 2, 101):
        x = rows(m, 3, seed=1)
        found = score_samples_distributed(model, x)
        share = Counting.asked
        assert share in (m // 2, m - m // 2) and isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, model.score_samples(x), rtol=1e-12)
    # A tensor of another dtype, and a NaN that stays in its row.
    x = torch.from_numpy(rows(9, 3)).float()
    x[5, 0] = float("nan")
    found = score_samples_distributed(model, x.requires_grad_())
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, model.score_samples(x).detach(), equal_nan=True)
    assert found.isnan().nonzero().tolist() == [[5]]
    # What goes wrong on one process is told on all, and none waits.
    with pytest.raises(ValueError, match="same rows on every process, got"):
        score_samples_distributed(model, rows(6 + rank, 3))
    model.fails = rank == 1
    with pytest.raises(ValueError, match=r"process 1 of 2 could not score its rows: RuntimeError: no memory"):
        score_samples_distributed(model, rows(6, 3))
