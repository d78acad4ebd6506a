"""The dynamics of min-max games of two numbers under the update rules that train GANs: why GANs oscillate.

Player x descends on `f(x, y)`, player y climbs it. With `v = (df/dx, -df/dy)` and step `h`, at `z = (x, y)`:

    simultaneous    z' = z - h v(z)
    alternating     x' = x - h df/dx(x, y),   y' = y + h df/dy(x', y)
    extragradient   z' = z - h v(z - h v(z))
    optimistic      z' = z - 2 h v(z) + h v(z before)

Near an equilibrium a rule is a linear map, and what becomes of the game is its spectral radius: below 1 it converges,
at 1 it circles, above 1 it runs away. For `f = a x y`, the game of a Wasserstein GAN, simultaneous steps run away at
any step size, `sqrt(1 + h^2 a^2)` farther each time.

Source: Mescheder, Nowozin and Geiger, "The Numerics of GANs" (2017) and "Which Training Methods for GANs do actually
Converge?" (2018), for the maps and the Dirac-GAN; Korpelevich (1976) for extragradient; Daskalakis et al., "Training
GANs with Optimism" (2018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Payoff = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Game:
    """`min over x, max over y of f(x, y)`, with its equilibrium at 0.

    Args:
        name: how a picture calls it.
        payoff: `f`, of scalars x and y, to be differentiated by autograd.
    """

    name: str
    payoff: Payoff

    def field(self, z: Tensor) -> Tensor:
        """`v(z) = (df/dx, -df/dy)` of `z = (x, y)`, [2]; differentiable in z."""
        gradient = torch.func.grad(lambda both: self.payoff(both[0], both[1]))(z)
        return gradient * gradient.new_tensor([1.0, -1.0])


def quadratic(a: float = 1.0, p: float = 0.0, q: float = 0.0) -> Game:
    """`f = a x y + p x^2 - q y^2`: bilinear where p = q = 0, and a saddle that pulls both players in where they are
    positive.
    """
    name = f"{a:g} x y" + (f" + {p:g} x² - {q:g} y²" if p or q else "")
    return Game(name.replace(" 1 ", " "), lambda x, y: a * x * y + p * x**2 - q * y**2)


def dirac_gan(r1: float = 0.0) -> Game:
    """A GAN whose data are all at 0, generator a point at x and discriminator `D(s) = y s`, by the minimax loss.

    `f = -softplus(x y) - r1 y^2 / 2`, for the R1 penalty is `r1 |D'|^2 / 2` and D' is y everywhere. Turns for ever
    without it.
    """
    return Game(
        "Dirac-GAN" + (f" with R1 of {r1:g}" if r1 else ""),
        lambda x, y: -F.softplus(x * y) - r1 / 2 * y**2,
    )


def _simultaneous(game: Game, z: Tensor, before: Tensor, step: float) -> Tensor:
    return z - step * game.field(z)


def _alternating(game: Game, z: Tensor, before: Tensor, step: float) -> Tensor:
    moved = torch.stack([z[0] - step * game.field(z)[0], z[1]])
    return torch.stack([moved[0], moved[1] - step * game.field(moved)[1]])


def _extragradient(game: Game, z: Tensor, before: Tensor, step: float) -> Tensor:
    return z - step * game.field(z - step * game.field(z))


def _optimistic(game: Game, z: Tensor, before: Tensor, step: float) -> Tensor:
    return z - 2 * step * game.field(z) + step * game.field(before)


METHODS: dict[str, Callable[[Game, Tensor, Tensor, float], Tensor]] = {
    "simultaneous": _simultaneous,
    "alternating": _alternating,
    "extragradient": _extragradient,
    "optimistic": _optimistic,
}


def play(game: Game, method: str, start: tuple[float, float], step: float, steps: int) -> Tensor:
    """Where the players are after 0 to `steps` updates: float64 [steps + 1, 2].

    Raises:
        ValueError: another method, a step that is not positive, or a negative number of steps.
    """
    rule = _rule(method, step)
    if steps < 0:
        raise ValueError(f"steps: expected at least 0, got {steps}")
    z = before = torch.tensor(start, dtype=torch.float64)
    path = [z]
    for _ in range(steps):
        z, before = rule(game, z, before, step), z
        path.append(z)
    return torch.stack(path)


def update_matrix(game: Game, method: str, step: float) -> Tensor:
    """The derivative at the equilibrium of one update of `(z, z before)`: float64 [4, 4].

    Raises:
        ValueError: as in `play`.
    """
    rule = _rule(method, step)

    def update(both: Tensor) -> Tensor:
        return torch.cat([rule(game, both[:2], both[2:], step), both[:2]])

    return torch.func.jacrev(update)(torch.zeros(4, dtype=torch.float64))


def spectral_radius(game: Game, method: str, step: float) -> float:
    """By how much a small distance from the equilibrium is multiplied in an update, in the long run.

    Raises:
        ValueError: as in `play`.
    """
    return torch.linalg.eigvals(update_matrix(game, method, step)).abs().max().item()


def _rule(method: str, step: float) -> Callable[[Game, Tensor, Tensor, float], Tensor]:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not step > 0:
        raise ValueError(f"step: expected a positive number, got {step!r}")
    return METHODS[method]
