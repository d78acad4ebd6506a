"""The discretised mixture of logistics of PixelCNN++: its log-probability and a draw from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating, check_same_type
from fastgen.ops.discretized_logistic import MIN_LOG_SCALE, check_levels, log_bin_probability
from fastgen.ops.drawing import Drawing
from fastgen.ops.philox import philox_uniform
from fastgen.ops.registry import Cost, Op, Sample, Tolerance, always, differentiable

# Uniform numbers are kept this far from 0 and 1, where the logistic distribution is infinite.
UNIFORM_CLIP = 1e-5
# A CPU thread keeps a block of every mixture in its cache; PixelCNN++ has 10 mixtures.
MAX_MIXTURES_CPP = 64


def discretized_logistic_mixture_log_prob(x: Tensor, parameters: Tensor, *, levels: int = 256) -> Tensor:
    """Log-probability of pixels under a mixture of logistics that is integrated over bins, one for each of the levels.

    With `half = 1 / (levels - 1)` and `s_jc = exp(max(log_scale_jc, -7))`, in nats,

        log sum_j softmax(logits)_j prod_c [sigmoid((x_c + half - m_jc) / s_jc) - sigmoid((x_c - half - m_jc) / s_jc)]

    where the lowest bin (`x_c < -1 + half`) reaches down to minus infinity and the highest (`x_c > 1 - half`) up to
    infinity. With three channels, means depend on the channels before: `m_1 = mean_1 + a x_0` and
    `m_2 = mean_2 + b x_0 + c x_1`, where `a, b, c = tanh(coefficients)`. Bins are evaluated without cancellation at
    every scale. The paper's code instead switches to the density where a bin has less than 1e-5: this is more exact
    than that code, not bit-equal to it.

    Args:
        x: [batch, channels, height, width], 1 or 3 channels, with values in [-1, 1], `2 * level / (levels - 1) - 1`.
            This is not checked: a value beyond counts as the edge bin on its side, with the inner end half a bin off.
        parameters: for one channel [batch, 3 * mixtures, height, width]: logits, means, log-scales, `mixtures` planes
            each. For three [batch, 10 * mixtures, height, width]: logits, then means, log-scales, coefficients of red,
            then of green, then of blue.
        levels: number of values a channel can take, 2 to 65536.

    Returns:
        [batch, height, width], nats, the channels of a pixel together.

    Raises:
        ValueError: shapes that do not match each other or any number of mixtures, or levels out of range.
        TypeError: a dtype that is not floating, or dtypes or devices that differ.

    Gradients of every order in both; the first is one kernel that saves nothing beyond its inputs.

    Source: Salimans et al., "PixelCNN++" (2017), equations 2 and 3.
    """
    _check(x, parameters, levels)
    backend = DISCRETIZED_LOGISTIC_MIXTURE_LOG_PROB.choose((x, parameters), levels)
    if backend == "reference":
        return discretized_logistic_mixture_log_prob_reference(x, parameters, levels=levels)
    return _differentiable_log_prob(x, parameters, levels, backend)


def discretized_logistic_mixture_sample(
    parameters: Tensor, *, channels: int, levels: int = 256, seed: int, offset: int = 0
) -> Tensor:
    """Draw pixels from the distribution whose log-probability is `discretized_logistic_mixture_log_prob`.

    One uniform number picks the mixture, by inversion of the running sum of softmax(logits). Then, channel after
    channel, `x = m + s (log u - log(1 - u))` with `u` in [1e-5, 1 - 1e-5], cut to [-1, 1] and rounded to the nearest of
    the levels; later channels see the rounded earlier ones. All is decided in float64, whatever the dtype.

    The uniform numbers are Philox's: those of the pixel at `i = (sample * height + row) * width + column` depend on
    (seed, offset, i) alone. So every backend draws the same, and another offset draws independent numbers.

    Args:
        parameters: as for the log-probability.
        channels: 1 or 3.
        levels: number of values a channel can take, 2 to 65536.
        seed: 0 to 2^63 - 1.
        offset: which of the streams of this seed, 0 to 2^63 - 1.

    Returns:
        [batch, channels, height, width] in the dtype of `parameters`, without gradient. NaN where a pixel's logits, or
        the means and log-scales it draws from, are not finite; a logit of minus infinity is a mixture never drawn.

    Raises:
        ValueError: a shape that matches no number of mixtures, or an argument out of range.
        TypeError: a dtype that is not floating.

    Source: Salimans et al., "PixelCNN++" (2017), section 2.1; Salmon et al., "Parallel random numbers: as easy as 1, 2,
    3" (2011).
    """
    _check_parameters(parameters, channels, levels)
    for name, value in (("seed", seed), ("offset", offset)):
        if not 0 <= value < 2**63:
            raise ValueError(f"{name}: expected 0 to 2^63 - 1, got {value}")
    backend = DISCRETIZED_LOGISTIC_MIXTURE_SAMPLE.choose((parameters,), channels, levels)
    parameters = parameters.detach()
    if backend == "reference":
        return discretized_logistic_mixture_sample_reference(
            parameters, channels=channels, levels=levels, seed=seed, offset=offset
        )
    call = DISCRETIZED_LOGISTIC_MIXTURE_SAMPLE.call[backend]["discretized_logistic_mixture_sample"]
    return call(parameters.contiguous(), channels, levels, seed, offset)


def discretized_logistic_mixture_log_prob_reference(x: Tensor, parameters: Tensor, *, levels: int = 256) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    mixture = _split(parameters.to(dtype), x.shape[1])
    value = x.to(dtype).unsqueeze(2)
    means = torch.stack([_mean(mixture, c, value.unbind(1)) for c in range(x.shape[1])], 1)
    bins = log_bin_probability(value, means, mixture.log_scale, levels)
    return torch.logsumexp(torch.log_softmax(mixture.logits, 1) + bins.sum(1), 1).to(x.dtype)


def discretized_logistic_mixture_sample_reference(
    parameters: Tensor, *, channels: int, levels: int = 256, seed: int, offset: int = 0
) -> Tensor:
    batch, _, height, width = parameters.shape
    position = torch.arange(batch * height * width, device=parameters.device).view(batch, 1, height, width)
    pick, *uniforms = philox_uniform(position, seed=seed, offset=offset)
    mixture = _split(parameters.detach().double(), channels)
    running = (mixture.logits - mixture.logits.amax(1, keepdim=True)).exp().cumsum(1)
    total = running[:, -1:]
    index = (running <= pick * total).sum(1, keepdim=True).clamp(max=running.shape[1] - 1)
    picked = _Mixture(mixture.logits, *(_gather(part, index) for part in mixture[1:]))
    x: list[Tensor] = []
    for c in range(channels):
        u = uniforms[c].clamp(UNIFORM_CLIP, 1 - UNIFORM_CLIP)
        noise = picked.log_scale[:, c].exp() * (u.log() - torch.log1p(-u))
        x.append(_nearest_level(_mean(picked, c, x) + noise, levels))
    return torch.where(total.isfinite(), torch.cat(x, 1), torch.nan).to(parameters.dtype)


class _Mixture(NamedTuple):
    """Parameters by meaning: logits [B, M, H, W], the others [B, C, M, H, W]; one channel has no coefficients.

    Log-scales are clamped, coefficients are in (-1, 1).
    """

    logits: Tensor
    mean: Tensor
    log_scale: Tensor
    coefficient: Tensor


def _split(parameters: Tensor, channels: int) -> _Mixture:
    kinds = _kinds(channels)
    mixtures = parameters.shape[1] // (1 + channels * kinds)
    logits, rest = parameters.split([mixtures, channels * kinds * mixtures], 1)
    mean, log_scale, *coefficient = rest.unflatten(1, (channels, kinds, mixtures)).unbind(2)
    return _Mixture(
        logits, mean, log_scale.clamp(min=MIN_LOG_SCALE), coefficient[0].tanh() if coefficient else mean[:, :0]
    )


def _kinds(channels: int) -> int:
    """Planes of a mixture for each channel: mean, log-scale and, with colours, a coefficient."""
    return 3 if channels == 3 else 2


def _mean(mixture: _Mixture, channel: int, x: Sequence[Tensor]) -> Tensor:
    """The mean of a channel given those before it, [B, 1, H, W] each (equation 3)."""
    mean, coefficient = mixture.mean[:, channel], mixture.coefficient
    if channel == 1:
        return mean + coefficient[:, 0] * x[0]
    if channel == 2:
        return mean + coefficient[:, 1] * x[0] + coefficient[:, 2] * x[1]
    return mean


def _gather(part: Tensor, index: Tensor) -> Tensor:
    """From [B, C, M, H, W] the mixture of index [B, 1, H, W], [B, C, 1, H, W]."""
    return part.gather(2, index.unsqueeze(1).expand(-1, part.shape[1], -1, -1, -1))


def _nearest_level(x: Tensor, levels: int) -> Tensor:
    level = torch.floor((x.clamp(-1, 1) + 1) * ((levels - 1) / 2) + 0.5)
    return torch.where(x.isfinite(), level * (2 / (levels - 1)) - 1, torch.nan)


def _check_parameters(parameters: Tensor, channels: int, levels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels: expected 1 or 3, got {channels}")
    check_floating("parameters", parameters)
    planes = 1 + channels * _kinds(channels)
    if parameters.dim() != 4 or parameters.shape[1] == 0 or parameters.shape[1] % planes:
        raise ValueError(
            f"parameters: expected [batch, {planes} * mixtures, height, width] for channels={channels}, "
            f"got {tuple(parameters.shape)}"
        )
    check_levels(levels)


def _check(x: Tensor, parameters: Tensor, levels: int) -> None:
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"x: expected [batch, 1 or 3, height, width], got {tuple(x.shape)}")
    _check_parameters(parameters, x.shape[1], levels)
    check_same_type("x", x, parameters)
    if x.shape[0] != parameters.shape[0] or x.shape[2:] != parameters.shape[2:]:
        raise ValueError(
            f"x: expected the batch, height and width of parameters {tuple(parameters.shape)}, got {tuple(x.shape)}"
        )


def _log_prob(x: Tensor, parameters: Tensor, levels: int, backend: str) -> Tensor:
    call = DISCRETIZED_LOGISTIC_MIXTURE_LOG_PROB.call[backend]["discretized_logistic_mixture_log_prob"]
    return call(x.contiguous(), parameters.contiguous(), levels)


def _gradient(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    (x, parameters), (levels, backend) = ctx.saved_tensors, ctx.settings
    call = DISCRETIZED_LOGISTIC_MIXTURE_LOG_PROB.call[backend]["discretized_logistic_mixture_log_prob_backward"]
    return call(grad.contiguous(), x.contiguous(), parameters.contiguous(), levels)


_differentiable_log_prob = differentiable(
    _log_prob, _gradient, discretized_logistic_mixture_log_prob_reference, inputs=2, settings=("levels",)
)


def _fake_log_prob(x: Tensor, parameters: Tensor, levels: int) -> Tensor:
    return x.new_empty((x.shape[0], *x.shape[2:]))


def _fake_sample(parameters: Tensor, channels: int, levels: int, seed: int, offset: int) -> Tensor:
    return parameters.new_empty((parameters.shape[0], channels, *parameters.shape[2:]))


def _log_prob_supports_cpp(x: Tensor, parameters: Tensor, levels: int) -> str:
    return _sample_supports_cpp(parameters, x.shape[1], levels)


def _sample_supports_cpp(parameters: Tensor, channels: int, levels: int) -> str:
    mixtures = parameters.shape[1] // (1 + channels * _kinds(channels))
    return "" if mixtures <= MAX_MIXTURES_CPP else f"more than {MAX_MIXTURES_CPP} mixtures"


def _pixels(batch: int, channels: int, height: int, width: int, levels: int) -> Tensor:
    """Pixels of random levels, some of them the lowest and the highest."""
    level = torch.randint(levels, (batch, channels, height, width), dtype=torch.float64)
    level.view(-1)[::5] = 0
    level.view(-1)[1::5] = levels - 1
    return 2 * level / (levels - 1) - 1


def _network_output(batch: int, channels: int, mixtures: int, height: int, width: int, spread: float = 1.0) -> Tensor:
    """Parameters as a network in training gives them: scales about 1/8 around means within reach of the pixels."""
    planes = 1 + channels * _kinds(channels)
    parameters = torch.randn(batch, planes, mixtures, height, width, dtype=torch.float64) * spread
    parameters[:, 2 :: _kinds(channels)] -= 2
    return parameters.flatten(1, 2)


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def sample(name: str, x: Tensor, parameters: Tensor, **kwargs: int) -> Sample:
        return Sample(name, (x.to(device, dtype), parameters.to(device, dtype)), kwargs)

    def usual(
        batch: int, channels: int, mixtures: int, height: int, width: int, levels: int = 256
    ) -> tuple[Tensor, Tensor]:
        return (
            _pixels(batch, channels, height, width, levels),
            _network_output(batch, channels, mixtures, height, width),
        )

    yield sample("colour", *usual(2, 3, 2, 5, 7))
    yield sample("one channel", *usual(2, 1, 3, 5, 7))
    yield sample("one pixel, one mixture", *usual(1, 3, 1, 1, 1))
    yield sample("grey, one pixel, one mixture", *usual(1, 1, 1, 1, 1))
    yield sample("17 levels", *usual(1, 1, 3, 4, 4, 17), levels=17)
    yield sample("2 levels", *usual(1, 3, 1, 3, 3, 2), levels=2)
    yield sample("odd length, two blocks", *usual(1, 3, 1, 7, 19))
    yield sample("empty batch", *usual(0, 3, 2, 4, 4))
    yield sample("empty space", *usual(2, 1, 2, 0, 4))
    x, parameters = usual(2, 3, 2, 6, 5)
    yield sample("transposed", x[:1].transpose(2, 3), parameters[:1].transpose(2, 3))
    yield sample("channels last", *(t.to(memory_format=torch.channels_last) for t in (x, parameters)))
    yield sample("expanded", x[:1, :, :1, :1].expand(2, 3, 4, 5), parameters[:1, :, :1, :1].expand(2, 20, 4, 5))
    x, parameters = usual(1, 3, 2, 8, 16)
    yield sample("extreme spread", x, parameters * 4)
    by_kind = parameters.view(1, 10, 2, 8, 16)
    by_kind[:, 2::3] = torch.linspace(-9, 6, 128, dtype=torch.float64).view(8, 16)
    yield sample("extreme scales", x, parameters.clone())
    by_kind[:, 1::3] *= 1000
    yield sample("extreme scales, far away", x, parameters)


def _drawn(drawing: Drawing) -> Sample:
    channels, mixtures = drawing.choice((1, 3)), drawing.size(12, 1)
    batch, height, width = drawing.shape(3, max(1, 600 // mixtures))
    levels = drawing.choice((2, 17, 256, 256, 65536))
    parameters = _network_output(batch, channels, mixtures, height, width, drawing.choice((0.0, 1.0, 1.0, 4.0, 30.0)))
    x = _pixels(batch, channels, height, width, levels).to(drawing.device, drawing.dtype)
    return Sample("drawn", (x, parameters.to(drawing.device, drawing.dtype)), {"levels": levels})


def _draw_drawn(drawing: Drawing) -> Sample:
    (x, parameters), levels = _drawn(drawing).args, drawing.choice((2, 17, 256))
    seed, offset = drawing.random.randrange(2**62), 4 * drawing.random.randrange(2**40)
    return Sample("drawn", (parameters,), {"channels": x.shape[1], "levels": levels, "seed": seed, "offset": offset})


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for batch, channels, size in ((16, 3, 32), (64, 1, 28), (16, 3, 64)):
        x = _pixels(batch, channels, size, size, 256).to(device, dtype)
        parameters = _network_output(batch, channels, 10, size, size).to(device, dtype)
        yield Sample(f"{batch}x{channels}x{size}x{size}, 10 mixtures", (x, parameters))


def _draw_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    seed = 2**40 + 7
    for name, (x, parameters), kwargs in _samples(device, dtype):
        yield Sample(name, (parameters,), {"channels": x.shape[1], "seed": seed, "offset": 2**33 + 1, **kwargs})


def _draw_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (x, parameters), _ in _cases(device, dtype):
        yield Sample(name, (parameters,), {"channels": x.shape[1], "seed": 0})


def _cost(pass_: str, x: Tensor, parameters: Tensor, *, levels: int = 256) -> Cost:
    pixels = x.numel() // x.shape[1]
    read, written = x.numel() + parameters.numel(), pixels
    # Backward reads the inputs and the output's gradient and writes the inputs' gradients.
    backward = 2 * read + pixels if pass_ == "forward_backward" else 0
    flops = parameters.numel() * (160 if pass_ == "forward_backward" else 60)
    return Cost(bytes=(read + written + backward) * x.element_size(), flops=flops)


def _draw_cost(pass_: str, parameters: Tensor, *, channels: int, **kwargs: int) -> Cost:
    drawn = parameters.numel() // parameters.shape[1] * channels
    logits = parameters.numel() // (1 + channels * _kinds(channels))
    return Cost(bytes=(parameters.numel() + drawn) * parameters.element_size(), flops=30 * logits + 150 * drawn)


DISCRETIZED_LOGISTIC_MIXTURE_LOG_PROB = Op(
    "discretized_logistic_mixture_log_prob",
    schema=(
        "discretized_logistic_mixture_log_prob(Tensor x, Tensor parameters, int levels) -> Tensor",
        "discretized_logistic_mixture_log_prob_backward(Tensor grad, Tensor x, Tensor parameters, int levels)"
        " -> (Tensor, Tensor)",
    ),
    fake=(_fake_log_prob, ("x", "parameters")),
    reference=discretized_logistic_mixture_log_prob_reference,
    supports={"triton": always, "cpp": _log_prob_supports_cpp},
    samples=_samples,
    draw=_drawn,
    cases=_cases,
    tolerance={
        torch.float64: Tolerance(2, 5e-14),
        torch.float32: Tolerance(2, 5e-7),
        torch.bfloat16: Tolerance(1, 1e-4),
        torch.float16: Tolerance(1, 1e-5),
    },
    cost=_cost,
)

DISCRETIZED_LOGISTIC_MIXTURE_SAMPLE = Op(
    "discretized_logistic_mixture_sample",
    schema=(
        "discretized_logistic_mixture_sample(Tensor parameters, int channels, int levels, int seed, int offset)"
        " -> Tensor",
    ),
    fake=(_fake_sample,),
    reference=discretized_logistic_mixture_sample_reference,
    supports={"triton": always, "cpp": _sample_supports_cpp},
    samples=_draw_samples,
    draw=_draw_drawn,
    cases=_draw_cases,
    tolerance={
        torch.float64: Tolerance(1, 1e-15),
        torch.float32: Tolerance(1, 1e-7),
        torch.bfloat16: Tolerance(1, 1e-5),
        torch.float16: Tolerance(1, 1e-6),
    },
    cost=_draw_cost,
    grad_order=0,
    passes=("forward",),
    random=True,
)
