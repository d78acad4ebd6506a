"""Hamiltonian Monte Carlo for many chains at a time, on densities between a normal prior and a posterior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastgen.nn.full_precision import with_autograd

LogLikelihood = Callable[[Tensor, Tensor], Tensor]


@dataclass
class State:
    """Where n chains are.

    Args:
        z: latents [n, d].
        log_likelihood: log p(x | z) [n].
        gradient: of it in z, [n, d].
    """

    z: Tensor
    log_likelihood: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, z: Tensor, x: Tensor, log_likelihood: LogLikelihood) -> State:
        """The state at z, with one forward and one backward pass of the decoder."""
        value, gradient = _value_and_gradient(x, z, log_likelihood)
        return cls(z.detach(), value, gradient)

    def log_density(self, beta: float) -> Tensor:
        """`log N(z; 0, I) + beta log p(x|z)` [n], but for a constant."""
        return beta * self.log_likelihood - self.z.square().sum(1) / 2

    def force(self, beta: float) -> Tensor:
        """The gradient of `log_density` in z."""
        return beta * self.gradient - self.z


@with_autograd
def _value_and_gradient(x: Tensor, z: Tensor, log_likelihood: LogLikelihood) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    value = log_likelihood(x, z)
    if value.shape != (len(z),):
        raise ValueError(f"log_likelihood: expected [{len(z)}], got {tuple(value.shape)}")
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def transition(
    state: State,
    x: Tensor,
    log_likelihood: LogLikelihood,
    beta: float,
    step_size: Tensor,
    leapfrog_steps: int,
    generator: Generator,
) -> tuple[State, Tensor]:
    """One Hamiltonian transition of all chains, which leaves `log_density(beta)` as it is.

    Args:
        state: where the chains are.
        x: their data [n, ...].
        log_likelihood: of data and latents, [n].
        beta: between 0 (prior) and 1 (posterior).
        step_size: of each chain, [n]; it must not depend on the state.
        leapfrog_steps: of each trajectory.
        generator: of momenta and acceptance.

    Returns:
        The new state, and the probabilities of acceptance [n].

    Source: Neal, "MCMC Using Hamiltonian Dynamics" (2011), section 5.3.
    """
    step = step_size[:, None]
    momentum = torch.randn(state.z.shape, generator=generator, dtype=state.z.dtype).to(state.z.device)
    energy = momentum.square().sum(1) / 2 - state.log_density(beta)
    moved, p = state, momentum + step / 2 * state.force(beta)
    for index in range(leapfrog_steps):
        moved = State.at(moved.z + step * p, x, log_likelihood)
        # Full steps of momentum between positions, half a one at the end.
        p = p + (step if index < leapfrog_steps - 1 else step / 2) * moved.force(beta)
    change = energy - (p.square().sum(1) / 2 - moved.log_density(beta))
    # A trajectory that left all numbers is refused.
    probability = change.nan_to_num(nan=-torch.inf).clamp(max=0).exp()
    uniform = torch.rand(len(change), generator=generator, dtype=torch.float64).to(change.device)
    accepted = uniform < probability
    pick = accepted[:, None]
    return (
        State(
            torch.where(pick, moved.z, state.z),
            torch.where(accepted, moved.log_likelihood, state.log_likelihood),
            torch.where(pick, moved.gradient, state.gradient),
        ),
        probability,
    )
