"""The piecewise linear and quadratic splines of neural importance sampling, elementwise.

On a GPU the reference runs: rational quadratic splines have taken their place, and have the Triton kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad, softplus

from fastgen.ops.checks import check_floating_on
from fastgen.ops.drawing import Drawing
from fastgen.ops.registry import Cost, Op, Sample, Tolerance
from fastgen.ops.spline import check_domain, common_dtype, recorded_elementwise, supports_bins

# The least density at a knot, before all are scaled to an integral of one.
MIN_DENSITY = 1e-3


def linear_spline(
    inputs: Tensor,
    unnormalized_pdf: Tensor,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Map every number through a cumulative distribution of its own, of K equally wide bins with constant densities.

    On the unit square, to which [-B, B]^2 is scaled, with `p = softmax(unnormalized_pdf)` and k the bin of x,

        y = p_0 + ... + p_{k-1} + (K x - k) p_k,    log |dy/dx| = log(K p_k)

    Args:
        inputs: [...]; x, or y where `inverse`.
        unnormalized_pdf: [..., K].
        inverse: map y to x.
        tails: what happens beyond [-B, B]: "linear", the identity; None, nothing is defined there.
        tail_bound: B.

    Returns:
        The outputs [...] and log |d output / d input| [...], both in the dtype of `inputs` (promoted with the
        parameters').

    Raises:
        ValueError: shapes that do not match, unknown tails; without tails, inputs beyond [-B, B], where they can be
            seen without waiting for a device: on a CPU outside torch.compile. Elsewhere such inputs give NaN.
        TypeError: a dtype that is not floating, or tensors on different devices.

    Gradients of every order; the first is one kernel that saves nothing beyond its inputs. NaN in an input, or in a
    parameter that its bin needs, gives NaN.

    Source: Mueller et al., "Neural Importance Sampling" (2019), section 4.1 and appendix A.
    """
    _check(inputs, tails, tail_bound, unnormalized_pdf=unnormalized_pdf)
    _check_bins("unnormalized_pdf", inputs, unnormalized_pdf)
    check_domain("inputs", inputs, tails, tail_bound)
    dtype = common_dtype(inputs, unnormalized_pdf)
    tensors = inputs.to(dtype), unnormalized_pdf.to(dtype)
    backend = LINEAR_SPLINE.choose(tensors)
    if backend == "reference":
        return linear_spline_reference(*tensors, inverse, tails, tail_bound)
    return _linear_spline(*tensors, (inverse, tails is not None, float(tail_bound)), backend)


def quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Map every number through a cumulative distribution of its own, whose density is linear in each of K bins.

    On the unit square, to which [-B, B]^2 is scaled, the bin that starts at x_k has width w and the densities h_k and
    h_{k+1} at its ends. With theta = (x - x_k) / w,

        y = y_k + w (h_k theta + (h_{k+1} - h_k) theta^2 / 2),    dy/dx = (1 - theta) h_k + theta h_{k+1}

    Widths are `min_bin_width + (1 - K min_bin_width) softmax(unnormalized_widths)`. Densities are
    `softplus(unnormalized_heights) + 1e-3`, scaled to an integral of one and mixed with a uniform share of
    `min_bin_height`. The inverse solves the quadratic by a discriminant that is a sum of non-negative terms, which is
    also the slope's square.

    Args:
        inputs: [...]; x, or y where `inverse`.
        unnormalized_widths: [..., K].
        unnormalized_heights: [..., K - 1] for linear tails, where both ends get a density near that of the tails, as
            nflows' do; [..., K + 1] without.
        inverse: map y to x.
        tails: what happens beyond [-B, B]: "linear", the identity; None, nothing is defined there.
        tail_bound: B.
        min_bin_width: the least width, as a share of the interval; below 1 / K.
        min_bin_height: the least density; below 1.

    Returns:
        The outputs [...] and log |d output / d input| [...], both in the dtype of `inputs` (promoted with the
        parameters').

    Raises:
        ValueError: shapes that do not match, unknown tails, minima out of range; without tails, inputs beyond [-B, B]
            as for `linear_spline`.
        TypeError: a dtype that is not floating, or tensors on different devices.

    Gradients of every order; the first is one kernel that saves nothing beyond its inputs. NaN in an input, or in a
    parameter that its bin needs, gives NaN.

    Source: Mueller et al., "Neural Importance Sampling" (2019), section 4.2 and appendix B.
    """
    _check(
        inputs, tails, tail_bound, unnormalized_widths=unnormalized_widths, unnormalized_heights=unnormalized_heights
    )
    bins = _check_bins("unnormalized_widths", inputs, unnormalized_widths)
    if tails and bins < 2:
        raise ValueError(f"unnormalized_widths: expected two bins or more with linear tails, got {bins}")
    densities = (*inputs.shape, bins - 1 if tails else bins + 1)
    if unnormalized_heights.shape != densities:
        raise ValueError(
            f"unnormalized_heights: expected {densities} for {bins} bins and tails={tails!r}, "
            f"got {tuple(unnormalized_heights.shape)}"
        )
    if not 0 <= min_bin_width * bins < 1:
        raise ValueError(f"min_bin_width: expected a number in [0, 1 / {bins}) for {bins} bins, got {min_bin_width}")
    if not 0 <= min_bin_height < 1:
        raise ValueError(f"min_bin_height: expected a number in [0, 1), got {min_bin_height}")
    check_domain("inputs", inputs, tails, tail_bound)
    dtype = common_dtype(inputs, unnormalized_widths, unnormalized_heights)
    tensors = inputs.to(dtype), unnormalized_widths.to(dtype), unnormalized_heights.to(dtype)
    backend = QUADRATIC_SPLINE.choose(tensors)
    if backend == "reference":
        return quadratic_spline_reference(*tensors, inverse, tails, tail_bound, min_bin_width, min_bin_height)
    numbers = float(tail_bound), float(min_bin_width), float(min_bin_height)
    return _quadratic_spline(*tensors, (inverse, tails is not None, *numbers), backend)


def linear_spline_reference(
    inputs: Tensor,
    unnormalized_pdf: Tensor,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
) -> tuple[Tensor, Tensor]:
    given = common_dtype(inputs, unnormalized_pdf)
    dtype = torch.promote_types(given, torch.float32)
    bins = unnormalized_pdf.shape[-1]
    turned, position = _position(inputs.to(dtype), tail_bound)
    log_mass = _turn(log_softmax(unnormalized_pdf.to(dtype), -1), turned)
    mass = log_mass.exp()
    bottom = _starts(mass)
    if inverse:
        index = _bin_of(position, bottom, turned)
        # An end of the interval lies in the outermost bin, even where that bin has no mass.
        size = _at(mass, index).clamp(min=1e-30)
        result = (index.squeeze(-1) + _unit((position - _at(bottom, index)) / size)) / bins
    else:
        at = position.detach() * bins
        index = torch.where(turned, at.ceil() - 1, at).clamp(0, bins - 1).nan_to_num().long().unsqueeze(-1)
        result = _at(bottom, index) + (position * bins - index.squeeze(-1)) * _at(mass, index)
    logabsdet = _at(log_mass, index) + math.log(bins) + 0 * position
    result, logabsdet = _with_tails(inputs, result, -logabsdet if inverse else logabsdet, tails, tail_bound)
    return result.to(given), logabsdet.to(given)


def quadratic_spline_reference(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    given = common_dtype(inputs, unnormalized_widths, unnormalized_heights)
    dtype = torch.promote_types(given, torch.float32)
    share = 1 - min_bin_width * unnormalized_widths.shape[-1]
    widths = min_bin_width + share * torch.softmax(unnormalized_widths.to(dtype), -1)
    # Above torch's own threshold of 20 the identity is off by 2e-9.
    densities = softplus(unnormalized_heights.to(dtype), threshold=40) + MIN_DENSITY
    if tails:
        # With halves of the outer bins' areas the density at both ends would be 1. nflows takes quarters, and the
        # numbers here are nflows'.
        areas = _areas(widths, pad(densities, (1, 1)))
        inner = areas[..., 1:-1].sum(-1, keepdim=True) + (areas[..., :1] + areas[..., -1:]) / 2
        end = inner / (1 - (widths[..., :1] + widths[..., -1:]) / 4)
        densities = torch.cat([end, densities, end], -1)
    densities = densities / _areas(widths, densities).sum(-1, keepdim=True)
    densities = min_bin_height + (1 - min_bin_height) * densities

    turned, position = _position(inputs.to(dtype), tail_bound)
    widths, densities = _turn(widths, turned), _turn(densities, turned)
    areas = _areas(widths, densities)
    left, bottom = _starts(widths), _starts(areas)
    index = _bin_of(position, bottom if inverse else left, turned)
    left, bottom, width, area = (_at(t, index) for t in (left, bottom, widths, areas))
    h0, h1 = _at(densities, index), _at(densities, index + 1)
    if inverse:
        eta = _unit((position - bottom) / area)
        slope = torch.sqrt((1 - eta) * h0**2 + eta * h1**2)
        result = left + width * (eta * (h0 + h1) / (h0 + slope))
    else:
        theta = _unit((position - left) / width)
        slope = (1 - theta) * h0 + theta * h1
        result = bottom + width * theta * (h0 + slope) / 2
    logabsdet = torch.log(slope)
    result, logabsdet = _with_tails(inputs, result, -logabsdet if inverse else logabsdet, tails, tail_bound)
    return result.to(given), logabsdet.to(given)


def _areas(widths: Tensor, densities: Tensor) -> Tensor:
    return widths * (densities[..., :-1] + densities[..., 1:]) / 2


def _starts(sizes: Tensor) -> Tensor:
    """Where each bin starts, from zero."""
    return pad(sizes[..., :-1].cumsum(-1), (1, 0))


def _position(x: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Whether x lies in the right half, and its distance from the nearer end as a share of the interval.

    Elements of the right half are turned around, and their bins counted from the right, so that no digits are lost near
    either end.
    """
    turned = x > 0
    return turned, (bound - torch.where(turned, x, -x).clamp(max=bound)) / (2 * bound)


def _turn(values: Tensor, turned: Tensor) -> Tensor:
    return torch.where(turned.unsqueeze(-1), values.flip(-1), values)


def _bin_of(position: Tensor, starts: Tensor, turned: Tensor) -> Tensor:
    """The bin of each position, counted from its nearer end; a knot belongs to the bin at its right."""
    position, starts, turned = position.unsqueeze(-1), starts[..., 1:], turned.unsqueeze(-1)
    return torch.where(turned, position > starts, position >= starts).sum(-1, keepdim=True)


def _at(t: Tensor, index: Tensor) -> Tensor:
    return t.gather(-1, index).squeeze(-1)


def _unit(ratio: Tensor) -> Tensor:
    """Clamp to [0, 1] against rounding, with the gradient of a number inside."""
    return ratio + (ratio.clamp(0, 1) - ratio).detach()


def _with_tails(x: Tensor, result: Tensor, logabsdet: Tensor, tails: str | None, bound: float) -> tuple[Tensor, Tensor]:
    # A NaN counts as inside and stays NaN. Nothing is defined beyond a spline without tails.
    outside = x.abs() > bound
    result = (2 * _unit(result) - 1) * bound
    result = torch.where(x > 0, -result, result)
    result = torch.where(outside, x.to(result.dtype) if tails else torch.nan, result)
    return result, torch.where(outside, 0.0 if tails else torch.nan, logabsdet)


def _check(inputs: Tensor, tails: str | None, tail_bound: float, **parameters: Tensor) -> None:
    for name, tensor in {"inputs": inputs, **parameters}.items():
        check_floating_on(name, tensor, inputs)
    if tails not in ("linear", None):
        raise ValueError(f"tails: expected 'linear' or None, got {tails!r}")
    if not 0 < tail_bound < math.inf:
        raise ValueError(f"tail_bound: expected a positive number, got {tail_bound}")


def _check_bins(name: str, inputs: Tensor, parameter: Tensor) -> int:
    """Check that a parameter has a row for each input, and return its number of bins."""
    if parameter.dim() != inputs.dim() + 1 or parameter.shape[:-1] != inputs.shape or not parameter.shape[-1]:
        raise ValueError(f"{name}: expected {(*inputs.shape, 'bins')}, got {tuple(parameter.shape)}")
    return parameter.shape[-1]


def _fake_linear_backward(grad, grad_logabsdet, x: Tensor, pdf: Tensor, *settings) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.numel(), pdf.shape[1]))


