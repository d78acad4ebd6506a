"""Losses: f-divergences against their definitions, the others against their papers' formulas."""

import math

import pytest
import torch

from fastgen.gan import DIVERGENCES, LOSSES, adversarial_loss

P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def bound(divergence, v):
    """`E_P g(v) - E_Q f*(g(v))` of discrete P and Q, where `v` is the discriminator's output at each value."""
    return (P * divergence.activation(v)).sum() - (Q * divergence.conjugate(v)).sum()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_best_discriminator_reaches_the_divergence(name):
    divergence = DIVERGENCES[name]
    exact = (Q * divergence.f(P / Q)).sum()
    v = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([v], lr=0.5, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -bound(divergence, v)
        loss.backward()
        return loss

    optimizer.step(closure)
    reached = bound(divergence, v).item()
    assert reached == pytest.approx(exact.item(), abs=1e-6)
    # Never above, wherever the discriminator is.
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        other = 2 * torch.randn(4, generator=generator, dtype=torch.float64)
        assert bound(divergence, other).item() <= exact.item() + 1e-9


# The slope of the total variation is a step, which tanh reaches at infinity.
@pytest.mark.parametrize("name", sorted(DIVERGENCES.keys() - {"total_variation"}))
def test_at_the_best_discriminator_the_activation_is_the_slope_of_f(name):
    divergence = DIVERGENCES[name]
    ratio = torch.tensor([0.3, 0.8, 1.5, 4.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergence.f(ratio).sum(), ratio)
    low, high = torch.full((4,), -40.0, dtype=torch.float64), torch.full((4,), 40.0, dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        above = divergence.activation(middle) > slope
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    # f*(f'(u)) = u f'(u) - f(u), Legendre's transform.
    expected = ratio * slope - divergence.f(ratio)
    torch.testing.assert_close(divergence.conjugate(low), expected.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_both_orders(name):
    loss = adversarial_loss(name)
    real = torch.linspace(-2.1, 1.9, 5, dtype=torch.float64, requires_grad=True)
    fake = torch.linspace(-1.7, 2.3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradgradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(loss.generator, (fake,))


@pytest.mark.parametrize("name", LOSSES)
def test_players_pull_apart(name):
    """The discriminator wants real outputs up and generated ones down, the generator wants its own up."""
    loss = adversarial_loss(name)
    real, fake = (torch.full((3,), value, dtype=torch.float64, requires_grad=True) for value in (0.6, 0.3))
    up, down = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    (own,) = torch.autograd.grad(loss.generator(fake), fake)
    assert (up < 0).all() and (down > 0).all() and (own < 0).all()


def test_formulas_by_hand():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])

    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    discriminator = -sum(math.log(sigmoid(v)) for v in (2, -1)) / 2
    discriminator -= sum(math.log(1 - sigmoid(v)) for v in (0.5, -3)) / 2
    for name in ("minimax", "non_saturating"):
        assert LOSSES[name].discriminator(real, fake).item() == pytest.approx(discriminator)
    saturating = sum(math.log(1 - sigmoid(v)) for v in (0.5, -3)) / 2
    assert LOSSES["minimax"].generator(fake).item() == pytest.approx(saturating)
    climbing = -sum(math.log(sigmoid(v)) for v in (0.5, -3)) / 2
    assert LOSSES["non_saturating"].generator(fake).item() == pytest.approx(climbing)
    assert LOSSES["hinge"].discriminator(real, fake).item() == pytest.approx((0 + 2) / 2 + (1.5 + 0) / 2)
    assert LOSSES["least_squares"].discriminator(real, fake).item() == pytest.approx((1 + 4) / 4 + (0.25 + 9) / 4)
    assert LOSSES["least_squares"].generator(fake).item() == pytest.approx((0.25 + 16) / 4)
    assert LOSSES["wasserstein"].discriminator(real, fake).item() == pytest.approx(-1.25 - 0.5)
    assert LOSSES["wasserstein"].generator(fake).item() == pytest.approx(1.25)


def test_an_unknown_loss_names_the_others():
    with pytest.raises(ValueError, match=r"loss: expected one of minimax, non_saturating, hinge, .*kl.*, got 'hings'"):
        adversarial_loss("hings")


# The other divergences grow exponentially with the output: they have no bound to keep.
@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"kl", "neyman", "reverse_kl", "squared_hellinger", "jeffrey"}))
def test_large_outputs_of_the_right_sign_are_finite(name):
    loss = adversarial_loss(name)
    big = torch.tensor([300.0])
    assert loss.discriminator(big, -big).isfinite() and loss.discriminator(-big, big).isfinite()
