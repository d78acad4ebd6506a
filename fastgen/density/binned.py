"""A Gaussian kernel density estimate on a grid, by linear binning and the Fourier transform."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Cells per bandwidth, reach of the grid beyond the points in bandwidths, and the most cells that it may have.
_RESOLUTION, _MARGIN, _MOST_CELLS = 32, 6.0, 2**24


def grid_log_density(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The log-density at the nodes [G_1 ... G_d] of a grid, and its origin [d]; of points [N, d] in bandwidths.

    Each point is shared by the corners of its cell, which adds `D^2 / 6` to the variance, D the side of a cell; the
    kernel is made narrower by that much. Nodes below 1e-6 of the highest are NaN, for
    the transform rounds by about as much.

    Args:
        weights: [N], summing to one.

    Raises:
        ValueError: the points reach so far that the grid would have too many cells.

    Source: Silverman, "Algorithm AS 176: kernel density estimation using the fast Fourier transform" (1982); Wand,
    "Fast computation of multivariate kernel estimators" (1994), for the binning.
    """
    d = points.shape[1]
    low = points.amin(0) - _MARGIN
    spans = ((points.amax(0) + _MARGIN - low) * _RESOLUTION).tolist()
    if math.prod(span + 2 for span in spans) > _MOST_CELLS:
        raise ValueError(
            "method: 'fft' needs a grid of "
            f"{' x '.join(f'{span:.3g}' for span in spans)} cells, more than {_MOST_CELLS}: the points reach too far "
            "for this bandwidth, expected method='direct'"
        )
    shape = [math.ceil(span) + 2 for span in spans]
    counts = _bin(points, weights, low, shape)
    side = 1 / _RESOLUTION
    variance = 1 - side**2 / 6
    # The transform is periodic: padding by twice the kernel's reach keeps the ends from overlapping.
    padded = [size + math.ceil(2 * _MARGIN * _RESOLUTION) for size in shape]
    spectrum = torch.fft.rfftn(counts, s=padded)
    for axis in range(d):
        frequency = (torch.fft.rfftfreq if axis == d - 1 else torch.fft.fftfreq)(
            padded[axis], d=side, dtype=points.dtype, device=points.device
        )
        # The transform of the normal density.
        factor = (-2 * math.pi**2 * variance * frequency.square()).exp()
        spectrum = spectrum * factor.view([-1 if a == axis else 1 for a in range(d)])
    density = torch.fft.irfftn(spectrum, s=padded)[tuple(map(slice, shape))] * _RESOLUTION**d
    log_density = density.clamp(min=torch.finfo(density.dtype).tiny).log()
    return torch.where(density >= 1e-6 * density.max(), log_density, math.nan), low


def interpolate(grid: Tensor, low: Tensor, x: Tensor) -> Tensor:
    """The log-density at points [M, d], linear within each cell; NaN outside the grid and where a corner is NaN."""
    place = (x - low) * _RESOLUTION
    sizes = torch.tensor(grid.shape, device=x.device)
    inside = ((place >= 0) & (place < sizes - 1)).all(1)
    place = torch.where(inside[:, None], place, 0)
    log_density = 0
    for corner, share in _corners(place):
        log_density = log_density + share * grid[tuple(corner.T)]
    return torch.where(inside, log_density, math.nan)


def _bin(points: Tensor, weights: Tensor, low: Tensor, shape: list[int]) -> Tensor:
    strides = torch.tensor([math.prod(shape[axis + 1 :]) for axis in range(len(shape))], device=points.device)
    counts = points.new_zeros(math.prod(shape))
    for corner, share in _corners((points - low) * _RESOLUTION):
        counts.index_add_(0, (corner * strides).sum(1), share * weights)
    return counts.view(shape)


def _corners(place: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each corner of the cells that places [n, d] are in: the node [n, d], and the share [n] of the place in it."""
    below = place.detach().floor()
    beyond = place - below
    for corner in itertools.product((0, 1), repeat=place.shape[1]):
        step = torch.tensor(corner, device=place.device)
        yield below.long() + step, torch.where(step == 1, beyond, 1 - beyond).prod(1)