def _fake_quadratic_backward(
    grad, grad_logabsdet, x: Tensor, widths: Tensor, heights: Tensor, *settings
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.numel(), widths.shape[1] + heights.shape[1]))


def _draw(shape: tuple[int, ...], tails: str | None, *sizes: int) -> tuple[Tensor, ...]:
    """Inputs, a sixth of them in the tails where there are any, and parameters."""
    x = (torch.rand(*shape, dtype=torch.float64) * 2 - 1) * (1.2 if tails else 1.0)
    return x, *(torch.randn(*shape, size, dtype=torch.float64) / 2 for size in sizes)


def _samples_of(device: str, dtype: torch.dtype, quadratic: bool) -> Iterator[Sample]:
    for bins, shape in ((8, (5, 7)), (2, (17,)), (11, (3, 13)), (64, (3,)), (4, (0, 4)), (3, (2, 2, 3))):
        for tails in ("linear", None):
            if quadratic and tails and bins == 2:
                # Scaling to an integral of one removes the only density: its gradient is zero, and no error can be
                # relative to it.
                continue
            sizes = (bins, bins - 1 if tails else bins + 1) if quadratic else (bins,)
            tensors = tuple(t.to(device, dtype) for t in _draw(shape, tails, *sizes))
            for inverse in (False, True):
                name = f"{bins} bins, tails={tails}{', inverse' * inverse}"
                yield Sample(name, tensors, {"tails": tails, "inverse": inverse})
    wide = tuple(t.to(device, dtype) for t in _draw((6, 5), "linear", *((4, 3) if quadratic else (4,))))
    yield Sample("transposed, wide", tuple(t.transpose(0, 1) for t in wide), {"tail_bound": 2.5})
    edges = torch.tensor([1.0, -1.0, 0.0, 0.5, 100.0, -100.0], dtype=torch.float64).repeat(5, 1).t()
    yield Sample("extreme inputs", (edges.to(device, dtype), *wide[1:]))


