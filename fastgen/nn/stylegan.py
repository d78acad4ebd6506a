"""Layers of StyleGAN 2: equalised learning rates, modulated convolutions, noise, resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import odd, plain_numbers, positive
from fastgen.nn.module_state import Constants
from fastgen.ops.bias_act import bias_act
from fastgen.ops.modulated_conv2d import modulated_conv2d
from fastgen.ops.upfirdn2d import setup_filter, upfirdn2d

# The binomial filter of every resampling; Karras et al. (2019), appendix C.
TAPS = (1.0, 3.0, 3.0, 1.0)


class EqualizedLinear(nn.Module):
    """`act(W x / sqrt(in_features) + b)`, scaled to keep the variance.

    Args:
        in_features, out_features: sizes.
        act: one of `bias_act`'s activations.
        bias: what the bias starts from.
        lr_multiplier: of the learning rate of weight and bias.

    Shape: [batch, in_features] to [batch, out_features].

    Raises:
        ValueError: sizes that are not positive ints; in `forward`, an unknown activation.

    Source: Karras et al., "Progressive Growing of GANs" (2018), section 4.1.
    """

    @plain_numbers
    def __init__(
        self, in_features: int, out_features: int, act: str = "linear", *, bias: float = 0.0, lr_multiplier: float = 1.0
    ) -> None:
        super().__init__()
        positive(in_features=in_features, out_features=out_features)
        self.act, self.lr_multiplier = act, lr_multiplier
        # What the weight is multiplied by where it is used.
        self.scale = lr_multiplier / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias / lr_multiplier))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight * self.scale, self.bias * self.lr_multiplier
        if self.act == "linear":
            return F.linear(x, weight, bias)
        return bias_act(F.linear(x, weight), bias.to(x.dtype), act=self.act)


class EqualizedConv2d(Constants):
    """A convolution scaled by the root of its fan-in, with bias and activation; halves the image where asked to.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd; the image keeps its size.
        act: one of `bias_act`'s activations.
        down: 2 filters and halves the image, 1 leaves it.
        bias: whether there is any.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height / down, width / down].

    Raises:
        ValueError: channels that are not positive ints, an even kernel, another `down`; in `forward`, an unknown
            activation.

    Source: Karras et al. (2018), section 4.1; Karras et al., "A Style-Based Generator Architecture" (2019), appendix C,
    for the filter.
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        act: str = "lrelu",
        *,
        down: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, out_channels=out_channels)
        odd("kernel_size", kernel_size)
        if down not in (1, 2):
            raise ValueError(f"down: expected 1 or 2, got {down!r}")
        self.act, self.down, self.kernel_size = act, down, kernel_size
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self._register_constants()

    def _constants(self) -> dict[str, Tensor | None]:
        return {"taps": setup_filter(TAPS) if self.down > 1 else None}

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """`gain` is a factor on the result, which costs nothing where there is an activation."""
        factor = self.scale
        if self.act == "linear" and self.bias is None:
            factor, gain = factor * gain, 1.0
        weight, pad = self.weight * factor, self.kernel_size // 2
        if self.down == 2 and self.kernel_size == 1:
            x, stride = upfirdn2d(x, self.taps, down=2, padding=1), 1
        elif self.down == 2:
            # The filter first: the convolution then makes only the pixels that stay.
            x, stride, pad = upfirdn2d(x, self.taps, padding=pad + 1), 2, 0
        else:
            stride = 1
        h = F.conv2d(x, weight, stride=stride, padding=pad)
        if self.act == "linear" and self.bias is None:
            return h
        usual = math.sqrt(2) if self.act in ("lrelu", "relu", "swish") else 1.0
        return bias_act(h, self.bias, act=self.act, gain=usual * gain)


