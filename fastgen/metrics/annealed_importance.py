"""Log-likelihoods of decoder models: bounded below by annealed importance sampling, above by its reverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from fastgen.metrics.arguments import seed_of, whole_number
from fastgen.metrics.feature_metric import row_keys
from fastgen.metrics.metric import Metric
from fastgen.nn.full_precision import full_precision, with_autograd

LogLikelihood = Callable[[Tensor, Tensor], Tensor]

# The acceptance that step sizes are tuned to (Neal, 2011, section 5.4.4), and the change of a step size at a time.
_ACCEPTANCE, _RATE = 0.65, 0.1


@dataclass(frozen=True)
class AnnealedEstimate:
    """The estimates of `annealed_importance_sampling`.

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
        """`(sum w)^2 / sum w^2` [B], from 1 (a single chain has all the weight) to the number of chains."""
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
        """The mean of upper less lower bounds: lower bounds on data of this kind are off by no more, on average."""
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
        step_sizes: [T, B]; None finds them with a quarter as many chains, which are then thrown away: the chains that
            count have fixed step sizes, so that their expectation is exact.
        generator: of everything random, on the CPU.
        dtype: of the latents.

    Raises:
        ValueError: arguments out of range; a log-likelihood that is not finite where the chains start.

    Source: Neal, "Annealed Importance Sampling" (2001), section 2; Wu et al., "On the Quantitative Analysis of
    Decoder-Based Generative Models" (2017), section 3.
    """
    sampler = _Sampler(log_likelihood, x, latent_dim, chains, steps, leapfrog_steps, generator, dtype)
    if step_sizes is None:
        step_sizes = sampler.find_step_sizes()
    elif step_sizes.shape != (sampler.steps, len(x)):
        raise ValueError(f"step_sizes: expected [{sampler.steps}, {len(x)}], got {tuple(step_sizes.shape)}")
    return sampler.forward(sampler.chains, step_sizes)


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
        n: the number of examples.
        latent_dim: d.
        chains: for each example, in either direction.
        steps: as for `annealed_importance_sampling`.
        leapfrog_steps: of each Hamiltonian trajectory.
        generator: of everything random, on the CPU.
        dtype: of the latents.
        device: of the latents.

    Raises:
        ValueError: as `annealed_importance_sampling`.

    Source: Grosse, Ghahramani and Adams, "Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo" (2015),
    section 3.
    """
    generator = generator or torch.Generator().manual_seed(0)
    n, latent_dim = whole_number("n", n), whole_number("latent_dim", latent_dim)
    z = torch.randn(n, latent_dim, generator=generator, dtype=dtype).to(device)
    x = simulate(z, generator)
    sampler = _Sampler(log_likelihood, x, latent_dim, chains, steps, leapfrog_steps, generator, dtype)
    step_sizes = sampler.find_step_sizes()
    lower = sampler.forward(sampler.chains, step_sizes).log_likelihood
    return BidirectionalEstimate(lower, sampler.backward(step_sizes, z), x)


