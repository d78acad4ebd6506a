"""The two elementwise passes of a diffusion model: noising a batch for training, and one step of a sampler."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.checks import (
    check_choice,
    check_floating,
    check_floating_on,
    check_same_shape,
    check_same_type,
    checked_seed,
)
from fastgen.ops.diffusion.cases import (
    q_sample_cases,
    q_sample_cost,
    q_sample_drawn,
    q_sample_samples,
    update_cases,
    update_cost,
    update_drawn,
    update_samples,
)
from fastgen.ops.philox import philox_normal
from fastgen.ops.registry import USUAL_TOLERANCE, Op, Tolerance, always, needs_gradient

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# Columns of the coefficients of `diffusion_update`: without and with a predicted x0.
COLUMNS = (4, 7)


def q_sample(
    x0: Tensor,
    t: Tensor,
    alphas_cumprod: Tensor,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
    prediction_type: str = "epsilon",
) -> tuple[Tensor, Tensor]:
    """Noise a batch, `x_t = sqrt(a) x0 + sqrt(1 - a) z` with `a = alphas_cumprod[t]`, and tell what to predict.

    The noise `z` is drawn in the kernel by Philox and Box-Muller: its bits depend on (seed, offset) and an element's
    place alone, and are the same on every backend (`fastgen.ops.philox.philox_normal` is the specification). Where
    `noise` is given there is nothing for a kernel to win over `torch.compile`, and PyTorch computes.

    Args:
        x0: [batch, ...], contiguous or copied to be so.
        t: [batch], int64: steps of the schedule, from 0.
        alphas_cumprod: [steps], the share of the signal's variance after each step; float64 is best.
        noise: the shape of `x0`; or
        seed: 0 to 2^63 - 1, or one int64 on the device, which a replayed CUDA graph reads again.
        offset: which of the streams of this seed, 0 to 2^63 - 1.
        prediction_type: the target: `"epsilon"` is `z`, `"sample"` is `x0`, `"v_prediction"` is
            `sqrt(a) z - sqrt(1 - a) x0`.

    Returns:
        `x_t` and the target, the shape and dtype of `x0`.

    Raises:
        ValueError: another shape, an unknown prediction type, not exactly one of noise and seed, a seed or offset out
            of range, or (on a CPU) a step that is not in the schedule. On a GPU, where nobody waits for a number, such
            a step gives NaN.
        TypeError: another dtype, or devices that differ.

    Gradients of every order in `x0`, and in `noise`.

    Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020), equation 4; Salimans and Ho,
    "Progressive Distillation" (2022), appendix D, for v.
    """
    _check_q_sample(x0, t, alphas_cumprod, noise, seed, prediction_type)
    seed, seed_tensor = checked_seed(x0, seed, offset)
    backend = "reference" if noise is not None else Q_SAMPLE.choose((x0, t, alphas_cumprod))
    if backend == "reference":
        given = seed if seed_tensor is None else seed_tensor
        return q_sample_reference(
            x0, t, alphas_cumprod, noise=noise, seed=given, offset=offset, prediction_type=prediction_type
        )
    call = (t, alphas_cumprod.double(), seed, seed_tensor, offset, PREDICTION_TYPES.index(prediction_type), backend)
    x_t, target = _QSample.apply(x0, *call) if needs_gradient(x0) else _q_sample(x0, *call)
    return x_t, x0.clone() if prediction_type == "sample" else target


def q_sample_reference(
    x0: Tensor,
    t: Tensor,
    alphas_cumprod: Tensor,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
    prediction_type: str = "epsilon",
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x0.dtype, torch.float32)
    if noise is None:
        noise = philox_normal(x0.shape, seed=seed, offset=offset, device=x0.device)
    signal, level = _signal_and_level(t, alphas_cumprod.double(), x0.dim(), dtype)
    clean, z = x0.to(dtype), noise.to(dtype)
    targets = {"epsilon": z, "sample": clean.clone(), "v_prediction": signal * z - level * clean}
    return (signal * clean + level * z).to(x0.dtype), targets[prediction_type].to(x0.dtype)


def diffusion_update(
    x: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    eps_prev: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
    clip: float | None = None,
    dynamic_threshold: float | None = None,
    sample_max_value: float = math.inf,
    return_x0: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """One step of a sampler, `x_next = a x + b eps + c eps_prev + d z + e x0` with the predicted `x0 = p x + q eps`.

    The coefficients are read where they lie, on the device: nothing waits for a number, and a loop over the rows of a
    schedule can be captured as one CUDA graph. Every scheduler is a table of them: `eps` is whatever the network says,
    and with `p, q` for its kind of prediction `x0` is what it means.

    The noise is drawn in the kernel, as for `q_sample`. A `seed` that is a tensor is read on the device too, so a
    replayed graph draws other numbers once it is changed; each step of a graph has an `offset` of its own.

    Args:
        x, eps: [batch, ...], the sample and the network's output.
        coefficients: (a, b, c, d), or (a, b, c, d, e, p, q) where the update goes through `x0`; [4] or [7], or
            [batch, 4] or [batch, 7] for coefficients of each sample. float64 is best.
        eps_prev: what `c` belongs to, an earlier output or `x0`; the shape of `x`.
        noise, seed, offset: as for `q_sample`; with neither noise nor seed there is no noise.
        clip: keep `x0` within -clip and clip.
        dynamic_threshold: or within the quantile `s` of its magnitudes in each sample, at least 1 and at most
            `sample_max_value`, and divide it by `s`; in (0, 1], Imagen has 0.995.
        return_x0: also return `x0` so bounded.

    Returns:
        `x_next`, the shape and dtype of `x`; with `return_x0` a pair of it and `x0`.

    Raises:
        ValueError: another shape, both noise and seed, a bound for an x0 that is not predicted, both kinds of bound, or
            an argument out of range.
        TypeError: another dtype, or devices that differ.

    Gradients of every order, by PyTorch.

    Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020), equations 7 and 11; Song, Meng and
    Ermon, "Denoising Diffusion Implicit Models" (2021), equation 12; Saharia et al., "Imagen" (2022), section 2.3.
    """
    _check_update(x, eps, coefficients, eps_prev, noise, clip, dynamic_threshold, sample_max_value, return_x0)
    if noise is not None and seed is not None:
        raise ValueError("noise: expected noise or a seed, got both")
    seed, seed_tensor = checked_seed(x, seed, offset)
    draws = seed is not None or seed_tensor is not None
    bounds = {"clip": clip, "dynamic_threshold": dynamic_threshold, "sample_max_value": sample_max_value}
    backend = DIFFUSION_UPDATE.choose((x, eps, coefficients, eps_prev))
    if backend == "reference" or needs_gradient(x, eps, coefficients, eps_prev, noise):
        if draws and backend != "reference":
            noise, seed, seed_tensor = _noise_like(x, seed, seed_tensor, offset, backend), None, None
        given = seed if seed_tensor is None else seed_tensor
        return diffusion_update_reference(
            x, eps, coefficients, eps_prev, noise=noise, seed=given, offset=offset, **bounds, return_x0=return_x0
        )
    rows = coefficients.double().reshape(-1, coefficients.shape[-1])
    x_next, x0 = _update(x, eps, rows, eps_prev, noise, draws, seed, seed_tensor, offset, bounds, return_x0, backend)
    return (x_next, x0) if return_x0 else x_next


def diffusion_update_reference(
    x: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    eps_prev: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
    clip: float | None = None,
    dynamic_threshold: float | None = None,
    sample_max_value: float = math.inf,
    return_x0: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    columns = coefficients.double().reshape(-1, coefficients.shape[-1]).unbind(1)
    columns = [column.reshape(-1, *(1,) * (x.dim() - 1)) for column in columns]
    of_x, of_eps, of_previous, of_noise = (column.to(dtype) for column in columns[:4])
    value, output = x.to(dtype), eps.to(dtype)
    result = of_x * value + of_eps * output
    if eps_prev is not None:
        result = result + of_previous * eps_prev.to(dtype)
    if seed is not None:
        noise = philox_normal(x.shape, seed=seed, offset=offset, device=x.device)
    if noise is not None:
        result = result + of_noise * noise.to(dtype)
    if len(columns) == COLUMNS[0]:
        return result.to(x.dtype)
    of_x0, p, q = columns[4:]
    # At high noise levels both terms are large and cancel, so the difference is taken first and scaled afterwards.
    has_x = p != 0
    ratio = torch.where(has_x, q / torch.where(has_x, p, 1.0), 1.0)
    x0 = (has_x.to(dtype) * value + ratio.to(dtype) * output) * torch.where(has_x, p, q).to(dtype)
    x0 = _bounded(x0, clip, dynamic_threshold, sample_max_value)
    result = (result + of_x0.to(dtype) * x0).to(x.dtype)
    return (result, x0.to(x.dtype)) if return_x0 else result


def _bounded(x0: Tensor, clip: float | None, dynamic_threshold: float | None, sample_max_value: float) -> Tensor:
    if dynamic_threshold is None or x0.numel() == 0:
        return x0 if clip is None else x0.clamp(-clip, clip)
    magnitudes = x0.detach().abs().reshape(x0.shape[0], -1)
    limit = torch.quantile(magnitudes, dynamic_threshold, dim=1).clamp(1, sample_max_value)
    limit = limit.view(-1, *(1,) * (x0.dim() - 1))
    return torch.maximum(torch.minimum(x0, limit), -limit) / limit


def _signal_and_level(t: Tensor, alphas_cumprod: Tensor, dims: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    alpha = alphas_cumprod[t].view(-1, *(1,) * (dims - 1))
    return alpha.sqrt().to(dtype), (1 - alpha).sqrt().to(dtype)


def _check_like(name: str, tensor: Tensor | None, x: Tensor, of: str) -> None:
    if tensor is None:
        return
    check_same_type(name, tensor, x)
    check_same_shape(name, tensor, x, of)


def _check_batch(name: str, x: Tensor) -> None:
    check_floating(name, x)
    if x.dim() < 1:
        raise ValueError(f"{name}: expected [batch, ...], got a single number")


def _check_q_sample(
    x0: Tensor, t: Tensor, alphas_cumprod: Tensor, noise: Tensor | None, seed: object, prediction_type: str
) -> None:
    _check_batch("x0", x0)
    check_floating_on("alphas_cumprod", alphas_cumprod, x0)
    _check_like("noise", noise, x0, "x0")
    if alphas_cumprod.dim() != 1 or alphas_cumprod.numel() == 0:
        raise ValueError(f"alphas_cumprod: expected [steps], got {tuple(alphas_cumprod.shape)}")
    if t.dtype != torch.int64 or t.device != x0.device:
        raise TypeError(f"t: expected int64 on {x0.device}, got {t.dtype} on {t.device}")
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t: expected [batch], {tuple(x0.shape[:1])}, got {tuple(t.shape)}")
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    if (noise is None) == (seed is None):
        raise ValueError("noise: expected either noise or a seed")
    if t.is_cpu and t.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in t.aminmax())
        if low < 0 or high >= alphas_cumprod.numel():
            raise ValueError(
                f"t: expected steps of the schedule, 0 to {alphas_cumprod.numel() - 1}, got {low} to {high}"
            )


def _check_update(
    x: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    eps_prev: Tensor | None,
    noise: Tensor | None,
    clip: float | None,
    dynamic_threshold: float | None,
    sample_max_value: float,
    return_x0: bool,
) -> None:
    _check_batch("x", x)
    check_floating_on("coefficients", coefficients, x)
    for name, tensor in (("eps", eps), ("eps_prev", eps_prev), ("noise", noise)):
        _check_like(name, tensor, x, "x")
    shape = tuple(coefficients.shape)
    if not 1 <= len(shape) <= 2 or shape[-1] not in COLUMNS or (len(shape) == 2 and shape[0] != x.shape[0]):
        raise ValueError(f"coefficients: expected [4] or [7], or a row of them for each of {x.shape[0]}, got {shape}")
    bounded = clip is not None or dynamic_threshold is not None
    if shape[-1] == COLUMNS[0] and (bounded or return_x0):
        raise ValueError(f"coefficients: expected 7 columns to bound or return the predicted x0, got {shape}")
    if clip is not None and dynamic_threshold is not None:
        raise ValueError("clip: expected clip or dynamic_threshold, got both")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: expected a positive number, got {clip}")
    if dynamic_threshold is not None and not 0 < dynamic_threshold <= 1:
        raise ValueError(f"dynamic_threshold: expected a quantile in (0, 1], got {dynamic_threshold}")
    if not sample_max_value >= 1:
        raise ValueError(f"sample_max_value: expected at least 1, got {sample_max_value}")


def _q_sample(
    x0: Tensor, t: Tensor, alphas_cumprod: Tensor, seed: int | None, seed_tensor: Tensor | None, offset: int,
    target: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    call = Q_SAMPLE.call[backend]["q_sample"]
    seed = 0 if seed is None else seed
    return call(x0.contiguous(), t.contiguous(), alphas_cumprod.contiguous(), seed, seed_tensor, offset, target)


class _QSample(torch.autograd.Function):
    """Both outputs are linear in `x0`, so the backward pass does not need the noise."""

    @staticmethod
    def forward(ctx, x0: Tensor, t: Tensor, alphas_cumprod: Tensor, *rest):
        ctx.save_for_backward(t, alphas_cumprod)
        ctx.target, ctx.layout = rest[3], (x0.dim(), torch.promote_types(x0.dtype, torch.float32))
        return _q_sample(x0, t, alphas_cumprod, *rest)

    @staticmethod
    def backward(ctx, grad: Tensor, grad_target: Tensor):
        signal, level = _signal_and_level(*ctx.saved_tensors, *ctx.layout)
        grad_x0 = signal * grad
        if PREDICTION_TYPES[ctx.target] == "v_prediction":
            grad_x0 = grad_x0 - level * grad_target
        return grad_x0.to(grad.dtype), *(None,) * 7


def _update(
    x: Tensor, eps: Tensor, rows: Tensor, eps_prev: Tensor | None, noise: Tensor | None, draws: bool, seed: int | None,
    seed_tensor: Tensor | None, offset: int, bounds: dict, return_x0: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    clip = bounds.get("clip")
    return DIFFUSION_UPDATE.call[backend]["diffusion_update"](
        x.contiguous(),
        eps.contiguous(),
        rows.contiguous(),
        None if eps_prev is None else eps_prev.contiguous(),
        None if noise is None else noise.contiguous(),
        draws,
        0 if seed is None else seed,
        seed_tensor,
        offset,
        math.inf if clip is None else float(clip),
        bounds.get("dynamic_threshold") or 0.0,
        bounds.get("sample_max_value", math.inf),
        return_x0,
    )


@torch.no_grad()
def _noise_like(x: Tensor, seed: int | None, seed_tensor: Tensor | None, offset: int, backend: str) -> Tensor:
    zeros = x.new_zeros(x.shape)
    of_noise = zeros.new_zeros((1, 4), dtype=torch.float64)
    of_noise[:, 3] = 1
    return _update(zeros, zeros, of_noise, None, None, True, seed, seed_tensor, offset, {}, False, backend)[0]


def _fake_q_sample(
    x0: Tensor, t: Tensor, alphas_cumprod: Tensor, seed: int, seed_tensor: Tensor | None, offset: int, target: int
) -> tuple[Tensor, Tensor]:
    return x0.new_empty(x0.shape), x0.new_empty(0 if PREDICTION_TYPES[target] == "sample" else x0.shape)


def _fake_update(
    x: Tensor, eps: Tensor, coefficients: Tensor, eps_prev: Tensor | None, noise: Tensor | None, draws: bool, seed: int,
    seed_tensor: Tensor | None, offset: int, limit: float, quantile: float, largest: float, return_x0: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    returned = return_x0 and coefficients.shape[1] == COLUMNS[1]
    return x.new_empty(x.shape), x.new_empty(x.shape if returned else 0)


_TOLERANCE = {**USUAL_TOLERANCE, torch.float32: Tolerance(2, 1e-7)}

Q_SAMPLE = Op(
    "q_sample",
    schema=(
        "q_sample(Tensor x0, Tensor t, Tensor alphas_cumprod, int seed, Tensor? seed_tensor, int offset, int target)"
        " -> (Tensor, Tensor)",
    ),
    fake=(_fake_q_sample,),
    reference=q_sample_reference,
    supports={"triton": always, "cpp": always},
    samples=q_sample_samples,
    draw=q_sample_drawn,
    cases=q_sample_cases,
    tolerance=_TOLERANCE,
    cost=q_sample_cost,
    grad_order=0,
    passes=("forward",),
    random=True,
)

DIFFUSION_UPDATE = Op(
    "diffusion_update",
    schema=(
        "diffusion_update(Tensor x, Tensor eps, Tensor coefficients, Tensor? eps_prev, Tensor? noise, bool draws, "
        "int seed, Tensor? seed_tensor, int offset, float limit, float quantile, float largest, bool return_x0)"
        " -> (Tensor, Tensor)",
    ),
    fake=(_fake_update,),
    reference=diffusion_update_reference,
    supports={"triton": always, "cpp": always},
    samples=update_samples,
    draw=update_drawn,
    cases=update_cases,
    tolerance=_TOLERANCE,
    cost=update_cost,
    grad_order=0,
    passes=("forward",),
    random=True,
)
