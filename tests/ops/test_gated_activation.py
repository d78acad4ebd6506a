"""`gated_activation` is tanh times sigmoid, exact for small inputs, and saves no more than its inputs."""

import pytest
import torch

from fastgen.ops import gated_activation


def test_is_tanh_times_sigmoid():
    x = torch.tensor([[0.5, -2.0]])
    expected = torch.tanh(torch.tensor(0.5)) * torch.sigmoid(torch.tensor(-2.0))
    torch.testing.assert_close(gated_activation(x), expected.reshape(1, 1))


def test_condition_is_added_to_every_position():
    x, condition = torch.randn(2, 6, 4, 5), torch.randn(2, 6)
    torch.testing.assert_close(gated_activation(x, condition), gated_activation(x + condition[:, :, None, None]))


def test_small_inputs_keep_relative_accuracy():
    a = torch.logspace(-30, 0, 100, dtype=torch.float64)
    x = torch.stack([a, torch.zeros_like(a)], dim=1)
    found = gated_activation(x.float()).double()
    torch.testing.assert_close(found[:, 0], torch.tanh(a) / 2, rtol=1e-6, atol=0)


def test_saves_nothing_beyond_its_inputs():
    x, condition = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 6, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        gated_activation(x, condition)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), condition.data_ptr()}


@pytest.mark.parametrize(
    ("x", "condition", "error", "message"),
    [
        (torch.zeros(2, 3), None, ValueError, r"x: expected \[batch, 2 \* channels, ...\], got \(2, 3\)"),
        (torch.zeros(4), None, ValueError, "x: expected"),
        (torch.zeros(2, 4, dtype=torch.int64), None, TypeError, "x: expected a floating dtype"),
        (
            torch.zeros(2, 4, 5),
            torch.zeros(2, 3),
            ValueError,
            r"condition: expected \(2, 4\) or the shape of x, \(2, 4, 5\)",
        ),
        (torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.float64), TypeError, "condition: expected torch.float32"),
    ],
)
def test_bad_arguments(x, condition, error, message):
    with pytest.raises(error, match=message):
        gated_activation(x, condition)
