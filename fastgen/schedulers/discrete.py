"""Schedulers of diffusion in discrete time, `x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise`, `a` for `alphas_cumprod`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.schedulers.betas import betas, rescale_zero_terminal_snr
from fastgen.schedulers.scheduler import Scheduler, as_tensor, check_prediction_type, mixed


class DiscreteScheduler(Scheduler):
    """A scheduler of a model that was trained on `num_train_timesteps` levels of noise."""

    def _set_betas(self) -> None:
        """The levels of noise of `config`."""
        config = self.config
        check_prediction_type(config["prediction_type"])
        self.betas = betas(
            config["beta_schedule"],
            config["num_train_timesteps"],
            config["beta_start"],
            config["beta_end"],
            config["trained_betas"],
        )
        if self._option("rescale_betas_zero_snr"):
            self.betas = rescale_zero_terminal_snr(self.betas)
        self.alphas = 1.0 - self.betas
        # In float32, as everybody has it: 1 - a_t near t = 0 has few digits, and models were trained with those.
        self.alphas_cumprod = torch.cumprod(self.alphas, 0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise`, computed in float32 or more.

        Args:
            original_samples: `x0` [batch, ...].
            noise: standard normal, of the same shape.
            timesteps: integers [batch] or one for all, from 0 to `num_train_timesteps - 1`.

        Raises:
            ValueError: shapes that do not go together, a timestep out of range.
        """
        signal, sigma = self._signal_and_noise(original_samples, noise, timesteps)
        return mixed(original_samples, signal, noise, sigma)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`v = sqrt(a_t) noise - sqrt(1 - a_t) x0`, what v prediction learns; arguments as `add_noise`'s.

        Source: Salimans and Ho, "Progressive Distillation" (2022), appendix D.
        """
        signal, sigma = self._signal_and_noise(sample, noise, timesteps)
        return mixed(noise, signal, sample, -sigma)

    def _signal_and_noise(self, samples: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = checked_times(samples, noise, timesteps)
        if timesteps.is_floating_point():
            raise ValueError(f"timesteps: expected integers, got {timesteps.dtype}")
        # What is on the host can be read without waiting.
        if timesteps.device.type == "cpu" and len(timesteps):
            low, high = (int(t) for t in timesteps.aminmax())
            if low < 0 or high >= len(self.alphas_cumprod):
                raise ValueError(f"timesteps: expected 0 to {len(self.alphas_cumprod) - 1}, got {low} to {high}")
        if self.alphas_cumprod.device != samples.device:
            self.alphas_cumprod = self.alphas_cumprod.to(samples.device)
        cumprod = self.alphas_cumprod[timesteps.to(samples.device).long()]
        # The root is taken of what float32 holds: half precision has no number between 1 and what is left of it.
        cumprod = cumprod.to(torch.promote_types(samples.dtype, torch.float32))
        return cumprod**0.5, (1 - cumprod) ** 0.5


def checked_times(samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """`timesteps` as a tensor [batch] or [1]. Raises unless there is noise for every sample, and a time."""
    if noise.shape != samples.shape:
        raise ValueError(f"noise: expected {list(samples.shape)}, as the samples, got {list(noise.shape)}")
    timesteps = as_tensor(timesteps)
    if timesteps.dim() == 0:
        timesteps = timesteps[None]
    if timesteps.dim() != 1 or len(timesteps) not in (1, len(samples)):
        raise ValueError(f"timesteps: expected [{len(samples)}], one for each sample, got {list(timesteps.shape)}")
    return timesteps


def prediction_columns(prediction_type: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How `x0 = p x + q out` and `eps = r x + s out` follow from the output, for `x = alpha x0 + sigma eps`.

    `"epsilon"`: `out` is `eps`. `"sample"`: it is `x0`. `"v_prediction"`: it is `alpha eps - sigma x0`.

    Returns:
        `p, q, r, s`, float64, each of the shape of `alpha`.
    """
    # In float64, so that quotients of these are those of alpha and sigma.
    alpha, sigma = alpha.double(), sigma.double()
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha, zero, one
    if prediction_type == "sample":
        return zero, one, 1 / sigma, -alpha / sigma
    return alpha, -sigma, sigma, alpha
