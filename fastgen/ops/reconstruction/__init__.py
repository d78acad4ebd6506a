"""Log-probabilities of data under the distribution that a decoder gives, summed over each sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastgen.ops.checks import check_floating, check_same_shape, check_same_type
from fastgen.ops.discretized_logistic import MIN_LOG_SCALE, check_levels, log_bin_probability
from fastgen.ops.reconstruction import cases
from fastgen.ops.registry import Op, always, computing_dtype, differentiable

# exp(80) is 6e34: squares of differences up to a hundred stay finite in float32.
MIN_LOGVAR = -80.0


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log-probability of binary x, one number for each sample.

        log p(x_i) = sum_j x_ij logits_ij - log(1 + exp(logits_ij))

    which is exact where the probability is near 0 or 1. Values of x between 0 and 1 are taken as they are (the cross
    entropy of grey pixels); others are not looked for.

    Args:
        logits: [batch, ...].
        x: the shape and dtype of `logits`.

    Returns:
        [batch], nats, summed over all other dimensions; float32 where `logits` has a half type.

    Raises:
        ValueError: shapes that differ.
        TypeError: a dtype that is not floating, or dtypes or devices that differ.

    Gradients of every order in both; the first in the logits is a kernel that saves nothing beyond the inputs.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), appendix C.1.
    """
    _check(("logits", "x"), (logits, x))
    backend = BERNOULLI_LOG_PROB.choose((logits, x))
    if backend == "reference":
        return bernoulli_log_prob_reference(logits, x)
    return _bernoulli(logits, x, backend)


def bernoulli_log_prob_reference(logits: Tensor, x: Tensor) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    value, target = logits.to(dtype), x.to(dtype)
    # Two logarithms instead of a difference, so that nothing cancels where x is 0 or 1.
    return _per_sample(target * logsigmoid(value) + (1 - target) * logsigmoid(-value))


