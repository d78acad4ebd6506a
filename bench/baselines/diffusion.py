"""Noising a batch and a sampler's step as people write them, with PyTorch's own random numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def _over(column: Tensor, x: Tensor) -> Tensor:
    return column.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))


def q_sample_eager(
    x0: Tensor, t: Tensor, alphas_cumprod: Tensor, *, seed: int, offset: int = 0, prediction_type: str = "epsilon"
) -> tuple[Tensor, Tensor]:
    alpha = alphas_cumprod[t]
    signal, level = _over(alpha.sqrt(), x0), _over((1 - alpha).sqrt(), x0)
    noise = torch.randn_like(x0)
    x_t = signal * x0 + level * noise
    targets = {"epsilon": lambda: noise, "sample": lambda: x0, "v_prediction": lambda: signal * noise - level * x0}
    return x_t, targets[prediction_type]()


def diffusion_update_eager(
    x: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    eps_prev: Tensor | None = None,
    *,
    seed: int | None = None,
    clip: float | None = None,
    dynamic_threshold: float | None = None,
) -> Tensor:
    columns = [_over(column, x) for column in coefficients.view(-1, coefficients.shape[-1]).unbind(1)]
    result = columns[0] * x + columns[1] * eps
    if eps_prev is not None:
        result = result + columns[2] * eps_prev
    if len(columns) == 7:
        x0 = columns[5] * x + columns[6] * eps
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        if dynamic_threshold is not None:
            limit = torch.quantile(x0.abs().flatten(1), dynamic_threshold, dim=1).clamp(min=1)
            limit = _over(limit, x)
            x0 = torch.maximum(torch.minimum(x0, limit), -limit) / limit
        result = result + columns[4] * x0
    if seed is not None:
        result = result + columns[3] * torch.randn_like(x)
    return result


def diffusion_update_noise_outside(x: Tensor, eps: Tensor, coefficients: Tensor, eps_prev=None, **kwargs) -> Tensor:
    """The strongest form: compiled, with noise drawn before, since Inductor's own is slow on a CPU."""
    kwargs = dict(kwargs)
    if kwargs.pop("seed", None) is None:
        raise NotImplementedError("this case draws no noise")
    return _compiled(x, eps, coefficients, torch.randn_like(x), **kwargs)


@torch.compile(dynamic=False)
def _compiled(x: Tensor, eps: Tensor, coefficients: Tensor, noise: Tensor, **kwargs) -> Tensor:
    scale = _over(coefficients.view(-1, coefficients.shape[-1])[:, 3], x)
    return diffusion_update_eager(x, eps, coefficients, **kwargs) + scale * noise


def diffusion_update_diffusers(x: Tensor, eps: Tensor, coefficients: Tensor, eps_prev=None, **kwargs) -> Tensor:
    """`DDPMScheduler.step` at the same step of the same schedule."""
    if kwargs.get("clip") != 1.0 or kwargs.get("seed") is None or coefficients.dim() > 1:
        raise NotImplementedError("an ancestral step with clipping only")
    from diffusers import DDPMScheduler

    if "scheduler" not in _KEPT:
        _KEPT["scheduler"] = DDPMScheduler(num_train_timesteps=1000, clip_sample=True)
    return _KEPT["scheduler"].step(eps, 700, x).prev_sample


# Made once: a scheduler's tables are not part of a step.
_KEPT: dict = {}