class ModulatedConv2d(Constants):
    """A convolution whose weight each sample's style scales, of an image that keeps its size or becomes `up` times
    larger.

    Args:
        in_channels, out_channels, kernel_size: as of `nn.Conv2d`; the kernel is odd.
        demodulate: whether each output channel's weight is brought back to unit norm.
        up: the convolution is transposed with that stride, and filtered.
        taps: of that filter, normalised.

    Shape: `x` [batch, in_channels, height, width] and `styles` [batch, in_channels] to
        [batch, out_channels, height * up, width * up].

    Raises:
        ValueError: an even kernel, a number below 1, or what `fastgen.ops.modulated_conv2d` raises.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), section 2.2.
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        demodulate: bool = True,
        up: int = 1,
        taps: Sequence[float] = (1, 3, 3, 1),
    ) -> None:
        super().__init__()
        odd("kernel_size", kernel_size)
        positive(in_channels=in_channels, out_channels=out_channels, up=up)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.demodulate, self.up, self.taps = demodulate, up, list(taps)
        self._register_constants()

    def _constants(self) -> dict[str, Tensor | None]:
        return {"filter": setup_filter(self.taps) if self.up > 1 else None}

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        padding = kernel // 2 if self.up == 1 else 0
        y = modulated_conv2d(x, self.weight, styles, demodulate=self.demodulate, padding=padding, up=self.up)
        if self.up == 1:
            return y
        # A transposed convolution leaves (height - 1) * up + kernel rows.
        total = self.up - kernel + self.filter.numel() - 1
        return upfirdn2d(y, self.filter, padding=((total + 1) // 2, total // 2) * 2, gain=self.up**2)

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, {kernel}, demodulate={self.demodulate}, up={self.up}"


class StyledConv2d(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU; doubles the image where asked to.

    In training each image gets new noise at every pixel; in eval mode all get the same, kept in the state dict, so that
    an image depends on its style alone.

    Args:
        in_channels, out_channels: channels.
        style_size: numbers of a style.
        image_size: height and width of the result.
        up: 2 doubles the image, 1 leaves it.

    Shape: [batch, in_channels, height / up, width / up] and styles [batch, style_size], to [batch, out_channels,
    height, width].

    Raises:
        ValueError: sizes that are not positive ints; in `forward`, what `fastgen.ops.modulated_conv2d` raises.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), figure 2 and section 2.2.
    """

    @plain_numbers
    def __init__(
        self, in_channels: int, out_channels: int, style_size: int, image_size: tuple[int, int], *, up: int = 1
    ) -> None:
        super().__init__()
        self.style = EqualizedLinear(style_size, in_channels, bias=1.0)
        # Demodulation undoes any scale of the weight: that it is equalised needs no saying.
        self.convolution = ModulatedConv2d(in_channels, out_channels, 3, up=up, taps=TAPS)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, *image_size))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h = self.convolution(x, self.style(style))
        noise = self.noise
        if self.training:
            noise = torch.randn(h.shape[0], 1, *h.shape[2:], device=h.device, dtype=h.dtype)
        return bias_act(h + noise * self.noise_strength, self.bias, act="lrelu")


class ToImage(nn.Module):
    """A modulated 1x1 convolution without demodulation, to the colours of an image.

    Args:
        in_channels: of the features.
        image_channels: of the image.
        style_size: numbers of a style.

    Shape: [batch, in_channels, height, width] and styles [batch, style_size], to [batch, image_channels, height,
    width].

    Raises:
        ValueError: sizes that are not positive ints; in `forward`, what `fastgen.ops.modulated_conv2d` raises.

    Source: Karras et al. (2020), section 4.1 and appendix B.
    """

    @plain_numbers
    def __init__(self, in_channels: int, image_channels: int, style_size: int) -> None:
        super().__init__()
        self.style = EqualizedLinear(style_size, in_channels, bias=1.0)
        self.scale = 1 / math.sqrt(in_channels)
        self.convolution = ModulatedConv2d(in_channels, image_channels, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(image_channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        # The style is scaled and not the weight, which is far larger.
        h = self.convolution(x, self.style(style) * self.scale)
        return h + self.bias[:, None, None]


class BiasAct(nn.Module):
    """`clip(gain * act(x + bias), -clamp, clamp)` in one pass, which can be differentiated twice.

    Stands for the bias of the convolution or linear layer before it (made with `bias=False`) and the activation behind
    it; under a gradient penalty all derivatives are kernels.

    Args:
        num_channels: length of `bias`, which starts at zero.
        act, alpha, gain, clamp: as of `fastgen.ops.bias_act`.
        dim: of `x`, that the bias belongs to.

    Shape: any with `num_channels` along `dim`; the result has it too.

    Raises:
        ValueError, TypeError: what `fastgen.ops.bias_act` raises, at the first call.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), which fuses the two.
    """

    @plain_numbers
    def __init__(
        self,
        num_channels: int,
        act: str = "lrelu",
        *,
        dim: int = 1,
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        positive(num_channels=num_channels)
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.dim, self.act, self.alpha, self.gain, self.clamp = dim, act, alpha, gain, clamp

    def forward(self, x: Tensor) -> Tensor:
        return bias_act(x, self.bias, self.dim, self.act, self.alpha, self.gain, self.clamp)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}, {self.act!r}, dim={self.dim}"


class Resample2d(Constants):
    """Make images `up` times larger or `down` times smaller with a low-pass filter, or blur them; every order of
    gradient is a kernel.

    Args:
        up, down: factors; sizes must be multiples of `down`.
        taps: of the filter along both axes, normalised.

    Shape: [batch, channels, height, width] to [batch, channels, height * up / down, width * up / down].

    Raises:
        ValueError: a factor below 1, or what `setup_filter` raises.

    Source: Karras et al., "A Style-Based Generator Architecture" (2019), appendix C.
    """

    @plain_numbers
    def __init__(self, up: int = 1, down: int = 1, taps: Sequence[float] = (1, 3, 3, 1)) -> None:
        super().__init__()
        positive(up=up, down=down)
        self.up, self.down, self.taps = up, down, list(taps)
        self._register_constants()
        total = len(taps) - down
        self.padding = ((total + 1) // 2, total // 2) * 2

    def _constants(self) -> dict[str, Tensor]:
        return {"filter": setup_filter(self.taps)}

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.filter, self.up, self.down, self.padding, gain=self.up**2)

    def extra_repr(self) -> str:
        return f"up={self.up}, down={self.down}, taps={self.filter.numel()}"
