"""The latent of a variational autoencoder: a Gaussian sample and its divergence from the prior, in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating, check_same_shape, check_same_type, checked_seed
from fastgen.ops.philox import philox_normal
from fastgen.ops.registry import USUAL_TOLERANCE, Cost, Op, Sample, Tolerance, always, differentiable

# exp(80) is 6e34: the divergence of six thousand such numbers is still finite in float32.
MAX_LOGVAR = 80.0

_SEED, _OFFSET = 2**40 + 7, 2**33 + 1

# Operations to draw one normal number, and to use it.
_FLOPS_OF_A_NORMAL, _FLOPS = 60, 25


def gaussian_reparameterize_kl(
    mu: Tensor, logvar: Tensor, *, seed: int | Tensor, offset: int = 0
) -> tuple[Tensor, Tensor]:
    """Sample `z ~ N(mu, exp(logvar))` so that gradients pass through it, and its divergence from the unit Gaussian.

        z = mu + exp(logvar / 2) noise
        kl_i = 1/2 sum_j (mu_ij^2 + exp(logvar_ij) - 1 - logvar_ij)

    The noise is drawn in the kernel by Philox and Box-Muller: its bits depend on (seed, offset) and an element's place
    alone, and are the same on every backend (`fastgen.ops.philox.philox_normal` is the specification). The gradient
    draws it again: nothing is saved but the inputs and the seed.

    A log-variance above 80 counts as 80 and has no gradient, so that whatever finite number a network gives, the
    divergence is finite in float32 (up to six thousand such latents); an infinite one stays infinite.

    Args:
        mu: [batch, ...].
        logvar: the shape of `mu`.
        seed: 0 to 2^63 - 1, or one int64 on the device, which a replayed CUDA graph reads again.
        offset: which of the streams of this seed, 0 to 2^63 - 1: take another one for every step of training.

    Returns:
        z: the shape and dtype of `mu`.
        kl: [batch], nats, summed over all other dimensions; float32 where `mu` has a half type.

    Raises:
        ValueError: shapes that differ, or a seed or offset out of range.
        TypeError: a dtype that is not floating, or dtypes or devices that differ.

    Gradients of every order in both; the first is a kernel.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), section 2.4 and appendix B.
    """
    _check(mu, logvar)
    if seed is None:
        raise TypeError("seed: expected an int or an int64 tensor, got None")
    seed, seed_tensor = checked_seed(mu, seed, offset)
    backend = GAUSSIAN_REPARAMETERIZE_KL.choose((mu, logvar))
    if backend == "reference":
        given = seed if seed_tensor is None else seed_tensor
        return gaussian_reparameterize_kl_reference(mu, logvar, seed=given, offset=offset)
    return _reparameterize_kl(mu, logvar, seed_tensor, 0 if seed is None else seed, offset, backend)


def gaussian_reparameterize_kl_reference(
    mu: Tensor, logvar: Tensor, *, seed: int | Tensor, offset: int = 0
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(mu.dtype, torch.float32)
    mean, log_variance = mu.to(dtype), logvar.to(dtype)
    log_variance = torch.where(log_variance < torch.inf, log_variance.clamp(max=MAX_LOGVAR), log_variance)
    noise = philox_normal(mu.shape, seed=seed, offset=offset, device=mu.device)
    z = mean + torch.exp(log_variance / 2) * noise.to(dtype)
    kl = 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)
    return z.to(mu.dtype), kl.reshape(mu.shape[0], mu.shape[1:].numel()).sum(1)


def _check(mu: Tensor, logvar: Tensor) -> None:
    check_floating("mu", mu)
    if mu.dim() < 1:
        raise ValueError("mu: expected [batch, ...], got a single number")
    check_same_type("logvar", logvar, mu)
    check_same_shape("logvar", logvar, mu, "mu")


def _forward(
    mu: Tensor, logvar: Tensor, seed_tensor: Tensor | None, seed: int, offset: int, backend: str
) -> tuple[Tensor, Tensor]:
    call = GAUSSIAN_REPARAMETERIZE_KL.call[backend]["gaussian_reparameterize_kl"]
    return call(mu.contiguous(), logvar.contiguous(), seed, seed_tensor, offset)


def _gradient(ctx, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor, Tensor, None]:
    (mu, logvar, seed_tensor), (seed, offset, backend) = ctx.saved_tensors, ctx.settings
    tensors = (t.contiguous() for t in (grad_z, grad_kl, mu, logvar))
    call = GAUSSIAN_REPARAMETERIZE_KL.call[backend]["gaussian_reparameterize_kl_backward"]
    return *call(*tensors, seed, seed_tensor, offset), None


def _reference(mu: Tensor, logvar: Tensor, seed_tensor: Tensor | None, seed: int, offset: int) -> tuple[Tensor, Tensor]:
    given = seed if seed_tensor is None else seed_tensor
    return gaussian_reparameterize_kl_reference(mu, logvar, seed=given, offset=offset)


_reparameterize_kl = differentiable(_forward, _gradient, _reference, inputs=3, settings=("seed", "offset"))


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def sample(name: str, mu: Tensor, logvar: Tensor, **kwargs: object) -> Sample:
        return Sample(
            name, (mu.to(device, dtype), logvar.to(device, dtype)), {"seed": _SEED, "offset": _OFFSET, **kwargs}
        )

    def two(*shape: int) -> tuple[Tensor, Tensor]:
        return tuple(torch.randn(2, *shape, dtype=torch.float64).unbind())

    yield sample("vectors", *two(5, 20))
    yield sample("whole blocks of noise", *two(3, 128))
    yield sample("images", *two(2, 3, 5, 7))
    yield sample("one element", *two(1, 1))
    yield sample("a number each", *two(7))
    yield sample("more than a piece", *two(2, 3001))
    yield sample("many short rows", *two(300, 7))
    yield sample("empty batch", *two(0, 4))
    yield sample("no latents", *two(3, 0))
    yield sample("transposed", *(t.transpose(0, 2) for t in two(4, 6, 3)))
    yield sample("expanded", *(t.expand(4, 33) for t in two(1, 33)))
    yield sample("seed of the device", *two(3, 9), seed=torch.tensor([_SEED], device=device), offset=0)
    mu, logvar = two(4, 65)
    yield sample("collapsed posterior", mu * 1e-3, logvar * 1e-3)
    yield sample("certain posterior, extreme", mu, logvar - 90)
    yield sample(
        "overflowing, extreme", mu, logvar + torch.tensor([79.0, 100.0, 1000.0, 0.0], dtype=torch.float64)[:, None]
    )


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in ((4096, 256), (256, 64), (16, 4, 64, 64)):
        mu, logvar = (0.5 * torch.randn(2, *shape, device=device)).to(dtype).unbind()
        yield Sample("x".join(map(str, shape)), (mu, logvar), {"seed": 1})


def _cost(pass_: str, mu: Tensor, logvar: Tensor, **kwargs: object) -> Cost:
    # Forward reads both and writes z; backward reads both and the gradient of z, and writes two gradients.
    tensors, draws = (8, 2) if pass_ == "forward_backward" else (3, 1)
    return Cost(tensors * mu.numel() * mu.element_size(), flops=draws * (_FLOPS_OF_A_NORMAL + _FLOPS) * mu.numel() + 1)


GAUSSIAN_REPARAMETERIZE_KL = Op(
    "gaussian_reparameterize_kl",
    schema=(
        "gaussian_reparameterize_kl(Tensor mu, Tensor logvar, int seed, Tensor? seed_tensor, int offset)"
        " -> (Tensor, Tensor)",
        "gaussian_reparameterize_kl_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, int seed, "
        "Tensor? seed_tensor, int offset) -> (Tensor, Tensor)",
    ),
    fake=(("mu", "mu[batch]"), ("mu", "logvar")),
    reference=gaussian_reparameterize_kl_reference,
    supports={"triton": always, "cpp": always},
    samples=_samples,
    cases=_cases,
    tolerance={**USUAL_TOLERANCE, torch.float32: Tolerance(2, 1e-7)},
    cost=_cost,
    random=True,
)
