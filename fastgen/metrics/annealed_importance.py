"""Log-likelihoods of decoder models: bounded below by annealed importance sampling, above by its reverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastgen.metrics.arguments import whole_number
from fastgen.metrics.hamiltonian import LogLikelihood, State, transition
from fastgen.nn.full_precision import full_precision

# Acceptance that step sizes are tuned to (Neal, 2011, section 5.4.4), and how fast.
_ACCEPTANCE, _RATE = 0.65, 0.1


@dataclass(frozen=True)
class AnnealedEstimate:
    """What the chains of `annealed_importance_sampling` found.

    Args:
        log_likelihood: the estimates of log p(x) [B], nats: their expectation is a lower bound.
        log_weights: of the chains, [chains, B].
        samples: where the chains ended, [chains, B, d]: close to the posterior.
        acceptance: the mean probability of acceptance of each example's transitions, [B].
    """

    log_likelihood: Tensor
    log_weights: Tensor
    samples: Tensor
    acceptance: Tensor

    @property
    def effective_sample_size(self) -> Tensor:
        """`(sum w)^2 / sum w^2` [B], from 1 (one chain says it all) to the number of chains."""
        return (2 * self.log_weights.logsumexp(0) - (2 * self.log_weights).logsumexp(0)).exp()


@dataclass(frozen=True)
class BidirectionalEstimate:
    """Bounds on the log-likelihoods of simulated data, [n] each, nats.

    Args:
        lower: by annealed importance sampling; below log p(x) in expectation.
        upper: by the reverse chain from the exact posterior sample; above log p(x) in expectation.
        x: the data.
    """

    lower: Tensor
    upper: Tensor
    x: Tensor

    @property
    def gap(self) -> float:
        """The mean of upper less lower: no more than this are the lower bounds off on data of this kind."""
        return (self.upper - self.lower).mean().item()


def inverse_temperatures(steps: int) -> list[float]:
    """beta_0 = 0 to beta_T = 1 along a sigmoid, which is slow at both ends.

    Source: Wu et al., "On the Quantitative Analysis of Decoder-Based Generative Models" (2017), section 5.1.
    """
    width = 4.0
    ends = 1 / (1 + math.exp(width)), 1 / (1 + math.exp(-width))
    values = [1 / (1 + math.exp(-width * (2 * t / steps - 1))) for t in range(steps + 1)]
    scaled = [(v - ends[0]) / (ends[1] - ends[0]) for v in values]
    return [0.0, *scaled[1:-1], 1.0]


@full_precision
@torch.no_grad()
def annealed_importance_sampling(
    log_likelihood: LogLikelihood,
    x: Tensor,
    latent_dim: int,
    *,
    chains: int = 16,
    steps: int = 500,
    leapfrog_steps: int = 10,
    step_sizes: Tensor | None = None,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> AnnealedEstimate:
    """Estimates log p(x) = log integral N(z; 0, I) p(x|z) dz by chains that go from the prior to the posterior:

        log w = sum_t (beta_t - beta_(t-1)) log p(x | z_(t-1)),    log p(x) ~ log mean w

    E[w] = p(x) exactly, so that E[log mean w] <= log p(x). All chains of all examples move at once.

    Args:
        log_likelihood: of data [n, ...] and latents [n, d]: log p(x|z) [n] in nats, differentiable in z.
        x: the examples, [B, ...].
        latent_dim: d.
        chains: independent ones for each example.
        steps: T, temperatures between prior and posterior. Twice as many halve the bias, or better.
        leapfrog_steps: of each Hamiltonian trajectory.
        step_sizes: [T, B]; None finds them with a quarter of the chains that are then thrown away, so that those which
            count have fixed ones and stay exact.
        generator: of everything random, on the CPU.
        dtype: of the latents.

    Raises:
        ValueError: arguments out of range; a log-likelihood that is not finite where the chains start.

    Source: Neal, "Annealed Importance Sampling" (2001), section 2; Wu et al., "On the Quantitative Analysis of
    Decoder-Based Generative Models" (2017), section 3.
    """
    latent_dim, chains, steps, leapfrog_steps = _checked(x, latent_dim, chains, steps, leapfrog_steps)
    generator = generator or torch.Generator().manual_seed(0)
    settings = (log_likelihood, x, latent_dim, steps, leapfrog_steps, generator, dtype)
    if step_sizes is None:
        step_sizes = find_step_sizes(*settings, chains=max(1, chains // 4))
    elif step_sizes.shape != (steps, len(x)):
        raise ValueError(f"step_sizes: expected [{steps}, {len(x)}], got {tuple(step_sizes.shape)}")
    return _forward(*settings, chains, step_sizes, tuned=None)


@full_precision
@torch.no_grad()
def bidirectional_monte_carlo(
    log_likelihood: LogLikelihood,
    simulate: Callable[[Tensor, Generator], Tensor],
    n: int,
    latent_dim: int,
    *,
    chains: int = 16,
    steps: int = 500,
    leapfrog_steps: int = 10,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> BidirectionalEstimate:
    """Bounds the log-likelihoods of data that the model makes, from below and from above.

    The latent that made an example is an exact sample of its posterior. From it, chains that run backwards to the prior
    have weights of expectation 1 / p(x), and minus the logarithm of their mean is an upper bound in expectation. Where
    the two bounds meet, the number of steps suffices for data of this kind.

    Args:
        log_likelihood: as for `annealed_importance_sampling`.
        simulate: from latents [n, d] and a generator to data [n, ...], drawn from p(x|z).
        n: how many examples.
        latent_dim: d.
        chains: as for `annealed_importance_sampling`, in both directions.
        steps: as there.
        leapfrog_steps: as there.
        generator: as there.
        dtype: of the latents.
        device: of the latents.

    Source: Grosse, Ghahramani and Adams, "Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo" (2015),
    section 3.
    """
    generator = generator or torch.Generator().manual_seed(0)
    n, latent_dim = whole_number("n", n), whole_number("latent_dim", latent_dim)
    z = torch.randn(n, latent_dim, generator=generator, dtype=dtype).to(device)
    x = simulate(z, generator)
    latent_dim, chains, steps, leapfrog_steps = _checked(x, latent_dim, chains, steps, leapfrog_steps)
    settings = (log_likelihood, x, latent_dim, steps, leapfrog_steps, generator, dtype)
    step_sizes = find_step_sizes(*settings, chains=max(1, chains // 4))
    lower = _forward(*settings, chains, step_sizes, tuned=None).log_likelihood
    return BidirectionalEstimate(lower, _reverse(*settings, chains, step_sizes, z), x)


def find_step_sizes(
    log_likelihood: LogLikelihood,
    x: Tensor,
    latent_dim: int,
    steps: int,
    leapfrog_steps: int,
    generator: Generator,
    dtype: torch.dtype,
    chains: int,
) -> Tensor:
    """Step sizes [T, B], each such that about two thirds of an example's trajectories are accepted there."""
    sizes = torch.full((steps, len(x)), 0.5, dtype=dtype, device=x.device)
    _forward(log_likelihood, x, latent_dim, steps, leapfrog_steps, generator, dtype, chains, sizes, tuned=sizes)
    return sizes


