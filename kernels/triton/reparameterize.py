"""A Gaussian sample and its divergence from the unit Gaussian, with noise drawn in the kernel.

A program of the forward pass has BLOCK counters of each of ROWS samples, and with them four numbers each, elements
64 b + 16 j + l for j from 0 to 3, of which the first and the last may be a neighbour's. Without fused multiply-adds, so
that what is drawn has the reference's bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.philox import normals

BLOCK = 256
OPTIONS = {"enable_fp_fusion": False}
# As in fastgen/ops/reparameterize.py.
MAX_LOGVAR = tl.constexpr(80.0)


@triton.jit
def gaussian_scale(v):
    """`csrc/math/reparameterize.h`: exp(v / 2), exp(v) - 1 and exp(v) - 1 - v, and whether v was too large."""
    high = (v > MAX_LOGVAR) & (v < float("inf"))
    v = tl.where(high, MAX_LOGVAR, v)
    half = 0.5 * v
    scale = tl.exp(half)
    # exp(half) - 1 - half where it is small.
    p = half * 1.9875691500e-4 + 1.3981999507e-3
    p = p * half + 8.3334519073e-3
    p = p * half + 4.1665795894e-2
    p = p * half + 1.6666665459e-1
    p = p * half + 5.0000001201e-1
    q = p * half * half
    close = 2.0 * q + (half + q) * (half + q)
    square = scale * scale
    near = tl.abs(half) < 0.34
    return scale, tl.where(near, close + v, square - 1.0), tl.where(near, close, square - 1.0 - v), high


@triton.jit
def sampled(mu, logvar, z, at, noise, first, end):
    """Writes z and returns twice what the elements [first, end) among `at` add to the divergence."""
    mask = (at >= first) & (at < end)
    mean = tl.load(mu + at, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(logvar + at, mask=mask, other=0.0).to(tl.float32)
    scale, _, excess, _ = gaussian_scale(v)
    tl.store(z + at, (mean + scale * noise).to(z.dtype.element_ty), mask=mask)
    return tl.where(mask, mean * mean + excess, 0.0)


@triton.jit
def forward_kernel(
    mu, logvar, seed_tensor, z, sums, batch, size, pieces, seed, offset,
    DEVICE_SEED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if DEVICE_SEED:
        seed = tl.load(seed_tensor)
    program = tl.program_id(0).to(tl.int64)
    piece = program % pieces
    sample = program // pieces * ROWS + tl.arange(0, ROWS)[:, None]
    first = sample * size
    end = tl.where(sample < batch, first + size, first)
    index = first // 64 * 16 + piece * BLOCK + tl.arange(0, BLOCK)[None, :]
    at = index // 16 * 64 + index % 16
    z0, z1, z2, z3 = normals(index, offset, seed)
    total = sampled(mu, logvar, z, at, z0, first, end)
    total += sampled(mu, logvar, z, at + 16, z1, first, end)
    total += sampled(mu, logvar, z, at + 32, z2, first, end)
    total += sampled(mu, logvar, z, at + 48, z3, first, end)
    tl.store(sums + sample * pieces + piece, 0.5 * tl.sum(total, 1, keep_dims=True), mask=sample < batch)


@triton.jit
def differentiated(grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar, at, noise, total, size):
    mask = at < total
    dz = tl.load(grad_z + at, mask=mask, other=0.0).to(tl.float32)
    dkl = tl.load(grad_kl + at // size, mask=mask, other=0.0)
    mean = tl.load(mu + at, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(logvar + at, mask=mask, other=0.0).to(tl.float32)
    scale, growth, _, high = gaussian_scale(v)
    slope = tl.where(high, 0.0, 0.5 * (dz * (noise * scale) + dkl * growth))
    tl.store(grad_mu + at, (dz + dkl * mean).to(grad_mu.dtype.element_ty), mask=mask)
    tl.store(grad_logvar + at, slope.to(grad_logvar.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    grad_z, grad_kl, mu, logvar, seed_tensor, grad_mu, grad_logvar, total, size, seed, offset,
    DEVICE_SEED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if DEVICE_SEED:
        seed = tl.load(seed_tensor)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = index // 16 * 64 + index % 16
    z0, z1, z2, z3 = normals(index, offset, seed)
    differentiated(grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar, at, z0, total, size)
    differentiated(grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar, at + 16, z1, total, size)
    differentiated(grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar, at + 32, z2, total, size)
    differentiated(grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar, at + 48, z3, total, size)


def gaussian_reparameterize_kl(
    mu: Tensor, logvar: Tensor, seed: int, seed_tensor: Tensor | None, offset: int
) -> tuple[Tensor, Tensor]:
    z = mu.new_empty(mu.shape)
    if mu.numel() == 0:
        return z, mu.new_zeros(mu.shape[0], dtype=torch.float32)
    size = mu[0].numel()
    # A sample that does not start at a block of 64 has parts of two more.
    counters = 16 * (size // 64 if size % 64 == 0 else (size + 62) // 64 + 1)
    block = min(BLOCK, triton.next_power_of_2(counters))
    pieces = triton.cdiv(counters, block)
    sums = mu.new_empty((mu.shape[0], pieces), dtype=torch.float32)
    rows = BLOCK // block
    forward_kernel[(triton.cdiv(mu.shape[0], rows) * pieces,)](
        mu, logvar, mu if seed_tensor is None else seed_tensor, z, sums, mu.shape[0], size, pieces, seed, offset,
        seed_tensor is not None, rows, block, **OPTIONS,
    )  # fmt: skip
    return z, sums.sum(1)


def gaussian_reparameterize_kl_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: int, seed_tensor: Tensor | None, offset: int
) -> tuple[Tensor, Tensor]:
    grad_mu, grad_logvar = mu.new_empty(mu.shape), mu.new_empty(mu.shape)
    if mu.numel():
        backward_kernel[(triton.cdiv(triton.cdiv(mu.numel(), 64) * 16, BLOCK),)](
            grad_z, grad_kl, mu, logvar, mu if seed_tensor is None else seed_tensor, grad_mu, grad_logvar,
            mu.numel(), mu[0].numel(), seed, offset, seed_tensor is not None, BLOCK, **OPTIONS,
        )  # fmt: skip
    return grad_mu, grad_logvar


# What each kernel is compiled for without a GPU.
_KINDS = {"*i64": "seed_tensor", "*fp32": "sums grad_kl", "i64": "batch total size pieces seed offset"}
COMPILE = {
    kernel: variants(
        kernel,
        _KINDS,
        *(
            (dtype, {"DEVICE_SEED": device, "ROWS": rows, "BLOCK": BLOCK // rows})
            for dtype, device, rows in (("*fp32", False, 1), ("*bf16", True, 8), ("*fp16", False, 2))
        ),
        **OPTIONS,
    )
    for kernel in (forward_kernel, backward_kernel)
}
