"""Test inputs, benchmark cases and costs of the diffusion ops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.registry import Cost, Sample

SEED, OFFSET = 2**40 + 7, 2**33 + 1

# Operations to draw one normal number.
_FLOPS_OF_A_NORMAL = 60


def linear_alphas_cumprod(steps: int = 1000) -> Tensor:
    """The cumulative product of alphas of Ho, Jain and Abbeel's schedule (2020), section 4; float64."""
    return (1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)).cumprod(0)


def ddpm_coefficients(t: int, *, steps: int = 1000) -> Tensor:
    """A row of `diffusion_update` for an ancestral step from t, through the predicted x0: [7]."""
    alphas = linear_alphas_cumprod(steps)
    now, before = float(alphas[t]), float(alphas[t - 1]) if t else 1.0
    beta = 1 - now / before
    of_x0, of_x = math.sqrt(before) * beta / (1 - now), math.sqrt(1 - beta) * (1 - before) / (1 - now)
    deviation = math.sqrt((1 - before) / (1 - now) * beta)
    p, q = 1 / math.sqrt(now), -math.sqrt(1 / now - 1)
    return torch.tensor([of_x, 0, 0, deviation, of_x0, p, q], dtype=torch.float64)


def q_sample_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def sample(name: str, x0: Tensor, t: list[int], **kwargs: object) -> Sample:
        args = (x0.to(device, dtype), torch.tensor(t, device=device, dtype=torch.int64))
        alphas = linear_alphas_cumprod().to(device, dtype)
        return Sample(name, (*args, alphas), {"seed": SEED, "offset": OFFSET, **kwargs})

    x = torch.randn(3, 3, 7, 9, dtype=torch.float64)
    for kind in ("epsilon", "sample", "v_prediction"):
        yield sample(f"images, {kind}", x, [0, 999, 431], prediction_type=kind)
    yield sample("one element", x[:1, :1, 0, 0], [5])
    yield sample("a number each", x[:2, 0, 0, 0], [5, 6], prediction_type="v_prediction")
    yield sample("longer than a piece", torch.randn(3, 1500, dtype=torch.float64), [1, 2, 3])
    yield sample("empty batch", x[:0], [])
    yield sample("transposed", x.transpose(1, 3), [1, 2, 3])
    yield sample("expanded", x[:1, :, :1].expand(2, 3, 5, 9), [7, 8])
    yield sample("seed of the device", x, [1, 2, 3], seed=torch.tensor([SEED], device=device), offset=0)


