"""Losses of the discriminator and the generator of a GAN, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of losses on the discriminator's outputs `v` (logits, unbounded), both to be made small.

    Attributes:
        discriminator: takes the outputs for real and for generated data, [batch] each, to a scalar.
        generator: takes the outputs for generated data to a scalar.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def adversarial_loss(name: str) -> AdversarialLoss:
    """The loss called `name`, one of `LOSSES`.

    Raises:
        ValueError: there is no such loss.
    """
    if name not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {name!r}")
    return LOSSES[name]


@dataclass(frozen=True)
class Divergence:
    """An f-divergence `D_f(P || Q) = E_Q f(p / q)` as f-GAN plays for it.

    The discriminator's output `v` goes through an activation `g` onto the domain of the convex conjugate `f*`:

        D_f(P || Q) >= E_P g(v) - E_Q f*(g(v)),    equal where g(v) = f'(p / q).

    `f*(g(v))` is written out as one function of `v`: in two steps it would overflow, or lose all its digits, where its
    value is plain.

    Attributes:
        f: of the ratio `u > 0`, with `f(1) = 0`.
        activation: `g`.
        conjugate: `f*(g(v))`.

    Source: Nowozin, Cseke and Tomioka, "f-GAN" (2016), equations 4 to 8 and tables 2 and 6.
    """

    f: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]

    def bound(self, real: Tensor, fake: Tensor) -> Tensor:
        """`E_P g(v) - E_Q f*(g(v))`, what the discriminator makes large and the generator small."""
        return self.activation(real).mean() - self.conjugate(fake).mean()

    @property
    def loss(self) -> AdversarialLoss:
        return AdversarialLoss(lambda real, fake: -self.bound(real, fake), lambda fake: -self.conjugate(fake).mean())


class _WrightOmega(torch.autograd.Function):
    """The `w > 0` with `w + log w = y`, differentiable to any order: `dw/dy = w / (1 + w)`."""

    @staticmethod
    def forward(ctx, y: Tensor) -> Tensor:
        # Newton in log w, where the equation is smooth over the whole line: four steps are exact in float64.
        exact = y.double()
        log_w = torch.where(exact > 1, exact.clamp(min=1).log(), exact - exact.clamp(max=1).exp().log1p())
        for _ in range(6):
            w = log_w.exp()
            log_w = log_w - (w + log_w - exact) / (w + 1)
        w = log_w.exp().to(y.dtype)
        ctx.save_for_backward(y)
        return w

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        w = _WrightOmega.apply(y)
        return grad * w / (1 + w)


def _jeffrey_conjugate(v: Tensor) -> Tensor:
    w = _WrightOmega.apply(1 - v)
    return w + 1 / w + v - 2


_LOG_2 = math.log(2)

DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(lambda u: u * u.log(), lambda v: v, lambda v: (v - 1).exp()),
    "reverse_kl": Divergence(lambda u: -u.log(), lambda v: -(-v).exp(), lambda v: v - 1),
    "jeffrey": Divergence(lambda u: (u - 1) * u.log(), lambda v: v, _jeffrey_conjugate),
    "pearson": Divergence(lambda u: (u - 1) ** 2, lambda v: v, lambda v: v**2 / 4 + v),
    "neyman": Divergence(lambda u: (1 - u) ** 2 / u, lambda v: 1 - (-v).exp(), lambda v: 2 - 2 * (-v / 2).exp()),
    "squared_hellinger": Divergence(lambda u: (u.sqrt() - 1) ** 2, lambda v: 1 - (-v).exp(), lambda v: v.exp() - 1),
    "jensen_shannon": Divergence(
        lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        lambda v: _LOG_2 - F.softplus(-v),
        lambda v: F.softplus(v) - _LOG_2,
    ),
    "total_variation": Divergence(lambda u: (u - 1).abs() / 2, lambda v: v.tanh() / 2, lambda v: v.tanh() / 2),
}


def _minimax_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


LOSSES: dict[str, AdversarialLoss] = {
    # Goodfellow et al., "Generative Adversarial Nets" (2014), equation 1: D is sigmoid(v).
    "minimax": AdversarialLoss(_minimax_discriminator, lambda fake: -F.softplus(fake).mean()),
    # The same paper, end of section 3: the generator climbs log D(G(z)), whose gradient does not vanish where D wins.
    "non_saturating": AdversarialLoss(_minimax_discriminator, lambda fake: F.softplus(-fake).mean()),
    # Lim and Ye, "Geometric GAN" (2017), equations 15 and 17; Miyato et al. (2018), equations 16 and 17.
    "hinge": AdversarialLoss(
        lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()
    ),
    # Mao et al., "Least Squares Generative Adversarial Networks" (2017), equation 9: 0 for generated, 1 for real.
    "least_squares": AdversarialLoss(
        lambda real, fake: ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
        lambda fake: ((fake - 1) ** 2).mean() / 2,
    ),
    # Arjovsky, Chintala and Bottou, "Wasserstein GAN" (2017), equations 2 and 3. Wants a gradient penalty.
    "wasserstein": AdversarialLoss(lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
    **{name: divergence.loss for name, divergence in DIVERGENCES.items()},
}
