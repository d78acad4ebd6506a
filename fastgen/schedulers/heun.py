"""Heun's method for the probability flow: two network calls a step, second order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen.schedulers.config import registers_config
from fastgen.schedulers.scheduler import Noise
from fastgen.schedulers.sigmas import Custom, SigmaScheduler


class HeunDiscreteScheduler(SigmaScheduler):
    """An Euler step to the next sigma, then the same step again with the mean of both slopes.

    `timesteps` names every sigma but the first twice: `step` is called for the prediction and for its correction. The
    last step, to sigma 0, has no correction.

    Arguments are as in `EulerDiscreteScheduler`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 1.
    """

    fixed_options = {"use_exponential_sigmas": (False, None), "use_beta_sigmas": (False, None)}

    @registers_config
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
        self._set_betas()
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: Any = None, *, timesteps: Custom = None
    ) -> None:
        """Visit so many levels of noise, or those of `timesteps`: `2 num_inference_steps - 1` calls of the network.

        Errors are as in `EulerDiscreteScheduler`.
        """
        self._set_levels(device, *self._visit(num_inference_steps, timesteps))

    def _set_levels(self, device: Any, times: Tensor, sigmas: Tensor) -> None:
        self.num_inference_steps = len(times)
        twice = torch.cat([times[:1], times[1:].repeat_interleave(2)])
        self._set_sigmas(torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]]), device)
        self._set_schedule(twice, self._columns_of(sigmas), device)

    def _columns_of(self, sigmas: Tensor) -> dict[str, Tensor]:
        # Prediction i goes from sigma i to i + 1; its correction, in the next row, is made at sigma i + 1.
        start, end = sigmas[:-1].repeat_interleave(2)[:-1], sigmas[1:].repeat_interleave(2)[:-1]
        corrects = torch.arange(len(start), device="cpu") % 2 == 1
        at = torch.where(corrects, end, start).double()
        x0_sample, x0_output = self._prediction(at)
        slope = (end - start) / at
        return {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            # A correction adds half of its slope to what the prediction left: where it started, and half of its own.
            "sample": torch.where(corrects, slope / 2, 1 + slope),
            "x0": torch.where(corrects, -slope / 2, -slope),
            "previous": corrects.double(),
        }

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next step is a prediction."""
        return self._carried(self._next) is None

    def _advance(
        self, index: int, model_output: Tensor, sample: Tensor, noise: Noise, wants_x0: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self._rows[index].previous and (before := self._carried(index)) is not None:
            # What was kept is in float32 or more.
            dtype = torch.promote_types(before.dtype, sample.dtype)
            said, x, before = (tensor.to(dtype) for tensor in (model_output, sample, before))
            result, x0 = self._update(index, said, x, before, wants_x0=wants_x0)
            self._previous = None
            return result.to(sample.dtype), None if x0 is None else x0.to(sample.dtype)
        result, x0 = self._update(index, model_output, sample, wants_x0=wants_x0)
        kept = torch.promote_types(sample.dtype, torch.float32)
        self._previous = (sample.to(kept) + result) / 2 if index + 1 < len(self._rows) else None
        return result, x0

    def _locate(self, timestep: float | Tensor, model_output: Tensor | None, sample: Tensor) -> int:
        index = super()._locate(timestep, model_output, sample)
        # A loop that begins at a correction begins with a prediction, which is the next and has the same time.
        return index + 1 if self._rows[index].previous and self._carried(index) is None else index