def update_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def three(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
        return randn(*shape), randn(*shape), randn(*shape)

    ddpm = ddpm_coefficients(700).to(device, dtype)
    multistep = torch.tensor([0.9, -0.3, 0.1, 0.2], dtype=torch.float64).to(device, dtype)
    of_x0 = torch.tensor([0.5, 0, 0.25, 0, 0.75, 0, 1.5], dtype=torch.float64).to(device, dtype)
    each = torch.stack([ddpm_coefficients(t) for t in (0, 999, 431)]).to(device, dtype)
    drawn = {"seed": SEED, "offset": OFFSET}
    x, eps, eps_prev = three(3, 3, 7, 9)
    yield Sample("linear", (x, eps, multistep, eps_prev))
    yield Sample("with noise", (x, eps, multistep, eps_prev), drawn)
    yield Sample("without previous", (x, eps, multistep), drawn)
    yield Sample("clipped", (x, eps, ddpm), {**drawn, "clip": 1.0})
    yield Sample("clipped, x0 returned", (x, eps, ddpm), {"clip": 1.0, "return_x0": True})
    yield Sample("thresholded", (x, eps, ddpm), {**drawn, "dynamic_threshold": 0.9, "return_x0": True})
    yield Sample("thresholded to a largest", (x, eps, ddpm), {"dynamic_threshold": 0.995, "sample_max_value": 1.5})
    yield Sample("x0 is the output", (x, eps, of_x0, eps_prev), {"clip": 0.5, "return_x0": True})
    yield Sample("coefficients of each", (x, eps, each), {**drawn, "clip": 2.0})
    yield Sample("given noise", (x, eps, multistep), {"noise": eps_prev})
    yield Sample("seed of the device", (x, eps, multistep), {"seed": torch.tensor([SEED], device=device)})
    yield Sample("longer than a piece", (*three(3, 1500)[:2], multistep), drawn)
    yield Sample("one element", (*three(1)[:2], ddpm), {**drawn, "dynamic_threshold": 0.5})
    yield Sample("empty batch", (*three(0, 3, 4)[:2], ddpm), {**drawn, "dynamic_threshold": 0.5})
    x, eps, eps_prev = (t.transpose(1, 3) for t in (x, eps, eps_prev))
    yield Sample("transposed", (x, eps, multistep, eps_prev), drawn)
    yield Sample("expanded", (x[:1].expand(2, 9, 7, 3), eps[:1].expand(2, 9, 7, 3), ddpm[:1].expand(7)))


def _noise_drawn(drawing: Drawing, shape: tuple[int, ...], *, required: bool) -> dict:
    """Arguments that give the noise, a seed, or neither where the op needs none."""
    kind = drawing.random.random()
    if kind < 0.3:
        return {"noise": drawing.values(*shape)}
    if not required and kind < 0.5:
        return {}
    seed = drawing.random.randrange(2**62)
    if kind < 0.6:
        return {"seed": torch.tensor([seed], device=drawing.device)}
    return {"seed": seed, "offset": 4 * drawing.random.randrange(2**40)}


def q_sample_drawn(drawing: Drawing) -> Sample:
    shape = drawing.shape(drawing.random.randint(1, 5))
    steps = drawing.choice((1, 7, 1000))
    args = (
        drawing.values(*shape),
        drawing.integers(0, steps, shape[0]),
        linear_alphas_cumprod(steps).to(drawing.dtype),
    )
    kind = drawing.choice(("epsilon", "sample", "v_prediction"))
    return Sample("drawn", args, {**_noise_drawn(drawing, shape, required=True), "prediction_type": kind})


def update_drawn(drawing: Drawing) -> Sample:
    shape = drawing.shape(drawing.random.randint(1, 5))
    x, eps = drawing.values(*shape), drawing.values(*shape)
    kwargs = _noise_drawn(drawing, shape, required=False)
    through_x0 = drawing.chance(0.6)
    rows = (shape[0],) if drawing.chance(0.3) else ()
    coefficients = drawing.uniform(*rows, 7 if through_x0 else 4, low=-1.0, high=1.5)
    if through_x0:
        kwargs["return_x0"] = drawing.chance(0.5)
        kind = drawing.random.random()
        if kind < 0.4:
            kwargs["clip"] = drawing.number(0.1, 5)
        elif kind < 0.8:
            kwargs["dynamic_threshold"] = drawing.number(0.05, 1.0)
            kwargs["sample_max_value"] = drawing.choice((math.inf, drawing.number(1, 3)))
    eps_prev = drawing.values(*shape) if drawing.chance(0.4) else None
    return Sample("drawn", (x, eps, coefficients, eps_prev), kwargs)


def q_sample_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for kind in ("epsilon", "v_prediction"):
        x0 = torch.randn(64, 3, 64, 64, device=device, dtype=dtype)
        args = (x0, torch.randint(1000, (64,), device=device), linear_alphas_cumprod().to(device))
        yield Sample(f"64x3x64x64, {kind}", args, {"seed": 1, "prediction_type": kind})


def update_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    x, eps, eps_prev = torch.randn(3, 64, 3, 64, 64, device=device, dtype=dtype)
    ddpm = ddpm_coefficients(700).to(device)
    ddim = ddpm * torch.tensor([1, 1, 1, 0, 1, 1, 1], dtype=torch.float64, device=device)
    multistep = torch.tensor([0.9, -0.3, 0.1, 0], dtype=torch.float64, device=device)
    yield Sample("64x3x64x64, clipped, with noise", (x, eps, ddpm), {"seed": 1, "clip": 1.0})
    yield Sample("64x3x64x64, clipped, without noise", (x, eps, ddim), {"clip": 1.0})
    yield Sample("64x3x64x64, two outputs, without noise", (x, eps, multistep, eps_prev))
    yield Sample("64x3x64x64, thresholded, with noise", (x, eps, ddpm), {"seed": 1, "dynamic_threshold": 0.995})


def q_sample_cost(pass_: str, x0: Tensor, t: Tensor, alphas_cumprod: Tensor, **kwargs: object) -> Cost:
    written = 1 if kwargs.get("prediction_type") == "sample" else 2
    size = (1 + written) * x0.numel() * x0.element_size()
    tables = sum(table.numel() * table.element_size() for table in (t, alphas_cumprod))
    return Cost(size + tables, flops=(6 + _FLOPS_OF_A_NORMAL) * x0.numel() + 1)


def update_cost(
    pass_: str, x: Tensor, eps: Tensor, coefficients: Tensor, eps_prev: Tensor | None = None, **kwargs: object
) -> Cost:
    tensors = 3 + sum((eps_prev is not None, kwargs.get("noise") is not None, bool(kwargs.get("return_x0"))))
    flops = 12 + (_FLOPS_OF_A_NORMAL if kwargs.get("seed") is not None else 0)
    size = tensors * x.numel() * x.element_size() + coefficients.numel() * coefficients.element_size()
    return Cost(size, flops=flops * x.numel() + 1)
