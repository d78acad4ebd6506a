"""Penalties against gradients that are known."""

import pytest
import torch
from torch import nn

from fastgen.gan import gradient_penalty, path_lengths, squared_gradient, zero_centred_penalty


def test_squared_gradient_of_a_quadratic():
    matrix = torch.randn(6, 6, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64)
    squared, outputs = squared_gradient(lambda x: ((x @ matrix) * x).sum(1) / 2, x)
    torch.testing.assert_close(squared, (x @ (matrix + matrix.T) / 2).square().sum(1))
    torch.testing.assert_close(outputs, ((x @ matrix) * x).sum(1) / 2)


def test_zero_centred_penalty_is_differentiated_in_the_weights():
    """Of `D = w.x` the gradient is w everywhere: R1 is |w|^2 / 2, and its own gradient w."""
    weight = torch.randn(7, dtype=torch.float64, requires_grad=True)
    penalty = zero_centred_penalty(lambda x: x @ weight, torch.randn(3, 7, dtype=torch.float64))
    torch.testing.assert_close(penalty, weight.square().sum() / 2)
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, weight)


def test_penalty_works_where_gradients_are_off():
    weight = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert zero_centred_penalty(lambda x: x @ weight, torch.randn(2, 3)) > 0


def test_gradient_penalty_lies_on_the_lines_between():
    seen = []

    def discriminate(x):
        seen.append(x.detach())
        return 3 * x[:, 0]

    real, fake = torch.zeros(100, 2), torch.stack([torch.ones(100), torch.full((100,), 2.0)], 1)
    assert gradient_penalty(discriminate, real, fake).item() == pytest.approx((3 - 1) ** 2)
    share = seen[0][:, 0]
    torch.testing.assert_close(seen[0][:, 1], 2 * share)
    assert share.min() > 0 and share.max() < 1 and 0.3 < share.mean() < 0.7 and share.std() > 0.2
    with pytest.raises(ValueError, match="fake: expected the shape of real"):
        gradient_penalty(discriminate, real, fake[:3])


def test_gradient_penalty_of_a_dead_network_is_finite():
    weight = torch.zeros(2, requires_grad=True)
    penalty = gradient_penalty(lambda x: x @ weight, torch.ones(3, 2), torch.zeros(3, 2))
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert penalty.item() == pytest.approx(1, abs=1e-5) and gradient.isfinite().all()


def test_path_length_of_an_orthogonal_map_is_its_scale():
    """Of `image = s Q w` with Q orthonormal, `|J^T y|` is `s |Q^T y|`, whose mean square is `s^2 k / pixels`."""
    torch.manual_seed(0)
    side, k = 4, 8
    q, _ = torch.linalg.qr(torch.randn(side * side, k, dtype=torch.float64))
    w = torch.randn(4000, k, dtype=torch.float64, requires_grad=True)
    images = 3 * (w @ q.T).view(-1, 1, side, side)
    lengths = path_lengths(w, images)
    assert lengths.square().mean().item() == pytest.approx(9 * k / side**2, rel=0.05)


def test_path_length_averages_over_layers_of_w():
    torch.manual_seed(0)
    w = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    images = w[:, 0].view(5, 1, 2, 2) + 0 * w.sum()
    torch.manual_seed(1)
    lengths = path_lengths(w, images)
    torch.manual_seed(1)
    noise = torch.randn(5, 1, 2, 2, dtype=torch.float64) / 2
    torch.testing.assert_close(lengths, (noise.flatten(1).square().sum(1) / 3).sqrt())


def test_penalties_of_a_network_have_second_derivatives():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, parameters = torch.randn(6, 4, dtype=torch.float64), list(network.parameters())

    def penalty(*values):
        call = dict(zip(dict(network.named_parameters()), values, strict=True))
        return zero_centred_penalty(lambda x: torch.func.functional_call(network, call, x)[:, 0], x)

    assert torch.autograd.gradcheck(penalty, parameters)
