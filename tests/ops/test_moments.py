"""Means and covariances are NumPy's, symmetric, and lose nothing to a large mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastgen
from fastgen.ops import moments


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_numpy_computes_the_same():
    x = torch.randn(700, 20, dtype=torch.float64) + 3
    mean, covariance = moments(x)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12, atol=1e-14)


# Near 1000, bfloat16 has steps of 4: three numbers in thousands of rows, and sums that round them alike each time.
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 3e-7), (torch.bfloat16, 5e-6)])
def test_products_in_float32_lose_nothing_to_a_large_mean(dtype: torch.dtype, error: float):
    x = (torch.randn(6000, 300) + 1000).to(dtype)
    mean, covariance = moments(x)
    exact_mean, exact = moments(x, dtype=torch.float64)
    deviations = exact.diagonal().sqrt()
    assert mean.dtype == covariance.dtype == torch.float64
    assert (mean - exact_mean).abs().max() < 1e-8 * deviations.max()
    assert ((covariance - exact).abs() / (deviations * deviations[:, None])).max() < error


def test_covariance_is_exactly_symmetric():
    _, covariance = moments(torch.randn(50, 600))
    assert torch.equal(covariance, covariance.mT)


def test_gradient_through_chunks():
    x = torch.randn(1100, 3, dtype=torch.float64, requires_grad=True)
    (mean, covariance), weights = moments(x), torch.randn(3, 3).double()
    found = torch.autograd.grad((mean.sum() + (covariance * weights).sum()), x)[0]
    expected = torch.autograd.grad(x.mean(0).sum() + (torch.cov(x.mT) * weights).sum(), x)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_rows_that_are_not_finite_are_counted(backend: str):
    x = torch.randn(40, 3)
    x[3, 1], x[7, 0], x[7, 2], x[20, 2] = float("nan"), float("inf"), float("inf"), -float("inf")
    with fastgen.use_backend(backend), pytest.raises(ValueError, match=r"x: .* NaN or infinity in 3 of 40 rows"):
        moments(x)


def test_finite_numbers_whose_sum_is_not_are_no_error():
    x = torch.full((40, 3), 3e38)
    x[0] = -3e38
    mean, _ = moments(x, dtype=torch.float64)
    torch.testing.assert_close(mean, torch.full((3,), 3e38 * 38 / 40).double(), rtol=1e-6, atol=0)


def test_bad_input():
    for shape in ((1, 3), (0, 3)):
        with pytest.raises(ValueError, match=r"x: expected at least two rows, got \("):
            moments(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"x: expected features \[N, d\], got \(3,\)"):
        moments(torch.zeros(3))
    with pytest.raises(TypeError, match=r"x: expected a floating dtype, got torch\.int64"):
        moments(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"dtype: expected torch\.float32 or torch\.float64, got torch\.float16"):
        moments(torch.zeros(3, 3), dtype=torch.float16)
