"""Normalisation with an activation, or scaled and shifted by a condition: AdaIN, conditional batch norm, SPADE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers, positive, readable, without_effect
from fastgen.ops.norm_modulate import norm_modulate


class NormModulate(nn.Module):
    """`leaky_relu(norm(x) * (1 + scale) + shift)` in one pass, which can be differentiated twice.

    Args:
        num_channels: of the input.
        norm: `"instance"`, `"batch"`, `"layer"` or `"group"`; a batch norm keeps running statistics under the keys of
            `nn.BatchNorm2d`, and uses them in evaluation.
        num_groups: of `"group"`.
        negative_slope: of the leaky ReLU behind it; 1 is none.
        eps: added to the variance.
        momentum: of the running statistics.

    Shape: `x` [batch, num_channels, *spatial]; `scale` and `shift` [num_channels], [batch, num_channels] or that of
        `x`, or None.

    Raises:
        ValueError, TypeError: what `fastgen.ops.norm_modulate` raises.
    """

    @plain_numbers
    def __init__(
        self,
        num_channels: int,
        norm: str = "instance",
        *,
        num_groups: int | None = None,
        negative_slope: float = 1.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        positive(num_channels=num_channels)
        self.num_channels, self.norm, self.num_groups = num_channels, norm, num_groups
        self.negative_slope, self.eps, self.momentum = negative_slope, eps, momentum
        batch = norm == "batch"
        if not batch:
            without_effect(NormModulate.__init__, locals(), f"with norm {norm!r}", "momentum")
        self.register_buffer("running_mean", torch.zeros(num_channels) if batch else None)
        self.register_buffer("running_var", torch.ones(num_channels) if batch else None)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"x: expected [batch, {self.num_channels}, ...], got {tuple(x.shape)}")
        return norm_modulate(
            x,
            scale,
            shift,
            norm=self.norm,
            num_groups=self.num_groups,
            negative_slope=self.negative_slope,
            eps=self.eps,
            running_mean=self.running_mean,
            running_var=self.running_var,
            momentum=self.momentum,
            training=self.training,
        )

    def extra_repr(self) -> str:
        return f"{self.num_channels}, {self.norm!r}, negative_slope={self.negative_slope}"


class AdaptiveInstanceNorm(NormModulate):
    """Instance norm, scaled and shifted by a linear function of a style: AdaIN.

    Args:
        num_channels: of the input.
        style_features: of the style.
        negative_slope, eps: as of `NormModulate`.

    Shape: `x` [batch, num_channels, *spatial] and `style` [batch, style_features].

    Raises:
        ValueError, TypeError: what `NormModulate` raises; sizes that are not positive ints.

    Source: Huang and Belongie (2017), equation 8; Karras et al., "A Style-Based Generator Architecture" (2019),
    equation 1.
    """

    @plain_numbers
    def __init__(
        self, num_channels: int, style_features: int, *, negative_slope: float = 1.0, eps: float = 1e-5
    ) -> None:
        super().__init__(num_channels, negative_slope=negative_slope, eps=eps)
        positive(style_features=style_features)
        self.modulation = nn.Linear(style_features, 2 * num_channels)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, *self.modulation(style).chunk(2, 1))


class ConditionalBatchNorm(NormModulate):
    """Batch norm with a scale and a shift for each class.

    Args:
        num_channels: of the input.
        num_classes: of the labels.
        negative_slope, eps, momentum: as of `NormModulate`.

    Shape: `x` [batch, num_channels, *spatial] and `labels` [batch], integers.

    Raises:
        ValueError: labels of another shape, or (on a CPU) out of range.

    Source: Dumoulin et al., "A Learned Representation for Artistic Style" (2017), equation 5; Miyato and Koyama, "cGANs
    with Projection Discriminator" (2018), section 4.
    """

    @plain_numbers
    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        *,
        negative_slope: float = 1.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_channels, "batch", negative_slope=negative_slope, eps=eps, momentum=momentum)
        positive(num_classes=num_classes)
        self.modulation = nn.Embedding(num_classes, 2 * num_channels)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        if labels.dtype != torch.int64 or labels.shape != x.shape[:1]:
            raise ValueError(f"labels: expected int64 {tuple(x.shape[:1])}, got {labels.dtype} {tuple(labels.shape)}")
        count = self.modulation.num_embeddings
        # Looking at labels on a GPU would wait for it; there the embedding's own check stops the program.
        if labels.is_cpu and readable(labels):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= count:
                raise ValueError(f"labels: expected 0 to {count - 1}, got {low} to {high}")
        return super().forward(x, *self.modulation(labels).chunk(2, 1))


class SPADE(NormModulate):
    """Batch or instance norm, scaled and shifted at each pixel by two convolutions of a label map.

    Args:
        num_channels: of the input.
        label_channels: of the map.
        hidden_channels: of the convolution that both share, with ReLU behind it.
        norm: as of `NormModulate`.
        negative_slope, eps, momentum: as of `NormModulate`.

    Shape: `x` [batch, num_channels, height, width] and `labels` [batch, label_channels, ...], brought to `x`'s size by
        their nearest neighbours.

    Raises:
        ValueError, TypeError: what `NormModulate` raises; sizes that are not positive ints; in `forward`, a map that is
            no batch of images.

    Source: Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization" (2019), figure 2 and
    equations 1 to 3.
    """

    @plain_numbers
    def __init__(
        self,
        num_channels: int,
        label_channels: int,
        hidden_channels: int = 128,
        *,
        norm: str = "batch",
        negative_slope: float = 1.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_channels, norm, negative_slope=negative_slope, eps=eps, momentum=momentum)
        positive(label_channels=label_channels, hidden_channels=hidden_channels)
        self.shared = nn.Conv2d(label_channels, hidden_channels, 3, padding=1)
        self.scale = nn.Conv2d(hidden_channels, num_channels, 3, padding=1)
        self.shift = nn.Conv2d(hidden_channels, num_channels, 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        if x.dim() != 4 or labels.dim() != 4 or labels.shape[0] != x.shape[0]:
            raise ValueError(f"labels: expected [{x.shape[0]}, channels, height, width], got {tuple(labels.shape)}")
        if labels.shape[2:] != x.shape[2:]:
            labels = F.interpolate(labels, size=x.shape[2:])
        shared = F.relu(self.shared(labels))
        return super().forward(x, self.scale(shared), self.shift(shared))


class BatchNormLeakyReLU(NormModulate):
    """`nn.BatchNorm2d` and a leaky ReLU in one pass, which can be differentiated twice; with `nn.BatchNorm2d`'s keys.

    Args:
        channels: of the images.
        negative_slope: 0 is ReLU, 1 no activation.
        eps: added to the variance.
        momentum: how far the running mean and variance move in a training step.

    Shape: [batch, channels, height, width], both ways.

    Raises:
        ValueError, TypeError: what `NormModulate` raises.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1.
    """

    @plain_numbers
    def __init__(self, channels: int, negative_slope: float = 0.0, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, "batch", negative_slope=negative_slope, eps=eps, momentum=momentum)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if self.training:
            self.num_batches_tracked += 1
        return super().forward(x, self.weight - 1, self.bias)
