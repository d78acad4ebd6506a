"""Likelihood terms are torch's distributions, exact where nearly certain, with probabilities that sum to one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from fastgen import conformance as c
from fastgen.ops import (
    bernoulli_log_prob,
    discretized_logistic_log_prob,
    discretized_logistic_mixture_log_prob,
    gaussian_log_prob,
)
from fastgen.ops.registry import use_backend

COMPILED = sorted({variant for op, variant in c.variants("cpu") if op.name == "bernoulli_log_prob"})


@pytest.fixture(params=["reference", *COMPILED])
def backend(request):
    with use_backend("reference") if request.param == "reference" else c.running_on(request.param):
        yield request.param


def test_torch_distributions(backend):
    mean, logvar, x = torch.randn(3, 4, 5, 7).unbind()
    expected = Normal(mean, torch.exp(logvar / 2)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_log_prob(mean, logvar, x), expected, rtol=1e-5, atol=1e-5)
    shared = torch.tensor(0.3)
    expected = Normal(mean, torch.exp(shared / 2)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_log_prob(mean, shared, x), expected, rtol=1e-5, atol=1e-5)
    x = (x > 0).float()
    expected = Bernoulli(logits=mean).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(bernoulli_log_prob(mean, x), expected, rtol=1e-5, atol=1e-5)


def test_levels_have_probability_one(backend):
    levels = 17
    x = (2 * torch.arange(levels) / (levels - 1) - 1).view(levels, 1)
    for mean in (-3.0, -0.4, 0.99, 5.0):
        for log_scale in (-8.0, -3.0, 0.0, 4.0):
            log_prob = discretized_logistic_log_prob(
                torch.full_like(x, mean), torch.full_like(x, log_scale), x, levels=levels
            )
            assert abs(float(log_prob.double().exp().sum()) - 1) < 1e-5, (mean, log_scale)


def test_one_logistic_is_a_mixture_of_one(backend):
    mean, log_scale = torch.randn(2, 3, 1, 4, 5).unbind()
    x = torch.randint(256, (3, 1, 4, 5)) / 127.5 - 1
    parameters = torch.cat([torch.zeros_like(mean), mean, log_scale - 2], 1)
    mixture = discretized_logistic_mixture_log_prob(x, parameters).flatten(1).sum(1)
    torch.testing.assert_close(discretized_logistic_log_prob(mean, log_scale - 2, x), mixture, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize("confidence", [6.0, 14.0, 30.0])
def test_what_is_nearly_certain_keeps_its_digits(variant: str, confidence: float):
    """A decoder that is right about the background: each pixel adds little, and a sum of ones would drown it."""
    with c.running_on(variant):
        logits = torch.full((1, 784), confidence)
        found = bernoulli_log_prob(logits, torch.ones_like(logits))
        exact = -784 * torch.log1p(torch.exp(torch.tensor(-confidence, dtype=torch.float64)))
        assert abs(float(found / exact) - 1) < 1e-6
        # The lowest bin, with its upper end `confidence` scales above the mean.
        half, scale = 1 / 255, torch.tensor(0.05)
        mean = torch.full((1, 784), half - 1.0) - confidence * scale
        found = discretized_logistic_log_prob(mean, scale.log(), torch.full_like(mean, -1.0))
        upper = (half - 1.0 - mean[0, 0].double()) / scale.log().double().exp()
        exact = -784 * torch.log1p(torch.exp(-upper))
        assert abs(float(found / exact) - 1) < 2e-5


@pytest.mark.parametrize("variant", COMPILED)
def test_gradients_of_what_is_nearly_certain(variant: str):
    logits = torch.tensor([[20.0, -20.0, 20.0, -20.0]], requires_grad=True)
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    with c.running_on(variant):
        (grad,) = torch.autograd.grad(bernoulli_log_prob(logits, x).sum(), logits)
    small = float(torch.exp(torch.tensor(-20.0, dtype=torch.float64)))
    torch.testing.assert_close(grad, torch.tensor([[small, -small, -1.0, 1.0]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("op", ["gaussian", "logistic"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1500, 3), (7, 3000), (0, 4), (5, 0)])
@pytest.mark.parametrize("spread_shape", [(), (1,), (1, 1)])
def test_one_spread_for_all(backend, op: str, shape: tuple, spread_shape: tuple):
    mean, x = (torch.rand(shape) - 0.5 for _ in range(2))
    spread = torch.full(spread_shape, -1.7, requires_grad=True)
    wide = spread.detach().reshape(()).expand(shape).contiguous().requires_grad_()
    weights = torch.randn(shape[0])
    found, expected = call(op, mean, spread, x), call(op, mean, wide, x)
    torch.testing.assert_close(found, expected)
    (grad,) = torch.autograd.grad(found, spread, weights)
    (of_each,) = torch.autograd.grad(expected, wide, weights)
    assert grad.shape == spread.shape
    assert abs(float(grad.sum()) - float(of_each.double().sum())) <= 1e-6 * float(of_each.abs().sum())


def test_small_log_variance_is_finite(backend):
    mean, x = torch.zeros(2, 50), torch.full((2, 50), 0.5)
    logvar = torch.full((2, 50), -500.0, requires_grad=True)
    log_prob = gaussian_log_prob(mean, logvar, x)
    assert log_prob.isfinite().all() and (log_prob < -1e30).all()
    (grad,) = torch.autograd.grad(log_prob.sum(), logvar)
    assert not grad.any()


def call(op: str, *args: Tensor) -> Tensor:
    return {"bernoulli": bernoulli_log_prob, "gaussian": gaussian_log_prob, "logistic": discretized_logistic_log_prob}[
        op
    ](*args)


@pytest.mark.parametrize("op", ["bernoulli", "gaussian", "logistic"])
def test_not_a_number_stays_in_its_sample(backend, op: str):
    args = [torch.zeros(3, 3000) for _ in range(2 if op == "bernoulli" else 3)]
    for i in range(len(args)):
        poisoned = [a.clone() for a in args]
        poisoned[i][1, 2500] = torch.nan
        assert call(op, *poisoned).isnan().tolist() == [False, True, False], i


@pytest.mark.parametrize("op", ["bernoulli", "gaussian", "logistic"])
def test_half_types_sum_in_float32(backend, op: str):
    args = [torch.full((2, 3000), 0.25, dtype=torch.bfloat16) for _ in range(2 if op == "bernoulli" else 3)]
    found = call(op, *args)
    assert found.dtype == torch.float32
    with use_backend("reference"):
        torch.testing.assert_close(found.double(), call(op, *(a.double() for a in args)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("op", ["bernoulli", "gaussian", "logistic"])
def test_number_of_threads_changes_nothing(op: str):
    args = [torch.rand(37, 1234) for _ in range(2 if op == "bernoulli" else 3)]
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(call(op, *args))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("op", ["bernoulli", "gaussian", "logistic"])
def test_only_inputs_are_saved(op: str):
    args = [torch.rand(37, 1234).requires_grad_() for _ in range(2 if op == "bernoulli" else 3)]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        call(op, *args)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in args}


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": X.int()}, TypeError, "logits: expected a floating dtype, got torch.int32"),
        ({"logits": torch.tensor(1.0)}, ValueError, r"logits: expected \[batch, \.\.\.\]"),
        ({"x": X.double()}, TypeError, "x: expected torch.float32 on cpu, got torch.float64"),
        ({"x": X[:1]}, ValueError, r"x: expected the shape of logits, \(2, 3\), got \(1, 3\)"),
    ],
)
def test_bad_arguments_of_bernoulli(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        bernoulli_log_prob(**{"logits": X, "x": X, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mean": X.int()}, TypeError, "mean: expected a floating dtype, got torch.int32"),
        ({"x": X[:1]}, ValueError, r"x: expected the shape of mean, \(2, 3\), got \(1, 3\)"),
        (
            {"log_scale": X[0]},
            ValueError,
            r"log_scale: expected the shape of mean, \(2, 3\), or one number, got \(3,\)",
        ),
        ({"log_scale": X.double()}, TypeError, "log_scale: expected torch.float32 on cpu, got torch.float64"),
        ({"levels": 1}, ValueError, "levels: expected 2 to 65536, got 1"),
    ],
)
def test_bad_arguments_of_the_logistic(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        discretized_logistic_log_prob(**{"mean": X, "log_scale": X, "x": X, **change})


def test_bad_arguments_of_the_gaussian():
    with pytest.raises(ValueError, match=r"logvar: expected the shape of mean, \(2, 3\), or one number, got \(2, 1\)"):
        gaussian_log_prob(X, X[:, :1], X)