class AnnealedLogLikelihood(Metric):
    """The mean of `annealed_importance_sampling` over examples, nats: a lower bound in expectation.

    `bidirectional_monte_carlo` bounds how far it is below, on data that the model makes.

    Args:
        log_likelihood: of data [n, ...] and latents [n, d], such as a `GaussianDecoder`'s.
        latent_dim: d.
        chains: for each example.
        steps: temperatures between prior and posterior.
        leapfrog_steps: of each Hamiltonian trajectory.
        seed: of the chains; those of a batch depend on the seed and the batch, and not on other batches.
        kwargs: torchmetrics' own.

    Raises:
        TypeError, ValueError: arguments of another kind or out of range; on updating, as
            `annealed_importance_sampling`; on computing, fewer than 2 examples.
    """

    is_differentiable = False
    higher_is_better = True

    def __init__(
        self,
        log_likelihood: LogLikelihood,
        latent_dim: int,
        *,
        chains: int = 16,
        steps: int = 500,
        leapfrog_steps: int = 10,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not callable(log_likelihood):
            raise TypeError(f"log_likelihood: expected a function of x and z, got {type(log_likelihood).__name__}")
        self.log_likelihood, self.seed = log_likelihood, seed_of(seed)
        self.latent_dim = whole_number("latent_dim", latent_dim)
        settings = {"chains": chains, "steps": steps, "leapfrog_steps": leapfrog_steps}
        self.settings = {name: whole_number(name, value) for name, value in settings.items()}
        self.add_state("estimates", default=[], dist_reduce_fx="cat")

    def update(self, x: Tensor) -> None:
        """Take in examples [B, ...]."""
        if isinstance(x, Tensor) and x.dim() and not len(x):
            return
        # A seed is not negative.
        batch = int(row_keys(x).sum()) & (2**62 - 1)
        generator = torch.Generator().manual_seed(batch ^ (self.seed * 0x9E3779B97F4A7C15 & (2**62 - 1)))
        found = annealed_importance_sampling(
            self.log_likelihood, x, self.latent_dim, generator=generator, **self.settings
        )
        self.keep("estimates", found.log_likelihood)

    def compute(self) -> dict[str, Tensor]:
        """`log_likelihood` and its `standard_error` over the examples."""
        found = self.rows("estimates")
        self.check_enough(len(found), 2, "examples")
        # Sorted, so that the sum does not depend on which process computed what.
        found = found.sort().values
        return {"log_likelihood": found.mean(), "standard_error": found.std() / len(found) ** 0.5}


@dataclass(frozen=True)
class GaussianDecoder:
    """`p(x|z) = N(x; decode(z), sigma^2 I)`.

    Args:
        decode: from latents [n, d] to means [n, ...], of the shape of the data.
        sigma: the deviation of the noise.

    Raises:
        ValueError: `sigma` is not a positive finite number.
    """

    decode: Callable[[Tensor], Tensor]
    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma: expected a positive number, got {self.sigma!r}")

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x|z)` [n], nats."""
        errors = ((_widened(x) - _widened(self.decode(z))) / self.sigma).flatten(1)
        return -errors.square().sum(1) / 2 - errors.shape[1] * math.log(self.sigma * math.sqrt(2 * math.pi))

    def simulate(self, z: Tensor, generator: Generator) -> Tensor:
        """Data [n, ...] drawn from p(x|z)."""
        mean = self.decode(z)
        return mean + self.sigma * torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)


@dataclass(frozen=True)
class BernoulliDecoder:
    """`p(x|z) = prod_i s(l_i)^x_i (1 - s(l_i))^(1 - x_i)`, for binary data.

    Args:
        decode: from latents [n, d] to logits l [n, ...], of the shape of the data.
    """

    decode: Callable[[Tensor], Tensor]

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x|z)` [n], nats."""
        logits = _widened(self.decode(z))
        return -F.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none").flatten(1).sum(1)

    def simulate(self, z: Tensor, generator: Generator) -> Tensor:
        """Data [n, ...] of zeros and ones, drawn from p(x|z)."""
        probability = self.decode(z).sigmoid()
        uniform = torch.rand(probability.shape, generator=generator, dtype=probability.dtype).to(probability.device)
        return (uniform < probability).to(probability.dtype)


def _widened(x: Tensor) -> Tensor:
    """`x` in float32 or more, which sums over the values of an example need."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Sampler:
    """Annealed importance sampling of examples x [B, ...], with the arguments of `annealed_importance_sampling`.

    Raises:
        ValueError: arguments out of range.
    """

    def __init__(
        self,
        log_likelihood: LogLikelihood,
        x: Tensor,
        latent_dim: int,
        chains: int,
        steps: int,
        leapfrog_steps: int,
        generator: Generator | None,
        dtype: torch.dtype,
    ) -> None:
        if not isinstance(x, Tensor) or x.dim() < 1 or len(x) == 0:
            got = getattr(x, "shape", type(x).__name__)
            raise ValueError(f"x: expected a batch of at least one example, got {got}")
        self.log_likelihood, self.x, self.dtype = log_likelihood, x, dtype
        self.latent_dim, self.chains = whole_number("latent_dim", latent_dim), whole_number("chains", chains)
        self.steps, self.leapfrog_steps = whole_number("steps", steps), whole_number("leapfrog_steps", leapfrog_steps)
        self.generator = generator or torch.Generator().manual_seed(0)
        self.beta = inverse_temperatures(self.steps)

    def find_step_sizes(self) -> Tensor:
        """Step sizes [T, B] with which about two thirds of each example's trajectories are accepted."""
        sizes = torch.full((self.steps, len(self.x)), 0.5, dtype=self.dtype, device=self.x.device)
        self.forward(max(1, self.chains // 4), sizes, tune=True)
        return sizes

    def forward(self, chains: int, step_sizes: Tensor, tune: bool = False) -> AnnealedEstimate:
        """Run chains from the prior to the posterior, with step sizes [T, B].

        Where `tune`, only the first row of the step sizes is read; those found on the way are written into them.
        """
        many = self._repeated(chains)
        z = torch.randn(len(many), self.latent_dim, generator=self.generator, dtype=self.dtype).to(many.device)
        state = self._start(z, many)
        log_weights = torch.zeros(len(many), dtype=torch.float64, device=many.device)
        acceptance = torch.zeros(len(self.x), dtype=torch.float64, device=many.device)
        size = step_sizes[0].clone()
        for t in range(1, self.steps + 1):
            log_weights += (self.beta[t] - self.beta[t - 1]) * state.log_likelihood.double()
            size = size if tune else step_sizes[t - 1]
            state, probability = self._move(state, many, t, size.repeat(chains))
            accepted = probability.view(chains, -1).mean(0)
            acceptance += accepted.double()
            if tune:
                step_sizes[t - 1] = size
                size = size * torch.where(accepted > _ACCEPTANCE, 1 + _RATE, 1 / (1 + 2 * _RATE)).to(self.dtype)
        log_weights = log_weights.view(chains, -1)
        estimate = log_weights.logsumexp(0) - math.log(chains)
        samples = state.z.view(chains, len(self.x), -1)
        return AnnealedEstimate(estimate, log_weights, samples, acceptance / self.steps)

    def backward(self, step_sizes: Tensor, posterior: Tensor) -> Tensor:
        """Upper bounds [B], from chains that run backwards from samples [B, d] of the posterior."""
        many = self._repeated(self.chains)
        state = self._start(posterior.repeat(self.chains, 1), many)
        log_weights = torch.zeros(len(many), dtype=torch.float64, device=many.device)
        for t in range(self.steps, 0, -1):
            state, _ = self._move(state, many, t, step_sizes[t - 1].repeat(self.chains))
            log_weights -= (self.beta[t] - self.beta[t - 1]) * state.log_likelihood.double()
        return math.log(self.chains) - log_weights.view(self.chains, -1).logsumexp(0)

    def _repeated(self, chains: int) -> Tensor:
        return self.x.repeat(chains, *(1,) * (self.x.dim() - 1))

    def _start(self, z: Tensor, x: Tensor) -> State:
        state = State.at(z, x, self.log_likelihood)
        if bad := int((~state.log_likelihood.isfinite()).sum()):
            raise ValueError(f"log_likelihood: {bad} of {len(z)} values at the start of the chains are NaN or infinite")
        return state

    def _move(self, state: State, x: Tensor, t: int, step_size: Tensor) -> tuple[State, Tensor]:
        return transition(state, x, self.log_likelihood, self.beta[t], step_size, self.leapfrog_steps, self.generator)


@dataclass
class State:
    """The positions of n chains.

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
    # A trajectory that ends in NaN is rejected.
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
