"""Noising a batch and one step of a sampler, with noise drawn in the kernel.

A program has BLOCK counters, and with them four numbers each: elements 64 b + 16 j + l for j from 0 to 3. Coefficients,
steps and the seed are read on the device. Without fused multiply-adds, so that what is drawn has the reference's bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.philox import normals

BLOCK = 256
OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def counters(BLOCK: tl.constexpr):
    """The counters of this program, and the first element of each."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return index, index // 16 * 64 + index % 16


@triton.jit
def noised(x0, t, alphas_cumprod, x_t, target, at, z, total, size, steps, TARGET: tl.constexpr):
    mask = at < total
    step = tl.load(t + at // size, mask=mask, other=0)
    inside = (step >= 0) & (step < steps)
    alpha = tl.load(alphas_cumprod + step, mask=mask & inside, other=float("nan"))
    signal = tl.sqrt(alpha).to(tl.float32)
    level = tl.sqrt(1.0 - alpha).to(tl.float32)
    clean = tl.load(x0 + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(x_t + at, (signal * clean + level * z).to(x_t.dtype.element_ty), mask=mask)
    if TARGET == 0:
        tl.store(target + at, z.to(target.dtype.element_ty), mask=mask)
    if TARGET == 2:
        tl.store(target + at, (signal * z - level * clean).to(target.dtype.element_ty), mask=mask)


@triton.jit
def q_sample_kernel(
    x0, t, alphas_cumprod, seed_tensor, x_t, target, total, size, steps, seed, offset,
    TARGET: tl.constexpr, DEVICE_SEED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if DEVICE_SEED:
        seed = tl.load(seed_tensor)
    index, at = counters(BLOCK)
    z0, z1, z2, z3 = normals(index, offset, seed)
    noised(x0, t, alphas_cumprod, x_t, target, at, z0, total, size, steps, TARGET)
    noised(x0, t, alphas_cumprod, x_t, target, at + 16, z1, total, size, steps, TARGET)
    noised(x0, t, alphas_cumprod, x_t, target, at + 32, z2, total, size, steps, TARGET)
    noised(x0, t, alphas_cumprod, x_t, target, at + 48, z3, total, size, steps, TARGET)


@triton.jit
def updated(
    x, eps, coefficients, previous, noise, limits, out, x0_out, at, z, total, size, row_stride, limit,
    PREDICTS: tl.constexpr, PREVIOUS: tl.constexpr, NOISE: tl.constexpr, DYNAMIC: tl.constexpr, X0: tl.constexpr,
):  # fmt: skip
    """NOISE: 0 none, 1 stored, 2 drawn, which is z."""
    mask = at < total
    sample = at // size
    row = coefficients + sample * row_stride
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    output = tl.load(eps + at, mask=mask, other=0.0).to(tl.float32)
    of_x = tl.load(row, mask=mask, other=0.0).to(tl.float32)
    of_eps = tl.load(row + 1, mask=mask, other=0.0).to(tl.float32)
    result = of_x * value + of_eps * output
    if PREVIOUS:
        of_previous = tl.load(row + 2, mask=mask, other=0.0).to(tl.float32)
        result += of_previous * tl.load(previous + at, mask=mask, other=0.0).to(tl.float32)
    if NOISE:
        of_noise = tl.load(row + 3, mask=mask, other=0.0).to(tl.float32)
        if NOISE == 1:
            z = tl.load(noise + at, mask=mask, other=0.0).to(tl.float32)
        result += of_noise * z
    if PREDICTS:
        of_x0 = tl.load(row + 4, mask=mask, other=0.0).to(tl.float32)
        p = tl.load(row + 5, mask=mask, other=1.0)
        q = tl.load(row + 6, mask=mask, other=1.0)
        # Where there is much noise both terms are large and cancel: the difference is taken first, then made large.
        has_x = p != 0
        ratio = tl.where(has_x, q / tl.where(has_x, p, 1.0), 1.0).to(tl.float32)
        factor = tl.where(has_x, p, q).to(tl.float32)
        x0 = (tl.where(has_x, value, 0.0) + ratio * output) * factor
        if DYNAMIC:
            limit = tl.load(limits + sample, mask=mask, other=1.0)
        x0 = tl.where(x0 < -limit, -limit, x0)
        x0 = tl.where(x0 > limit, limit, x0)
        if DYNAMIC:
            x0 = x0 / limit
        result += of_x0 * x0
        if X0:
            tl.store(x0_out + at, x0.to(x0_out.dtype.element_ty), mask=mask)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def update_kernel(
    x, eps, coefficients, previous, noise, seed_tensor, limits, out, x0_out, total, size, row_stride, seed, offset,
    limit, PREDICTS: tl.constexpr, PREVIOUS: tl.constexpr, NOISE: tl.constexpr, DEVICE_SEED: tl.constexpr,
    DYNAMIC: tl.constexpr, X0: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index, at = counters(BLOCK)
    z0 = tl.zeros((BLOCK,), tl.float32)
    z1, z2, z3 = z0, z0, z0
    if NOISE == 2:
        if DEVICE_SEED:
            seed = tl.load(seed_tensor)
        z0, z1, z2, z3 = normals(index, offset, seed)
    updated(x, eps, coefficients, previous, noise, limits, out, x0_out, at, z0, total, size, row_stride, limit,
            PREDICTS, PREVIOUS, NOISE, DYNAMIC, X0)  # fmt: skip
    updated(x, eps, coefficients, previous, noise, limits, out, x0_out, at + 16, z1, total, size, row_stride, limit,
            PREDICTS, PREVIOUS, NOISE, DYNAMIC, X0)  # fmt: skip
    updated(x, eps, coefficients, previous, noise, limits, out, x0_out, at + 32, z2, total, size, row_stride, limit,
            PREDICTS, PREVIOUS, NOISE, DYNAMIC, X0)  # fmt: skip
    updated(x, eps, coefficients, previous, noise, limits, out, x0_out, at + 48, z3, total, size, row_stride, limit,
            PREDICTS, PREVIOUS, NOISE, DYNAMIC, X0)  # fmt: skip


def _grid(total: int) -> tuple[int]:
    return (triton.cdiv(triton.cdiv(total, 64) * 16, BLOCK),)


def q_sample(
    x0: Tensor, t: Tensor, alphas_cumprod: Tensor, seed: int, seed_tensor: Tensor | None, offset: int, target: int
) -> tuple[Tensor, Tensor]:
    x_t, targets = x0.new_empty(x0.shape), x0.new_empty(0 if target == 1 else x0.shape)
    if x0.numel():
        q_sample_kernel[_grid(x0.numel())](
            x0, t, alphas_cumprod, t if seed_tensor is None else seed_tensor, x_t, targets, x0.numel(),
            x0[0].numel(), alphas_cumprod.numel(), seed, offset, target, seed_tensor is not None, BLOCK, **OPTIONS,
        )  # fmt: skip
    return x_t, targets


def _dynamic_limits(x: Tensor, eps: Tensor, coefficients: Tensor, quantile: float, largest: float) -> Tensor:
    """[batch], by PyTorch's sort: a pass of its own beside which the update is small."""
    p, q = coefficients[:, 5:6], coefficients[:, 6:7]
    has_x = p != 0
    ratio = torch.where(has_x, q / torch.where(has_x, p, 1.0), 1.0).float()
    value, output = (tensor.reshape(x.shape[0], -1).float() for tensor in (x, eps))
    x0 = (torch.where(has_x, value, 0.0) + ratio * output) * torch.where(has_x, p, q).float()
    return torch.quantile(x0.abs(), quantile, dim=1).clamp(1.0, largest)


def diffusion_update(
    x: Tensor, eps: Tensor, coefficients: Tensor, eps_prev: Tensor | None, noise: Tensor | None, draws: bool, seed: int,
    seed_tensor: Tensor | None, offset: int, limit: float, quantile: float, largest: float, return_x0: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    predicts = coefficients.shape[1] == 7
    out, x0 = x.new_empty(x.shape), x.new_empty(x.shape if predicts and return_x0 else 0)
    if x.numel() == 0:
        return out, x0
    dynamic = predicts and quantile > 0
    limits = _dynamic_limits(x, eps, coefficients, quantile, largest) if dynamic else coefficients
    row_stride = coefficients.shape[1] if coefficients.shape[0] > 1 else 0
    kind = 2 if draws else int(noise is not None)

    # x stands in for what is not read.
    def given(tensor: Tensor | None) -> Tensor:
        return x if tensor is None else tensor

    update_kernel[_grid(x.numel())](
        x, eps, coefficients, given(eps_prev), given(noise), coefficients if seed_tensor is None else seed_tensor,
        limits, out, x0, x.numel(), x[0].numel(), row_stride, seed, offset, limit, predicts, eps_prev is not None, kind,
        seed_tensor is not None, dynamic, predicts and return_x0, BLOCK, **OPTIONS,
    )  # fmt: skip
    return out, x0


# What each kernel is compiled for without a GPU.
COMPILE = {
    q_sample_kernel: variants(
        q_sample_kernel,
        {"*i64": "t seed_tensor", "*fp64": "alphas_cumprod", "i64": "total size steps seed offset"},
        *(
            (dtype, {"TARGET": target, "DEVICE_SEED": device, "BLOCK": BLOCK})
            for dtype, target, device in (("*fp32", 0, False), ("*bf16", 2, True), ("*fp16", 1, False))
        ),
        **OPTIONS,
    ),
    update_kernel: [
        row
        for dtype, predicts, previous, kind, dynamic in (
            ("*fp32", True, False, 2, False),
            ("*fp32", False, True, 1, False),
            ("*bf16", True, True, 2, True),
            ("*fp16", True, False, 0, False),
        )
        for row in variants(
            update_kernel,
            {
                "*fp64": "coefficients" if dynamic else "coefficients limits", "*fp32": "limits" if dynamic else "",
                "*i64": "seed_tensor", "i64": "total size row_stride seed offset", "fp32": "limit",
            },
            (dtype, {"PREDICTS": predicts, "PREVIOUS": previous, "NOISE": kind, "DEVICE_SEED": kind == 2,
                     "DYNAMIC": dynamic, "X0": predicts, "BLOCK": BLOCK}),
            **OPTIONS,
        )
    ],
}  # fmt: skip
