"""The ordinary differential equation with the distributions of a diffusion: sampling and likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fastgen.models.adaptive_ode import Solution, integrate
from fastgen.models.diffusion import along
from fastgen.models.loop import Generators, Guard, Loop, Output
from fastgen.models.model import Bounded, drawn, evaluating
from fastgen.nn.arguments import positive

PROBES = ("rademacher", "gaussian", "exact")


class ProbabilityFlow(Bounded, nn.Module):
    """`dy/du = v(u, y)` takes data to noise and back. A model says what `y` and `u` are.

    Likelihood is by the change of variables along the flow, `log p(data) = log p(noise) + integral of tr dv/dy du`. The
    trace is Hutchinson's estimate, `E[e^T (dv/dy) e]`, with the same probes `e` all the way, or exact.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021), section
    4.3; Grathwohl et al., "FFJORD" (2019), for the probes.
    """

    @property
    def span(self) -> tuple[float, float]:
        """`u` at the data, and at the noise."""
        raise NotImplementedError

    def velocity(self, u: Tensor, y: Tensor, output: Output) -> Tensor:
        """`dy/du` at `u` [batch]."""
        raise NotImplementedError

    def from_data(self, x: Tensor) -> tuple[Tensor, float]:
        """`y` at the data's end, and `log |dy/dx|` of one dimension."""
        raise NotImplementedError

    def to_data(self, y: Tensor, output: Output) -> Tensor:
        """The data, from `y` at the data's end."""
        raise NotImplementedError

    def prior_deviation(self) -> float:
        """Of `y` at the noise's end."""
        raise NotImplementedError

    @torch.no_grad()
    def log_prob(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        rtol: float = 3e-6,
        atol: float = 3e-6,
        probes: str = "rademacher",
        num_probes: int = 1,
        generator: Generator | None = None,
        return_solution: bool = False,
    ) -> Tensor | tuple[Tensor, Solution]:
        """`log p(x | labels)` in nats, [batch], of floating data in the network's units ([-1, 1] for images).

        Every sample takes steps of its own, and all of it happens on the device of the model.

        Args:
            x: [batch, image_channels, height, width]; the flow is solved in float32 or more.
            labels: integer classes [batch], where the model has `num_classes`.
            rtol, atol: of the solver, for each sample; the defaults leave an error of a few 1e-4 bits per dimension.
            probes: `"rademacher"` or `"gaussian"` numbers estimate the trace; `"exact"` computes it, with one
                backward pass for each dimension.
            num_probes: whose mean is taken.
            generator: of the probes.
            return_solution: also tell how many evaluations and steps it took.

        Raises:
            TypeError, ValueError: data or labels that are not this model's, other probes, a tolerance that is not
                positive.
            StepsExhausted: the network said NaN, or the tolerances are out of reach.
        """
        self._check_continuous(x)
        self.check_labels(labels, len(x))
        positive(num_probes=num_probes)
        if probes not in PROBES:
            raise ValueError(f"probes: expected one of {', '.join(PROBES)}, got {probes!r}")
        if not (rtol > 0 and atol > 0):
            raise ValueError(f"rtol and atol: expected positive numbers, got {rtol} and {atol}")
        x = x.to(self.exact_dtype)
        drawn_probes = _draw_probes(probes, num_probes, x, generator)
        y, log_scale = self.from_data(x)
        n, dims = len(x), math.prod(self.shape)
        start, end = self.span

        def derivative(u: Tensor, state: Tensor, rows: Tensor) -> Tensor:
            here = state[:, :-1].reshape(-1, *self.shape)
            chosen = None if labels is None else labels[rows]

            def output(x: Tensor, time: Tensor) -> Tensor:
                return self.output(x, time, chosen)

            velocity, trace = _with_trace(lambda y: self.velocity(u, y, output), here, drawn_probes, rows)
            return torch.cat([velocity.flatten(1), trace[:, None]], 1)

        with evaluating(self):
            state = torch.cat([y.flatten(1), y.new_zeros(n, 1)], 1)
            solution = integrate(derivative, state, start, end, rtol=rtol, atol=atol)
        noise, change = solution.y[:, :-1], solution.y[:, -1]
        deviation = self.prior_deviation()
        prior = -0.5 * (noise / deviation).square().sum(1) - dims * (math.log(deviation) + 0.5 * math.log(2 * math.pi))
        log_prob = prior + change + dims * log_scale
        return (log_prob, solution) if return_solution else log_prob

    def log_prob_bound(
        self, images: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None, **options: Any
    ) -> Tensor:
        """A lower bound of `log P(images | labels)` in nats, [batch], of integer levels.

        Noise from [0, 1) makes them continuous, as for flows (Theis et al. 2016). Options are `log_prob`'s.
        """
        self.check_images(images)
        if self.levels is None:
            raise TypeError("images: this model's data have no levels, use log_prob")
        noise = self.drawn(torch.rand, images.shape, generator) - 0.5
        x = (images.to(self.exact_dtype) + noise) * (2 / (self.levels - 1)) - 1
        log_scale = math.prod(self.shape) * math.log(2 / (self.levels - 1))
        return self.log_prob(x, labels, generator=generator, **options) + log_scale

    def _sample_ode(self, steps: int, *, rtol: float = 1e-5, atol: float = 1e-5) -> Loop:
        """The flow backwards, by as many steps as each sample needs."""
        end, start = self.span

        def run(output: Output, noise: Tensor, generator: Generators, guard: Guard) -> Tensor:
            def derivative(u: Tensor, state: Tensor, rows: Tensor) -> Tensor:
                # Guidance holds a label for every sample of the batch, so the whole batch is computed.
                whole = noise.new_zeros(len(noise), state.shape[1]).index_copy(0, rows, state)
                times = torch.full((len(noise),), start, dtype=u.dtype, device=u.device).index_copy(0, rows, u)
                return self.velocity(times, whole.view_as(noise), output).flatten(1)[rows]

            y = noise * self.prior_deviation()
            solution = integrate(derivative, y.flatten(1), start, end, rtol=rtol, atol=atol)
            return guard.check(0, self.to_data(solution.y.view_as(noise), output), y)

        return Loop(1, run)

    def _check_continuous(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError("x: expected floating data in the network's units, levels go to log_prob_bound")
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape or len(x) == 0:
            raise ValueError(f"x: expected [batch, {', '.join(map(str, self.shape))}], got {list(x.shape)}")
        if not bool(x.isfinite().all()):
            raise ValueError("x: expected finite numbers")


class RatioFlow(ProbabilityFlow):
    """The flow of `x = alpha x0 + sigma noise` in `u = log(sigma / alpha)` and `y = x / sqrt(alpha^2 + sigma^2)`.

    In these, every such diffusion is the same: `y = cos(a) x0 + sin(a) noise` with `tan(a) = e^u`, whose flow is
    `dy/du = sin(a) (noise(y, u) - sin(a) y)`. It stands still at either end, and its steps in `u` are even where those
    in time are not. A model says its least and largest ratio `sigma / alpha`, and at what time it has a ratio.

    Source: Karras et al. (2022), equations 1 to 4; Lu et al., "DPM-Solver" (2022), proposition 3.1; Salimans and Ho,
    "Progressive Distillation for Fast Sampling of Diffusion Models" (2022), appendix D, for the angle.
    """

    @property
    def ratios(self) -> tuple[float, float]:
        """The least `sigma / alpha`, where the data are, and the largest."""
        raise NotImplementedError

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The time at which `sigma / alpha` is `ratio`."""
        raise NotImplementedError

    @property
    def span(self) -> tuple[float, float]:
        least, largest = self.ratios
        return math.log(least), math.log(largest)

    def network_time(self, time: Tensor) -> Tensor:
        """`u` itself. What a network says changes with it as slowly as noise drowns one detail after another. With
        sines of times up to a thousand, as for discrete steps, it would waver, and every wave would ask for steps.
        """
        alpha, sigma = self.alpha_sigma(time)
        return (sigma / alpha).log()

    def velocity(self, u: Tensor, y: Tensor, output: Output) -> Tensor:
        time = self.time_of_ratio(u.exp())
        alpha, sigma = (along(value, y) for value in self.alpha_sigma(time))
        deviation = torch.hypot(alpha, sigma)
        x, sine = deviation * y, sigma / deviation
        said = output(x, time)
        noise = said if self.prediction_type == "epsilon" else (x - alpha * self.predict_x0(x, time, said)) / sigma
        return sine * (noise - sine * y)

    def _end(self, ratio: float) -> tuple[float, float]:
        """`sigma` and `sqrt(alpha^2 + sigma^2)` where their ratio is `ratio`."""
        time = self.time_of_ratio(torch.tensor([ratio], dtype=torch.float64, device=self.device))
        alpha, sigma = (value.item() for value in self.alpha_sigma(time))
        return sigma, math.hypot(alpha, sigma)

    def from_data(self, x: Tensor) -> tuple[Tensor, float]:
        _, deviation = self._end(self.ratios[0])
        return x / deviation, -math.log(deviation)

    def to_data(self, y: Tensor, output: Output) -> Tensor:
        time = self.time_of_ratio(torch.full((1,), self.ratios[0], dtype=y.dtype, device=y.device))
        x = y * self._end(self.ratios[0])[1]
        return self.predict_x0(x, time, output(x, time))

    def prior_deviation(self) -> float:
        sigma, deviation = self._end(self.ratios[1])
        # 1 for a variance-preserving path, the deviation of the noise for a variance-exploding one.
        return max(sigma, min(1.0, deviation)) / deviation


def _draw_probes(kind: str, count: int, x: Tensor, generator: Generator | None) -> Tensor | None:
    """[count, batch, ...], or None for the exact trace."""
    if kind == "exact":
        return None
    noise = drawn(torch.randn, (count, *x.shape), x, generator)
    return noise.sign() if kind == "rademacher" else noise


def _with_trace(
    velocity: Callable[[Tensor], Tensor], y: Tensor, probes: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """`v(y)` [k, ...] and `tr dv/dy` [k]."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        v = velocity(y)
        if probes is None:
            flat, total = v.flatten(1), y.new_zeros(len(y))
            for index in range(flat.shape[1]):
                (row,) = torch.autograd.grad(flat[:, index].sum(), y, retain_graph=True)
                total = total + row.flatten(1)[:, index]
            return v.detach(), total
        total = y.new_zeros(len(y))
        for index, probe in enumerate(probes):
            probe = probe[rows]
            (product,) = torch.autograd.grad(v, y, probe, retain_graph=index + 1 < len(probes))
            total = total + (product * probe).flatten(1).sum(1)
    return v.detach(), total / len(probes)
