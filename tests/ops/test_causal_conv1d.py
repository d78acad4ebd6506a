"""`causal_conv1d` is its definition on sequences of any length, and its steps are the sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import zeros

import fastgen
from fastgen.ops import causal_conv1d, causal_conv1d_step
from fastgen.ops.extensions import UNUSABLE

BACKENDS = ["reference"] + ["cpp"] * (not UNUSABLE["cpp"])


def by_definition(x, weight, bias, dilation):
    steps = []
    for t in range(x.shape[2]):
        y = bias.expand(x.shape[0], -1)
        for k in range(weight.shape[2]):
            past = t - (weight.shape[2] - 1 - k) * dilation
            if past >= 0:
                y = y + x[:, :, past] @ weight[:, :, k].t()
        steps.append(y)
    return torch.stack(steps, dim=2)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 5), st.integers(1, 40)),
    time=st.integers(1, 45),
    kernel_size=st.integers(1, 4),
    dilation=st.integers(1, 50),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_definition(backend, channels, time, kernel_size, dilation):
    in_channels, out_channels = channels
    x = torch.randn(2, in_channels, time, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(out_channels, in_channels, kernel_size, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(out_channels, dtype=torch.float64, requires_grad=True)
    with fastgen.use_backend(backend):
        found = causal_conv1d(x, weight, bias, dilation=dilation)
    expected = by_definition(x, weight, bias, dilation)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    inputs = (x, weight, bias)
    found, expected = (torch.autograd.grad(y, inputs, grad) for y in (found, expected))
    for value, true in zip(found, expected, strict=True):
        torch.testing.assert_close(value, true)


@pytest.mark.skipif(bool(UNUSABLE["cpp"]), reason="no CPU kernels here")
@pytest.mark.parametrize("dilation", [1, 7, 300, 511, 700])
def test_long_sequences_are_cut_into_tiles_without_a_seam(dilation):
    x = torch.randn(1, 3, 1500, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, 4, 1500, dtype=torch.float64)
    results = []
    for backend in BACKENDS:
        with fastgen.use_backend(backend):
            y = causal_conv1d(x, weight, dilation=dilation)
        results.append((y, *torch.autograd.grad(y, (x, weight), grad)))
    for true, value in zip(*results, strict=True):
        torch.testing.assert_close(value, true)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sees_only_the_past(backend):
    x = torch.randn(1, 2, 9, dtype=torch.float64)
    weight = torch.rand(3, 2, 3, dtype=torch.float64) + 1
    with fastgen.use_backend(backend):
        jacobian = torch.autograd.functional.jacobian(lambda x: causal_conv1d(x, weight, dilation=2), x)
    sees = jacobian[0, :, :, 0].ne(0)
    for t in range(9):
        for s in range(9):
            assert sees[:, t, :, s].all() if s in (t, t - 2, t - 4) else not sees[:, t, :, s].any()


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (1, 3), (2, 1), (2, 4), (3, 2), (4, 16)])
def test_steps_are_the_sequence(kernel_size, dilation):
    x = torch.randn(3, 2, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 2, kernel_size, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    state, steps = x.new_zeros(3, 2, (kernel_size - 1) * dilation), []
    for t in range(12):
        before = state.clone()
        y, new_state = causal_conv1d_step(x[:, :, t], state, weight, bias, dilation=dilation)
        assert torch.equal(state, before) and new_state.shape == state.shape
        state = new_state
        steps.append(y)
    found, expected = torch.stack(steps, dim=2), causal_conv1d(x, weight, bias, dilation=dilation)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    found, expected = (torch.autograd.grad(y, (x, weight, bias), grad) for y in (found, expected))
    for value, true in zip(found, expected, strict=True):
        torch.testing.assert_close(value, true)


def test_state_is_the_past_oldest_first():
    x, weight = torch.randn(2, 3, 9), torch.randn(4, 3, 3)
    state = x[:, :, 1:7]
    y, after = causal_conv1d_step(x[:, :, 7], state, weight, dilation=3)
    assert torch.equal(after, x[:, :, 2:8])
    torch.testing.assert_close(y, causal_conv1d(x, weight, dilation=3)[:, :, 7])


def test_step_gradcheck():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: causal_conv1d_step(*a, dilation=2), (x, state, weight))
    assert torch.autograd.gradgradcheck(lambda *a: causal_conv1d_step(*a, dilation=2), (x, state, weight))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "time"), [(0, 5), (2, 0), (0, 0)])
def test_nothing_in_nothing_out(backend, batch, time):
    x = torch.randn(batch, 3, time, requires_grad=True)
    weight, bias = torch.randn(4, 3, 2, requires_grad=True), torch.randn(4, requires_grad=True)
    with fastgen.use_backend(backend):
        y = causal_conv1d(x, weight, bias, dilation=3)
        y.sum().backward()
    assert y.shape == (batch, 4, time)
    assert not weight.grad.any() and not bias.grad.any() and x.grad.shape == x.shape


def test_autocast_is_that_of_conv1d():
    x, weight = torch.randn(2, 3, 5, requires_grad=True), torch.randn(4, 3, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = causal_conv1d(x, weight)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "weight", "bias", "dilation", "error", "message"),
    [
        (
            zeros(2, 3, 5),
            zeros(4, 2, 2),
            None,
            1,
            ValueError,
            r"x: expected \[batch, 2, time\], got \(2",
        ),
        (zeros(3, 5), zeros(4, 3, 2), None, 1, ValueError, "x: expected"),
        (zeros(2, 3, 5), zeros(4, 3), None, 1, ValueError, "weight: expected"),
        (zeros(2, 3, 5), zeros(4, 3, 0), None, 1, ValueError, "weight: expected"),
        (
            zeros(2, 3, 5),
            zeros(4, 3, 2),
            zeros(3),
            1,
            ValueError,
            r"bias: expected \(4,\), got \(3,\)",
        ),
        (zeros(2, 3, 5), zeros(4, 3, 2), None, 0, ValueError, "dilation: expected a positive int, got 0"),
        (zeros(2, 3, 5), zeros(4, 3, 2), None, 1.5, ValueError, "dilation: "),
        (zeros(2, 3, 5).long(), zeros(4, 3, 2), None, 1, TypeError, "x: expected a floating dtype"),
        (zeros(2, 3, 5), zeros(4, 3, 2).double(), None, 1, TypeError, "weight: expected torch.float32"),
        (zeros(2, 3, 5), zeros(4, 3, 2, device="meta"), None, 1, TypeError, "weight: expected .* on cpu"),
        (zeros(2, 3, 5), zeros(4, 3, 2), zeros(4).half(), 1, TypeError, "bias: expected torch.float"),
    ],
)
def test_bad_arguments(x, weight, bias, dilation, error, message):
    with pytest.raises(error, match=message):
        causal_conv1d(x, weight, bias, dilation=dilation)


@pytest.mark.parametrize(
    ("x", "state", "error", "message"),
    [
        (zeros(2, 3), zeros(2, 3, 3), ValueError, r"state: expected \(2, 3, 2\), got \(2, 3, 3\)"),
        (zeros(2, 3, 1), zeros(2, 3, 2), ValueError, r"x: expected \[batch, 3\], got \(2, 3, 1\)"),
        (zeros(2, 3), zeros(2, 3, 2).double(), TypeError, "state: expected torch.float32"),
    ],
)
def test_bad_steps(x, state, error, message):
    with pytest.raises(error, match=message):
        causal_conv1d_step(x, state, zeros(4, 3, 2), dilation=2)
