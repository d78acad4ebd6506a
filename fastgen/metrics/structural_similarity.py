"""Structural similarity of pairs of images, at one scale and at several."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.metrics.metric import MeanMetric
from fastgen.nn.full_precision import full_precision

# Wang et al. (2003), section 3.2.
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_K1, _K2 = 0.01, 0.03


@full_precision
def structural_similarity(x: Tensor, y: Tensor, *, data_range: float = 1.0, sigma: float = 1.5) -> Tensor:
    """The structural similarity (SSIM) of each pair of images:

        SSIM = mean over pixels of (2 m_x m_y + c_1) (2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1) (s_x^2 + s_y^2 + c_2))

    with means m, variances s^2 and covariance s_xy under a Gaussian window of standard deviation `sigma` (images are
    mirrored at their edges), c_1 = (0.01 L)^2 and c_2 = (0.03 L)^2.

    Args:
        x, y: [B, C, H, W], floats.
        data_range: L, the range that values can have.
        sigma: of the window, in pixels; it is 2 round(3.5 sigma) + 1 pixels wide (11 for 1.5).

    Returns:
        [B], at most 1, float32 or float64: half precision is widened. Differentiable.

    Raises:
        ValueError: shapes that differ, images smaller than half the window.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004), equation 13.
    """
    _check_pair(x, y, data_range, sigma)
    return _similarity(*_centred(x, y), float(data_range), float(sigma))[0]


@full_precision
def multiscale_structural_similarity(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float = 1.0,
    sigma: float = 1.5,
    weights: Sequence[float] = WEIGHTS,
) -> Tensor:
    """The multi-scale structural similarity (MS-SSIM) of each pair of images:

        prod_j max(cs_j, 0)^(w_j) max(SSIM_J, 0)^(w_J)

    where cs_j is the mean of SSIM's second factor, over the pixels whose window fits in the image, after j halvings.

    Args:
        x, y: [B, C, H, W], floats, at least as large as the window at the coarsest scale: 161 pixels for the defaults.
        data_range: the range that values can have.
        sigma: of the window.
        weights: w_j, one for each scale.

    Returns:
        [B], from 0 to 1, float32 or float64. Differentiable.

    Raises:
        ValueError: as `structural_similarity`; images too small for that many scales.

    Source: Wang et al., "Multi-Scale Structural Similarity for Image Quality Assessment" (2003), equation 7.
    """
    _check_pair(x, y, data_range, sigma)
    weights = _checked_weights(weights)
    smallest = 2 * _reach(sigma) * 2 ** (len(weights) - 1) + 1
    if min(x.shape[-2:]) < smallest:
        raise ValueError(
            f"x: {len(weights)} scales need images of at least {smallest} pixels a side, got {tuple(x.shape[-2:])}"
        )
    x, y, centre = _centred(x, y)
    product: Tensor | float = 1.0
    for scale, weight in enumerate(weights):
        similarity, contrast = _similarity(x, y, centre, float(data_range), float(sigma))
        factor = similarity if scale == len(weights) - 1 else contrast
        product = product * factor.relu() ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The images in float32 or more about a centre [B, C, 1, 1], and that.

    Far from zero, squares have no digits left for a variance, and means of four pixels none for their difference.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    centre = ((x + y) / 2).detach().mean((2, 3), keepdim=True)
    return x - centre, y - centre, centre


def _similarity(x: Tensor, y: Tensor, centre: Tensor, data_range: float, sigma: float) -> tuple[Tensor, Tensor]:
    """SSIM [B] of images less `centre`, and the mean [B] of its second factor away from the edges."""
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    height, width = x.shape[-2:]
    rows, columns = _blur(height, sigma, x), _blur(width, sigma, x)
    # The window is a product of two vectors: two small matrix products are faster than a convolution of 121 pixels.
    mean_x, mean_y, square_x, square_y, cross = torch.matmul(
        rows, torch.matmul(torch.stack([x, y, x * x, y * y, x * y]), columns.T)
    )
    variances = (square_x - mean_x * mean_x).clamp_min(0) + (square_y - mean_y * mean_y).clamp_min(0)
    contrast = (2 * (cross - mean_x * mean_y) + c2) / (variances + c2)
    squares = (centre + mean_x).square() + (centre + mean_y).square()
    similarity = (1 - (mean_x - mean_y).square() / (squares + c1)) * contrast
    r = _reach(sigma)
    inside = contrast[..., r : height - r, r : width - r]
    return similarity.flatten(1).mean(1), inside.flatten(1).mean(1)


def _reach(sigma: float) -> int:
    """Pixels of the window on each side of its centre."""
    return int(3.5 * sigma + 0.5)


def _blur(size: int, sigma: float, x: Tensor) -> Tensor:
    """The matrix [size, size] that blurs a line of pixels, mirrored at its ends without repeating them; as `x` is."""
    r = _reach(sigma)
    offsets = torch.arange(-r, r + 1, device=x.device)
    window = torch.exp(-((offsets.double() / sigma) ** 2) / 2)
    window = (window / window.sum()).to(x.dtype)
    at = (torch.arange(size, device=x.device)[:, None] + offsets).abs()
    at = torch.where(at >= size, 2 * (size - 1) - at, at)
    return x.new_zeros(size, size).scatter_add_(1, at, window.expand(size, -1).contiguous())


def _check_pair(x: Tensor, y: Tensor, data_range: float, sigma: float) -> None:
    if x.dim() != 4 or x.shape != y.shape or 0 in x.shape[1:]:
        raise ValueError(f"x, y: expected the same shape [B, C, H, W], got {tuple(x.shape)} and {tuple(y.shape)}")
    if not (x.is_floating_point() and x.dtype == y.dtype):
        raise TypeError(f"x, y: expected one floating dtype, got {x.dtype} and {y.dtype}")
    if not data_range > 0:
        raise ValueError(f"data_range: expected a positive number, got {data_range!r}")
    if not sigma > 0:
        raise ValueError(f"sigma: expected a positive number, got {sigma!r}")
    if min(x.shape[-2:]) <= _reach(sigma):
        raise ValueError(
            f"x: a window of sigma {sigma:g} needs more than {_reach(sigma)} pixels a side, got {tuple(x.shape[-2:])}"
        )


def _checked_weights(weights: Sequence[float]) -> tuple[float, ...]:
    weights = tuple(weights)
    if not weights or not all(isinstance(w, Real) and not isinstance(w, bool) for w in weights):
        raise ValueError(f"weights: expected a number for each scale, got {weights!r}")
    return tuple(float(w) for w in weights)


class StructuralSimilarity(MeanMetric):
    """The mean `structural_similarity` of pairs of images; the higher the better.

    Args:
        data_range: the range that values can have.
        sigma: of the window, in pixels.
        kwargs: torchmetrics' own.

    Raises:
        ValueError: on computing, no pair of images.

    Source: as `structural_similarity`.
    """

    is_differentiable = True
    higher_is_better = True
    counted = "pair of images"

    def __init__(self, *, data_range: float = 1.0, sigma: float = 1.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_range, self.sigma = float(data_range), float(sigma)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in pairs of images [B, C, H, W].

        Raises:
            TypeError, ValueError: as `structural_similarity`.
        """
        self.add(self._of(preds, target))

    def _of(self, preds: Tensor, target: Tensor) -> Tensor:
        return structural_similarity(preds, target, data_range=self.data_range, sigma=self.sigma)


class MultiscaleStructuralSimilarity(StructuralSimilarity):
    """The mean `multiscale_structural_similarity` of pairs of images; the higher the better.

    Of pairs of samples of one class it measures diversity, the lower the better (Odena et al., 2017, section 4.2).

    Args:
        weights: one for each scale.
        kwargs: as for `StructuralSimilarity`.

    Raises:
        ValueError: `weights` are no numbers; on computing, no pair of images.

    Source: as `multiscale_structural_similarity`.
    """

    def __init__(self, *, weights: Sequence[float] = WEIGHTS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weights = _checked_weights(weights)

    def _of(self, preds: Tensor, target: Tensor) -> Tensor:
        return multiscale_structural_similarity(
            preds, target, data_range=self.data_range, sigma=self.sigma, weights=self.weights
        )
