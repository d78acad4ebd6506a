"""Restores images from what was measured of them, with any diffusion model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from fastgen.inverse.methods import METHODS, Problem
from fastgen.inverse.operators import Operator
from fastgen.models.diffusion import Diffusion
from fastgen.models.model import drawn, evaluating
from fastgen.nn.arguments import positive


@torch.no_grad()
def solve(
    model: Diffusion,
    measurement: Tensor,
    operator: Operator,
    *,
    method: str | None = None,
    steps: int = 100,
    labels: Tensor | int | None = None,
    generator: Generator | None = None,
    **options: Any,
) -> Tensor:
    """Images that a model finds likely and that the operator would measure so.

    Args:
        model: any diffusion model; its data are the prior.
        measurement: [n, ...], what `operator` makes of images [n, channels, height, width] in [-1, 1].
        operator: how it was measured, and with how much noise.
        method: `"ddnm"` (linear operators), `"repaint"` (those that hide pixels) or `"dps"` (all); None takes ddnm for
            linear operators and dps for the others.
        steps: levels of noise that are visited.
        labels: integer classes [n], or one for all, where the model has `num_classes`; None for no class.
        generator: of the noise.
        options: of the method: `eta` of ddnm, `resamples` of repaint, `scale` of dps.

    Returns:
        Like `model.sample`: uint8 levels [n, channels, height, width], floating where the model has no levels.

    Raises:
        TypeError: a model that is no diffusion model, a measurement that is not floating.
        ValueError: an operator that does not fit the image or the method, a measurement of another shape.
        SamplingDiverged: the network said NaN; names the step and holds the last good state.
    """
    if not isinstance(model, Diffusion):
        raise TypeError(f"model: expected a diffusion model, got {type(model).__name__}")
    method = ("ddnm" if operator.linear else "dps") if method is None else method
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "ddnm" and not operator.linear:
        raise ValueError(f"method: ddnm is for linear operators, {type(operator).__name__} is not, expected dps")
    positive(steps=steps)
    _check_measurement(model, measurement, operator)
    n = len(measurement)
    with evaluating(model):
        output = model.guided(n, labels)

        def denoise(x: Tensor, time: Tensor) -> Tensor:
            return model.predict_x0(x, time, output(x, time))

        times = model.times(steps)
        alphas, sigmas = (value.tolist() for value in model.alpha_sigma(times))
        levels = [(alpha, sigma, time) for alpha, sigma, time in zip(alphas, sigmas, times.split(1), strict=True)]
        problem = Problem(
            denoise,
            [*levels, (1.0, 0.0, None)],
            measurement.to(model.exact_dtype),
            operator,
            lambda like: drawn(torch.randn, like.shape, like, generator),
        )
        alpha, sigma = levels[0][:2]
        # The largest noise, which hides the data, or the unit variance of what keeps it.
        start = max(sigma, min(1.0, (alpha**2 + sigma**2) ** 0.5))
        x = model.drawn(torch.randn, (n, *model.shape), generator) * start
        return model.quantize(METHODS[method](problem, x, **options))


def _check_measurement(model: Diffusion, measurement: Tensor, operator: Operator) -> None:
    operator.check(model.shape)
    if not isinstance(measurement, Tensor) or not measurement.is_floating_point():
        got = measurement.dtype if isinstance(measurement, Tensor) else type(measurement).__name__
        raise TypeError(f"measurement: expected a floating tensor, as the operator makes it of [-1, 1], got {got}")
    expected = operator(torch.zeros(1, *model.shape, device=model.device)).shape[1:]
    if measurement.dim() != 4 or measurement.shape[1:] != expected or len(measurement) == 0:
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"measurement: expected [n, {sizes}], got {list(measurement.shape)}")
    if not bool(measurement.isfinite().all()):
        raise ValueError("measurement: expected finite numbers")