def gaussian_log_prob(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    """Log-density of x under independent Gaussians, one number for each sample.

        log p(x_i) = -1/2 sum_j (log 2 pi + logvar_ij + (x_ij - mean_ij)^2 exp(-logvar_ij))

    A log-variance below -80 counts as -80 and has no gradient, so that it does not overflow.

    Args:
        mean: [batch, ...].
        logvar: the shape of `mean`, or one number that all share, learned or not; the dtype of `mean`.
        x: the shape and dtype of `mean`.

    Returns:
        [batch], nats, summed over all other dimensions; float32 where `mean` has a half type.

    Raises:
        ValueError: shapes that differ.
        TypeError: a dtype that is not floating, or dtypes or devices that differ.

    Gradients of every order in all three; the first is a kernel that saves nothing beyond the inputs.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), appendix C.2; one variance for all: Rybkin,
    Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders" (2021).
    """
    _check(("mean", "x"), (mean, x))
    _check_spread("logvar", logvar, mean)
    return _log_prob(GAUSSIAN_LOG_PROB, mean, logvar, x)


def gaussian_log_prob_reference(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    dtype = torch.promote_types(mean.dtype, torch.float32)
    log_variance = logvar.to(dtype)
    log_variance = torch.where(log_variance > -torch.inf, log_variance.clamp(min=MIN_LOGVAR), log_variance)
    difference = x.to(dtype) - mean.to(dtype)
    square = difference.square() * torch.exp(-log_variance)
    return _per_sample(-0.5 * (square + log_variance + math.log(2 * math.pi)))


def discretized_logistic_log_prob(mean: Tensor, log_scale: Tensor, x: Tensor, *, levels: int = 256) -> Tensor:
    """Log-probability of pixels under a logistic distribution that is integrated over bins, one for each of the levels.

    With `half = 1 / (levels - 1)` and `s = exp(max(log_scale, -7))`, one number for each sample:

        log p(x_i) = sum_j log [sigmoid((x_ij + half - mean_ij) / s_ij) - sigmoid((x_ij - half - mean_ij) / s_ij)]

    where the lowest bin (`x < -1 + half`) reaches down to minus infinity and the highest (`x > 1 - half`) up to
    infinity. Bins are evaluated without cancellation at every scale, by the formulas of
    `discretized_logistic_mixture_log_prob`.

    Args:
        mean: [batch, ...].
        log_scale: the shape of `mean`, or one number that all share; the dtype of `mean`.
        x: the shape and dtype of `mean`, values in [-1, 1], `2 * level / (levels - 1) - 1`. Not checked: a value beyond
            counts as the edge bin on its side, with the inner end half a bin off.
        levels: number of values a pixel can take, 2 to 65536.

    Returns:
        [batch], nats, summed over all other dimensions; float32 where `mean` has a half type.

    Raises:
        ValueError: shapes that differ, or levels out of range.
        TypeError: a dtype that is not floating, or dtypes or devices that differ.

    Gradients of every order in all three; the first is a kernel that saves nothing beyond the inputs.

    Source: Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (2016), section 5.2.
    """
    _check(("mean", "x"), (mean, x))
    _check_spread("log_scale", log_scale, mean)
    check_levels(levels)
    return _log_prob(DISCRETIZED_LOGISTIC_LOG_PROB, mean, log_scale, x, levels)


def discretized_logistic_log_prob_reference(mean: Tensor, log_scale: Tensor, x: Tensor, *, levels: int = 256) -> Tensor:
    dtype = torch.promote_types(mean.dtype, torch.float32)
    bounded = log_scale.to(dtype).clamp(min=MIN_LOG_SCALE).expand(mean.shape)
    return _per_sample(log_bin_probability(x.to(dtype), mean.to(dtype), bounded, levels))


def _per_sample(terms: Tensor) -> Tensor:
    return terms.reshape(terms.shape[0], terms.shape[1:].numel()).sum(1)


def _check(names: tuple[str, str], tensors: tuple[Tensor, Tensor]) -> None:
    first, x = tensors
    check_floating(names[0], first)
    if first.dim() < 1:
        raise ValueError(f"{names[0]}: expected [batch, ...], got a single number")
    check_same_type(names[1], x, first)
    check_same_shape(names[1], x, first, names[0])


def _check_spread(name: str, spread: Tensor, mean: Tensor) -> None:
    check_same_type(name, spread, mean)
    if spread.shape != mean.shape and (spread.numel() != 1 or spread.dim() > mean.dim()):
        raise ValueError(
            f"{name}: expected the shape of mean, {tuple(mean.shape)}, or one number, got {tuple(spread.shape)}"
        )


def _run_bernoulli(logits: Tensor, x: Tensor, backend: str) -> Tensor:
    return BERNOULLI_LOG_PROB.call[backend]["bernoulli_log_prob"](logits.contiguous(), x.contiguous())


def _gradient_of_bernoulli(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    (logits, x), (backend,), (of_logits, of_x, _) = ctx.saved_tensors, ctx.settings, ctx.needs_input_grad
    call = BERNOULLI_LOG_PROB.call[backend]["bernoulli_log_prob_backward"]
    grad_logits = call(grad.contiguous(), logits.contiguous(), x.contiguous()) if of_logits else None
    # The gradient in the pixels, which is seldom needed, is one product.
    grad_x = (grad.view(-1, *(1,) * (x.dim() - 1)) * logits).to(x.dtype) if of_x else None
    return grad_logits, grad_x


_bernoulli = differentiable(_run_bernoulli, _gradient_of_bernoulli, bernoulli_log_prob_reference, inputs=2)


def _log_prob(op: Op, mean: Tensor, spread: Tensor, x: Tensor, *levels: int) -> Tensor:
    backend = op.choose((mean, spread, x))
    if backend == "reference":
        return _reference_of_location_scale(mean, spread, x, op, levels)
    if spread.shape != mean.shape:
        spread = spread.reshape(())
    return _location_scale(mean, spread, x, op, levels, backend)


def _run_location_scale(mean: Tensor, spread: Tensor, x: Tensor, op: Op, levels: tuple, backend: str) -> Tensor:
    call = op.call[backend][op.name]
    return call(mean.contiguous(), spread.contiguous(), x.contiguous(), *levels)


def _gradient_of_location_scale(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    inputs, (op, levels, backend) = ctx.saved_tensors, ctx.settings
    call = op.call[backend][f"{op.name}_backward"]
    grad_mean, grad_spread = call(grad.contiguous(), *(t.contiguous() for t in inputs), *levels)
    if inputs[1].dim() == 0:
        # For a spread that all samples share, the kernel returns a gradient for each sample.
        grad_spread = grad_spread.sum().to(inputs[1].dtype)
    # x and the location have opposite gradients.
    return grad_mean, grad_spread, -grad_mean if ctx.needs_input_grad[2] else None


def _reference_of_location_scale(mean: Tensor, spread: Tensor, x: Tensor, op: Op, levels: tuple) -> Tensor:
    return op.reference(mean, spread, x, **({"levels": levels[0]} if levels else {}))


_location_scale = differentiable(
    _run_location_scale,
    _gradient_of_location_scale,
    _reference_of_location_scale,
    inputs=3,
    settings=("op", "levels"),
)


def _fake_log_prob_backward(
    grad: Tensor, mean: Tensor, spread: Tensor, x: Tensor, levels: int = 0
) -> tuple[Tensor, Tensor]:
    if spread.dim():
        return mean.new_empty(mean.shape), mean.new_empty(mean.shape)
    return mean.new_empty(mean.shape), mean.new_empty(mean.shape[0], dtype=computing_dtype(mean))


_OF_EVERY = {
    "supports": {"triton": always, "cpp": always},
    "cost": cases.cost,
}

BERNOULLI_LOG_PROB = Op(
    "bernoulli_log_prob",
    schema=(
        "bernoulli_log_prob(Tensor logits, Tensor x) -> Tensor",
        "bernoulli_log_prob_backward(Tensor grad, Tensor logits, Tensor x) -> Tensor",
    ),
    fake=(("logits[batch]",), ("logits",)),
    reference=bernoulli_log_prob_reference,
    samples=cases.bernoulli_samples,
    cases=cases.bernoulli_cases,
    **_OF_EVERY,
)

GAUSSIAN_LOG_PROB = Op(
    "gaussian_log_prob",
    schema=(
        "gaussian_log_prob(Tensor mean, Tensor logvar, Tensor x) -> Tensor",
        "gaussian_log_prob_backward(Tensor grad, Tensor mean, Tensor logvar, Tensor x) -> (Tensor, Tensor)",
    ),
    fake=(("mean[batch]",), _fake_log_prob_backward),
    reference=gaussian_log_prob_reference,
    samples=cases.gaussian_samples,
    cases=cases.gaussian_cases,
    **_OF_EVERY,
)

DISCRETIZED_LOGISTIC_LOG_PROB = Op(
    "discretized_logistic_log_prob",
    schema=(
        "discretized_logistic_log_prob(Tensor mean, Tensor log_scale, Tensor x, int levels) -> Tensor",
        "discretized_logistic_log_prob_backward(Tensor grad, Tensor mean, Tensor log_scale, Tensor x, int levels)"
        " -> (Tensor, Tensor)",
    ),
    fake=(("mean[batch]",), _fake_log_prob_backward),
    reference=discretized_logistic_log_prob_reference,
    samples=cases.logistic_samples,
    cases=cases.logistic_cases,
    **_OF_EVERY,
)