def _forward(
    log_likelihood: LogLikelihood,
    x: Tensor,
    latent_dim: int,
    steps: int,
    leapfrog_steps: int,
    generator: Generator,
    dtype: torch.dtype,
    chains: int,
    step_sizes: Tensor,
    tuned: Tensor | None,
) -> AnnealedEstimate:
    """Chains from the prior to the posterior; where `tuned` is given, the step sizes found on the way go there."""
    many = x.repeat(chains, *(1,) * (x.dim() - 1))
    z = torch.randn(len(many), latent_dim, generator=generator, dtype=dtype).to(x.device)
    state = _start(z, many, log_likelihood)
    beta = inverse_temperatures(steps)
    log_weights = torch.zeros(len(many), dtype=torch.float64, device=x.device)
    acceptance = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    size = step_sizes[0].clone()
    for t in range(1, steps + 1):
        log_weights += (beta[t] - beta[t - 1]) * state.log_likelihood.double()
        size = size if tuned is not None else step_sizes[t - 1]
        state, probability = transition(
            state, many, log_likelihood, beta[t], size.repeat(chains), leapfrog_steps, generator
        )
        accepted = probability.view(chains, -1).mean(0)
        acceptance += accepted.double()
        if tuned is not None:
            tuned[t - 1] = size
            size = size * torch.where(accepted > _ACCEPTANCE, 1 + _RATE, 1 / (1 + 2 * _RATE)).to(dtype)
    log_weights = log_weights.view(chains, -1)
    estimate = log_weights.logsumexp(0) - math.log(chains)
    return AnnealedEstimate(estimate, log_weights, state.z.view(chains, len(x), -1), acceptance / steps)


def _reverse(
    log_likelihood: LogLikelihood,
    x: Tensor,
    latent_dim: int,
    steps: int,
    leapfrog_steps: int,
    generator: Generator,
    dtype: torch.dtype,
    chains: int,
    step_sizes: Tensor,
    posterior: Tensor,
) -> Tensor:
    """Upper bounds [B], from chains that run backwards from samples [B, d] of the posterior."""
    many = x.repeat(chains, *(1,) * (x.dim() - 1))
    state = _start(posterior.repeat(chains, 1), many, log_likelihood)
    beta = inverse_temperatures(steps)
    log_weights = torch.zeros(len(many), dtype=torch.float64, device=x.device)
    for t in range(steps, 0, -1):
        state, _ = transition(
            state, many, log_likelihood, beta[t], step_sizes[t - 1].repeat(chains), leapfrog_steps, generator
        )
        log_weights -= (beta[t] - beta[t - 1]) * state.log_likelihood.double()
    return math.log(chains) - log_weights.view(chains, -1).logsumexp(0)


def _start(z: Tensor, x: Tensor, log_likelihood: LogLikelihood) -> State:
    state = State.at(z, x, log_likelihood)
    if bad := int((~state.log_likelihood.isfinite()).sum()):
        raise ValueError(f"log_likelihood: {bad} of {len(z)} values at the start of the chains are NaN or infinite")
    return state


def _checked(x: Tensor, latent_dim: int, chains: int, steps: int, leapfrog_steps: int) -> list[int]:
    if not isinstance(x, Tensor) or x.dim() < 1 or len(x) == 0:
        raise ValueError(f"x: expected a batch of at least one example, got {getattr(x, 'shape', type(x).__name__)}")
    given = {"latent_dim": latent_dim, "chains": chains, "steps": steps, "leapfrog_steps": leapfrog_steps}
    return [whole_number(name, value) for name, value in given.items()]
