"""Heun's method for the probability flow: two network calls a step, second order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen.schedulers.config import Config
from fastgen.schedulers.scheduler import Noise, check_prediction_type
from fastgen.schedulers.sigmas import SigmaScheduler


class HeunDiscreteScheduler(SigmaScheduler):
    """An Euler step to the next sigma, then the same step again with the mean of both slopes.

    `timesteps` names every sigma but the first twice: `step` is called for the prediction and for its correction. The
    last step, to sigma 0, has no correction.

    Arguments are as in `EulerDiscreteScheduler`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 1.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        self.config = Config({name: value for name, value in locals().items() if name != "self"})
        check_prediction_type(prediction_type)
        self._set_betas(beta_schedule, num_train_timesteps, beta_start, beta_end, trained_betas)
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """As `DDPMScheduler.set_timesteps`; `2 num_inference_steps - 1` calls of the network."""
        timesteps, sigmas = self._visit(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        twice = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        self._set_sigmas(torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]]), device)
        # Prediction i goes from sigma i to i + 1; its correction, in the next row, is made at sigma i + 1.
        start, end = sigmas[:-1].repeat_interleave(2)[:-1], sigmas[1:].repeat_interleave(2)[:-1]
        corrects = torch.arange(len(twice)) % 2 == 1
        at = torch.where(corrects, end, start).double()
        x0_sample, x0_output = self._prediction(at)
        slope = (end - start) / at
        # A correction adds half of its slope to what the prediction left: where it started, and half of its own.
        sample = torch.where(corrects, slope / 2, 1 + slope)
        x0 = torch.where(corrects, -slope / 2, -slope)
        columns = {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "sample": sample,
            "x0": x0,
            "previous": corrects.double(),
        }
        self._set_schedule(twice, columns, device)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next step is a prediction."""
        return self._previous is None

    def _advance(self, index: int, model_output: Tensor, sample: Tensor, noise: Noise) -> Tensor:
        row = self._rows[index]
        if row.previous:
            result = self._update(index, model_output, sample, self._previous)
            self._previous = None
            return result
        result = self._update(index, model_output, sample)
        if index + 1 < len(self._rows):
            self._previous = (sample + result) / 2
        return result

    def _locate(self, timestep: float | Tensor, model_output: Tensor | None, sample: Tensor) -> int:
        index = super()._locate(timestep, model_output, sample)
        # A number names a sigma twice, and a loop that begins in its middle begins with a prediction.
        if self._rows[index].previous and self._previous is None and index + 1 < len(self._times):
            return index + 1
        return index
