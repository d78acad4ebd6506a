"""Networks that learn the cumulative distribution, one conditional for each dimension."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fastgen.density.arrays import check_varying
from fastgen.density.estimator import DensityEstimator
from fastgen.density.inverse_transform import invert_cdf
from fastgen.density.random_state import RandomState, as_generator
from fastgen.nn.arguments import is_number, not_negative, positive
from fastgen.nn.full_precision import with_autograd

# Weights and biases of a batch of networks, by layer.
Parameters = tuple[list[Tensor], list[Tensor]]

# The deviation of the normal density that is mixed in, in standard deviations of the data.
_WIDE = 2.0

# The reach of the interval beyond the data, and the distance of the two places that the penalty compares.
_MARGIN, _APART = 1.0, 0.02

# The number of points at which a fit is checked.
_CHECKED = 1000

# Densities are computed for chunks of points with about this many activations in a layer.
_CHUNK_NUMBERS = 2**20


@dataclass(eq=False, repr=False)
class NeuralCDF(DensityEstimator):
    """The stochastic learning of the cumulative: networks regress ranks, and the density is their derivative.

    `p(x) = prod_i d/dx_i F_i(x_i | x_1 ... x_{i-1})`. Each `F_i` is a small network `H_i` that sees the dimensions
    before it; all are trained at once, as a batch of networks. On an interval [a, b] that reaches one standard
    deviation s beyond the data, `F_i = (1 - floor) (H_i - H_i(a)) / (H_i(b) - H_i(a)) + floor Phi((x_i - mean) / 2 s)`:
    it goes from 0 to 1 whatever was learned. Beyond the interval only the normal part goes on.

    Every step draws targets anew:

    - for the first dimension as many uniform numbers as there are points; both are sorted, and each point's target is
      the number of its rank. On average that is `rank / (N + 1)`;
    - for the others, where no two points share a condition, `1 if x_i <= y else 0` for random places y. The regression
      of that is the conditional cumulative. (This step is ours, not the paper's.)

    The loss is the mean squared error, plus `monotonicity` times the mean of `max(0, (H(y) - H(y + D)) / D)^2` at
    places y in the interval. Where a network falls in spite of it, its density is taken as zero: p integrates to one
    up to that. Samples are drawn by inversion, one dimension after the other.

    Learned: `weights_` and `biases_` of the networks, `mean_` and `deviation_` [d] of the data, `low_` and `high_` [d]
    (a and b, standardised), `loss_`.

    Args:
        hidden_features: width of a network's hidden layers.
        num_layers: their number.
        steps: of Adam, under a cosine schedule.
        batch_size: points per step.
        learning_rate: of Adam, at the start.
        monotonicity: weight of the penalty.
        floor: share of the normal density of twice the data's deviation, so that no place is impossible.
        random_state: seed of the weights and targets; None draws from PyTorch's own generator.

    Raises:
        ValueError: an argument out of range; on fitting, fewer than 2 points or a constant column.

    Warns:
        UserWarning: the networks have not learned to rise from 0 to 1.

    Source: Magdon-Ismail and Atiya, "Density estimation and random variate generation using multilayer networks"
    (2002), section II: the stochastic learning of the cumulative, and its hint of monotonicity.
    """

    _: KW_ONLY
    hidden_features: int = 32
    num_layers: int = 2
    steps: int = 1000
    batch_size: int = 512
    learning_rate: float = 1e-2
    monotonicity: float = 1.0
    floor: float = 1e-3
    random_state: RandomState = None

    def _check_arguments(self) -> None:
        sizes = ("hidden_features", "num_layers", "steps", "batch_size")
        positive(**{name: getattr(self, name) for name in sizes})
        if not is_number(self.learning_rate) or not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a finite positive number, got {self.learning_rate!r}")
        not_negative(monotonicity=self.monotonicity)
        if not is_number(self.floor) or not 0 <= self.floor < 1:
            raise ValueError(f"floor: expected a number in [0, 1), got {self.floor!r}")

    def _at_least(self, features: int) -> int:
        return 2

    @with_autograd
    def _fit(self, x: Tensor) -> None:
        check_varying(x, "and there is nothing to learn: expected varying columns")
        generator = as_generator(self.random_state, x.device)
        self.mean_, self.deviation_ = x.mean(0), x.std(0)
        z = (x - self.mean_) / self.deviation_
        self.low_, self.high_ = z.amin(0) - _MARGIN, z.amax(0) + _MARGIN
        parameters = initial_weights(z, self.hidden_features, self.num_layers, generator)
        tensors = [tensor.requires_grad_() for kind in parameters for tensor in kind]
        optimizer = torch.optim.Adam(tensors, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in progress(self.steps, "NeuralCDF"):
            loss = self._loss(parameters, z, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.weights_, self.biases_ = ([tensor.detach() for tensor in kind] for kind in parameters)
        self.loss_ = loss.item()
        self._warn_where_flat(z[:_CHECKED])

    def _warn_where_flat(self, z: Tensor) -> None:
        """Warns where a network does not rise from near 0 to near 1 over its interval, and so has not learned."""
        ends = torch.stack((self.low_, self.high_), 1).repeat_interleave(len(z), 1)
        start, stop = heights((self.weights_, self.biases_), z.repeat(2, 1), ends).chunk(2, 1)
        rise = (stop - start).mean(1)
        if not (rise > 0.5).all():
            warnings.warn(
                f"NeuralCDF did not learn (its networks rise by {rise.min().item():.2g} to {rise.max().item():.2g}, "
                "expected about 1): raise steps, or lower learning_rate",
                stacklevel=6,
            )

    def _loss(self, parameters: Parameters, z: Tensor, generator: Generator | None) -> Tensor:
        """The loss of one step, on a batch of standardised points [N, d]."""
        n, d = min(len(z), self.batch_size), z.shape[1]
        uniform = torch.rand(4, d, n, generator=generator, dtype=z.dtype, device=z.device)
        rows = torch.randperm(len(z), generator=generator, device=z.device)[:n]
        rows = rows[z[rows, 0].argsort()]
        batch = z[rows]
        low, high = self.low_[:, None], self.high_[:, None]
        anywhere = low + (high - low) * uniform[0]
        # Half of the places are other points of the batch, which are where the density is.
        others = batch.T.gather(1, uniform[1].argsort(1))
        places = torch.where(uniform[2] < 0.5, others, anywhere)
        targets = (places >= batch.T).to(z.dtype)
        places[0], targets[0] = batch[:, 0], uniform[3, 0].sort().values
        # Both in one pass of the networks.
        outputs = heights(parameters, batch.repeat(3, 1), torch.cat((places, anywhere, anywhere + _APART), 1))
        regressed, lower, upper = outputs.chunk(3, 1)
        fall = F.relu((lower - upper) / _APART)
        return (regressed - targets).square().mean(1).sum() + self.monotonicity * fall.square().mean(1).sum()

    def _log_density(self, x: Tensor) -> Tensor:
        rows = max(1, _CHUNK_NUMBERS // (x.shape[1] * int(self.hidden_features)))
        return torch.cat([self._log_slopes(chunk) for chunk in x.split(rows)])

    def _log_slopes(self, x: Tensor) -> Tensor:
        """The sum over dimensions of `log dF_i / dx_i`, [n]."""
        with torch.inference_mode(False), torch.enable_grad():
            z = (x.clone() - self.mean_) / self.deviation_
            # A tensor of its own, so that the derivative is not also through the conditions of other dimensions.
            own = z.T.clone() if z.requires_grad else z.T.clone().requires_grad_()
            low, high = (end[:, None].expand_as(own) for end in (self.low_, self.high_))
            places = torch.cat((own.clamp(low, high), low, high), 1)
            height, start, stop = heights((self.weights_, self.biases_), z.repeat(3, 1), places).chunk(3, 1)
            (slope,) = torch.autograd.grad(height.sum(), own, create_graph=x.requires_grad)
        # Given a condition far from all data, a network may have the same value at both ends.
        mass = (stop - start).clamp(min=torch.finfo(x.dtype).tiny)
        wide = (-0.5 * (own / _WIDE).square()).exp() / (_WIDE * math.sqrt(2 * math.pi))
        density = (1 - self.floor) * (slope / mass).clamp(min=0) + self.floor * wide
        log_density = density.log().sum(0) - self.deviation_.log().sum()
        return log_density if x.requires_grad else log_density.detach()

    def _sample(self, n: int, generator: Generator | None) -> Tensor:
        z = self.mean_.new_zeros(n, len(self.mean_))
        for index in range(len(self.mean_)):
            levels = torch.rand(n, generator=generator, dtype=z.dtype, device=z.device)
            # Rounding near 1 keeps the sigmoid from reaching higher levels.
            margin = 4 * torch.finfo(z.dtype).eps
            end = torch.full_like(levels, math.inf)
            cdf = self._conditional(index, z.clone())
            z[:, index] = invert_cdf(cdf, levels.clamp(margin, 1 - margin), -end, end)
        return self.mean_ + z * self.deviation_

    def _conditional(self, index: int, z: Tensor) -> Callable[[Tensor], Tensor]:
        """`F_index`, given the dimensions of z [n, d] before it, as a function of y [n], all standardised."""
        parameters, dims = (self.weights_, self.biases_), slice(index, index + 1)
        low, high = (end[dims, None].expand(1, len(z)) for end in (self.low_, self.high_))
        start, stop = heights(parameters, z.repeat(2, 1), torch.cat((low, high), 1), dims).chunk(2, 1)

        def cdf(y: Tensor) -> Tensor:
            height = heights(parameters, z, y[None].clamp(low, high), dims)
            share = (height - start) / (stop - start)
            return ((1 - self.floor) * share + self.floor * torch.special.ndtr(y / _WIDE))[0]

        return cdf


def initial_weights(z: Tensor, hidden_features: int, num_layers: int, generator: Generator | None) -> Parameters:
    """Weights [d, inputs, outputs] and biases [d, 1, outputs] of each layer of d small networks.

    The i-th network sees a number of its own and the dimensions before i of a condition. The units of its first layer
    are centred on values of the standardised points z [N, d].
    """
    d = z.shape[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=z.dtype, device=z.device)

    first = normal(d, d, hidden_features) / math.sqrt(d)
    own = first.diagonal().T
    own.copy_(2 * normal(d, hidden_features))
    turns = z.T[:, torch.randint(len(z), (hidden_features,), generator=generator, device=z.device)]
    weights, biases = [first], [(-own * turns)[:, None]]
    for outputs in [hidden_features] * (num_layers - 1) + [1]:
        weights.append(normal(d, hidden_features, outputs) / math.sqrt(hidden_features))
        biases.append(z.new_zeros(d, 1, outputs))
    return weights, biases


def heights(parameters: Parameters, context: Tensor, y: Tensor, dims: slice = slice(None)) -> Tensor:
    """`H_i(y_i | context_1 ... context_{i-1})` in (0, 1), [D, n], of the D networks at `dims`.

    Args:
        parameters: weights and biases of all d networks.
        context: points [n, d], of which each network sees the dimensions before its own.
        y: [D, n].
    """
    weights, biases = ([tensor[dims] for tensor in kind] for kind in parameters)
    d = context.shape[1]
    before = torch.ones(d, d, dtype=torch.bool, device=context.device).tril(-1)[dims]
    own = parameters[0][0].diagonal().T[dims]
    hidden = context @ (weights[0] * before[..., None]) + y[..., None] * own[:, None] + biases[0]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        hidden = torch.baddbmm(bias, hidden.tanh(), weight)
    return hidden[..., 0].sigmoid()


def progress(steps: int, title: str) -> Iterable[int]:
    """The numbers below `steps`, with a bar on stderr where that is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return range(steps)
    # None: only on a terminal.
    return tqdm(range(steps), desc=title, disable=None, leave=False)
