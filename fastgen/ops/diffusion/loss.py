"""The weighted loss of a diffusion model, and the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.checks import check_choice
from fastgen.ops.diffusion import PREDICTION_TYPES

WEIGHTS = ("min_snr", "p2")


def diffusion_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the batch of `weight * mean((prediction - target)^2)`, a scalar in at least float32.

    Without a kernel: what PyTorch does here is two passes forward and one back, and under `torch.compile` one and one,
    which is all that can be had.

    Args:
        prediction, target: [batch, ...].
        weight: [batch], such as `diffusion_loss_weight(alphas_cumprod)[t]`, or None for 1.

    Raises:
        ValueError: shapes that differ, or a weight of another shape than [batch].
        TypeError: a dtype that is not floating.

    Gradients of every order in all three.

    Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020), equation 14.
    """
    for name, tensor in (("prediction", prediction), ("target", target), ("weight", weight)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
    if prediction.dim() < 1 or prediction.shape != target.shape:
        raise ValueError(
            f"target: expected the shape of prediction, {tuple(prediction.shape)}, got {tuple(target.shape)}"
        )
    if weight is not None and weight.shape != prediction.shape[:1]:
        raise ValueError(f"weight: expected [batch], {tuple(prediction.shape[:1])}, got {tuple(weight.shape)}")
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    squares = torch.nn.functional.mse_loss(prediction.to(dtype), target.to(dtype), reduction="none")
    if weight is None:
        return squares.mean()
    return (squares.reshape(len(squares), -1).mean(1) * weight.to(dtype)).mean()


def diffusion_loss_weight(
    alphas_cumprod: Tensor,
    *,
    kind: str = "min_snr",
    prediction_type: str = "epsilon",
    gamma: float | None = None,
    k: float = 1.0,
) -> Tensor:
    """What each step's squared error counts for, from its signal-to-noise ratio `s = a / (1 - a)`: [steps].

    `"min_snr"` weights the error in `x0` by `min(s, gamma)`, gamma = 5; `"p2"` that in `epsilon` by
    `1 / (k + s)^gamma`, gamma = 1. In another prediction the same loss has another weight, since the errors in
    `epsilon` and in `v` are those in `x0` times `s` and `s + 1`. Written in `a`, so that levels of noise alone
    (a = 0) are right.

    Args:
        alphas_cumprod: [steps], `a`.
        kind: `"min_snr"` or `"p2"`.
        prediction_type: what the network says: `"epsilon"`, `"sample"` or `"v_prediction"`.
        gamma: of the weight, positive.
        k: of P2, positive.

    Raises:
        ValueError: an unknown kind or prediction type, another shape, or a number that is not positive.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (2023), section 3.4; Choi et al.,
    "Perception Prioritized Training of Diffusion Models" (2022), equation 8.
    """
    check_choice("kind", kind, WEIGHTS)
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    if alphas_cumprod.dim() != 1 or not alphas_cumprod.is_floating_point():
        raise ValueError(f"alphas_cumprod: expected floating [steps], got {tuple(alphas_cumprod.shape)}")
    gamma = {"min_snr": 5.0, "p2": 1.0}[kind] if gamma is None else gamma
    for name, value in (("gamma", gamma), ("k", k)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    a, noise = alphas_cumprod, 1 - alphas_cumprod
    if kind == "min_snr":
        return {
            "epsilon": (gamma * noise / a).clamp(max=1),
            "sample": (a / noise).clamp(max=gamma),
            "v_prediction": torch.minimum(a, gamma * noise),
        }[prediction_type]
    of_epsilon = (noise / (k * noise + a)) ** gamma
    return {
        "epsilon": of_epsilon,
        "sample": a * noise ** (gamma - 1) / (k * noise + a) ** gamma,
        "v_prediction": a * of_epsilon,
    }[prediction_type]