def _drawn(drawing: Drawing, quadratic: bool) -> Sample:
    bins, tails = drawing.choice((1, 2, 3, 4, 8, 8, 10, 16, 33, 64)), drawing.choice(("linear", None))
    kwargs = {"tails": tails, "inverse": drawing.chance(0.5), "tail_bound": drawing.number(0.1, 10)}
    shape = drawing.shape(drawing.random.randint(1, 3), max(1, 3000 // bins))
    bound = kwargs["tail_bound"] * (1.2 if tails else 1.0)
    x = drawing.uniform(*shape, low=-bound, high=bound).clamp(-bound, bound)
    # Not zero: a straight line has a log-derivative of zero, to which no error can be relative.
    spread = drawing.choice((1e-3, 0.5, 1.0, 3.0, 6.0))
    sizes = (bins, bins - 1 if tails else bins + 1) if quadratic else (bins,)
    return Sample("drawn", (x, *(drawing.normal(*shape, size) * spread for size in sizes)), kwargs)


def linear_drawn(drawing: Drawing) -> Sample:
    return _drawn(drawing, False)


def quadratic_drawn(drawing: Drawing) -> Sample:
    return _drawn(drawing, True)


def linear_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    return _samples_of(device, dtype, False)


def quadratic_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    return _samples_of(device, dtype, True)


def linear_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    yield Sample("4096x32, 8 bins", tuple(t.to(device, dtype) for t in _draw((4096, 32), "linear", 8)))


def quadratic_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    yield Sample("4096x32, 8 bins", tuple(t.to(device, dtype) for t in _draw((4096, 32), "linear", 8, 7)))


def _cost(pass_: str, inputs: Tensor, *parameters: Tensor, **options: object) -> Cost:
    read = inputs.numel() + sum(p.numel() for p in parameters if isinstance(p, Tensor))
    written = 2 * inputs.numel()
    # Backward reads the inputs and the outputs' gradients and writes the inputs' gradients.
    backward = 2 * read + written if pass_.endswith("_backward") else 0
    return Cost((read + written + backward) * inputs.element_size(), flops=10 * read * (3 if backward else 1))


# As for the rational-quadratic spline, a few elements beside a knot make most of an L2 error.
_TOLERANCE = {torch.float64: Tolerance(3, 1e-12), torch.float32: Tolerance(3, 1e-5)}
_PASSES = ("forward", "inverse", "forward_backward", "inverse_backward")
_CPU_DTYPES = (torch.float32, torch.float64)

LINEAR_SPLINE = Op(
    "linear_spline",
    schema=(
        "linear_spline(Tensor x, Tensor pdf, bool inverse, bool tails, float tail_bound) -> (Tensor, Tensor)",
        "linear_spline_backward(Tensor? grad, Tensor? grad_logabsdet, Tensor x, Tensor pdf, bool inverse, bool tails, "
        "float tail_bound) -> (Tensor, Tensor)",
    ),
    fake=(("x", "x"), _fake_linear_backward),
    reference=linear_spline_reference,
    supports={"cpp": supports_bins},
    dtypes={"cpp": _CPU_DTYPES},
    samples=linear_samples,
    draw=linear_drawn,
    cases=linear_cases,
    tolerance=_TOLERANCE,
    cost=_cost,
    passes=_PASSES,
)

_QUADRATIC = (
    "Tensor x, Tensor widths, Tensor heights, bool inverse, bool tails, float tail_bound, float min_bin_width, "
    "float min_bin_height) -> (Tensor, Tensor)"
)
QUADRATIC_SPLINE = Op(
    "quadratic_spline",
    schema=(
        f"quadratic_spline({_QUADRATIC}",
        f"quadratic_spline_backward(Tensor? grad, Tensor? grad_logabsdet, {_QUADRATIC}",
    ),
    fake=(("x", "x"), _fake_quadratic_backward),
    reference=quadratic_spline_reference,
    supports={"cpp": supports_bins},
    dtypes={"cpp": _CPU_DTYPES},
    samples=quadratic_samples,
    draw=quadratic_drawn,
    cases=quadratic_cases,
    tolerance=_TOLERANCE,
    cost=_cost,
    passes=_PASSES,
)

# The kernels take `tails` as whether there are any, which is all that the references ask.
_linear_spline = recorded_elementwise(LINEAR_SPLINE, linear_spline_reference, ("inverse", "tails", "tail_bound"))
_quadratic_spline = recorded_elementwise(
    QUADRATIC_SPLINE,
    quadratic_spline_reference,
    ("inverse", "tails", "tail_bound", "min_bin_width", "min_bin_height"),
)
