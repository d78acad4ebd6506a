"""Measurement operators of inverse problems: linear ones with their pseudo-inverses, and one that is not linear."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.nn.arguments import is_int


class Operator:
    """`measurement = operator(image) + noise_std * noise`, of images [batch, channels, height, width] in [-1, 1].

    Args:
        noise_std: the standard deviation of the noise that the measurement has besides.

    Raises:
        ValueError: `noise_std` is negative or not finite.

    Attributes:
        linear: whether it is, and `pseudo_inverse` is its Moore-Penrose inverse.
    """

    linear = True

    def __init__(self, noise_std: float = 0.0) -> None:
        if not (math.isfinite(noise_std) and noise_std >= 0):
            raise ValueError(f"noise_std: expected a number of at least 0, got {noise_std}")
        self.noise_std = noise_std

    def __call__(self, x: Tensor) -> Tensor:
        """The measurement of `x`, without noise."""
        raise NotImplementedError

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """The smallest image that is measured as `y` (as nearly as any)."""
        raise NotImplementedError

    def check(self, shape: Sequence[int]) -> None:
        """Raises ValueError unless images of this shape, (channels, height, width), can be measured so."""

    def measure(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The measurement of `x`, with its noise."""
        y = self(x)
        if not self.noise_std:
            return y
        device = y.device if generator is None else generator.device
        noise = torch.randn(y.shape, generator=generator, device=device, dtype=y.dtype).to(y.device)
        return y + self.noise_std * noise


class Denoising(Operator):
    """The image itself, and noise of the standard deviation `noise_std`."""

    def __init__(self, noise_std: float = 0.3) -> None:
        super().__init__(noise_std)

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y


class Inpainting(Operator):
    """The pixels where a mask is true, and 0 elsewhere.

    Args:
        mask: bool [height, width] or [channels, height, width].
        noise_std: as of `Operator`.

    Raises:
        ValueError: `mask` is no such tensor.
    """

    def __init__(self, mask: Tensor, noise_std: float = 0.0) -> None:
        super().__init__(noise_std)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() not in (2, 3):
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask: expected a bool tensor [height, width] or [channels, height, width], got {got}")
        self.mask = mask

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y * self.mask.to(y)

    def check(self, shape: Sequence[int]) -> None:
        expected = tuple(shape)[-self.mask.dim() :]
        if tuple(self.mask.shape) != expected:
            raise ValueError(f"mask: expected {list(expected)}, as the image, got {list(self.mask.shape)}")


class Uncropping(Inpainting):
    """A rectangle of the image; what was around it is lost.

    Args:
        image_size: height and width of the whole image.
        top, left: the rectangle's first row and column.
        height, width: its size.
        noise_std: as of `Operator`.

    Raises:
        ValueError: a rectangle that is not within the image.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        top: int,
        left: int,
        height: int,
        width: int,
        noise_std: float = 0.0,
    ) -> None:
        inside = 0 <= top < top + height <= image_size[0] and 0 <= left < left + width <= image_size[1]
        if not inside:
            box = (top, left, height, width)
            raise ValueError(f"top, left, height and width: expected a box within {tuple(image_size)}, got {box}")
        mask = torch.zeros(image_size, dtype=torch.bool)
        mask[top : top + height, left : left + width] = True
        super().__init__(mask, noise_std)


class SuperResolution(Operator):
    """The mean of each square of `factor x factor` pixels.

    Args:
        factor: divides height and width of the images.
        noise_std: as of `Operator`.

    Raises:
        ValueError: `factor` is below 2.
    """

    def __init__(self, factor: int = 2, noise_std: float = 0.0) -> None:
        super().__init__(noise_std)
        if not is_int(factor) or factor < 2:
            raise ValueError(f"factor: expected an int of at least 2, got {factor!r}")
        self.factor = int(factor)

    def __call__(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return F.interpolate(y, scale_factor=self.factor, mode="nearest")

    def check(self, shape: Sequence[int]) -> None:
        if shape[-2] % self.factor or shape[-1] % self.factor:
            raise ValueError(f"factor: expected a divisor of the sides {list(shape[-2:])}, got {self.factor}")


class Colourisation(Operator):
    """The mean of the channels."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y.expand(-1, 3, -1, -1)

    def check(self, shape: Sequence[int]) -> None:
        if shape[0] != 3:
            raise ValueError(f"operator: colourisation is of images of 3 channels, got {shape[0]}")


class Deblurring(Operator):
    """Circular convolution with a kernel [k, l] around its centre.

    Args:
        kernel: [k, l].
        noise_std: as of `Operator`.
        least: frequencies that the kernel weakens below this share of its strongest count as lost: their inverse would
            be noise.

    Raises:
        ValueError: another shape, numbers that are not finite, or `least` outside (0, 1).
    """

    def __init__(self, kernel: Tensor, noise_std: float = 0.0, least: float = 0.05) -> None:
        super().__init__(noise_std)
        if not isinstance(kernel, Tensor) or kernel.dim() != 2 or not bool(kernel.isfinite().all()):
            raise ValueError("kernel: expected a tensor [k, l] of finite numbers")
        if not 0 < least < 1:
            raise ValueError(f"least: expected a number in (0, 1), got {least}")
        self.kernel, self.least = kernel, least

    @classmethod
    def gaussian(cls, size: int = 3, sigma: float = 1.0, **options: float) -> Deblurring:
        """A normal kernel of `size x size`, which adds up to one."""
        if not is_int(size) or size < 1 or size % 2 == 0 or not sigma > 0:
            raise ValueError(f"size and sigma: expected an odd int and a positive number, got {size} and {sigma}")
        place = torch.arange(size) - size // 2
        row = torch.exp(-0.5 * (place / sigma) ** 2)
        row = row / row.sum()
        return cls(torch.outer(row, row), **options)

    def __call__(self, x: Tensor) -> Tensor:
        return self._filtered(x, self._response(x))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        response = self._response(y)
        kept = response.abs() >= self.least * response.abs().max()
        return self._filtered(y, torch.where(kept, 1 / torch.where(kept, response, 1.0), 0.0))

    def check(self, shape: Sequence[int]) -> None:
        if self.kernel.shape[0] > shape[-2] or self.kernel.shape[1] > shape[-1]:
            expected, got = list(shape[-2:]), list(self.kernel.shape)
            raise ValueError(f"kernel: expected no larger than the image, {expected}, got {got}")

    def _response(self, x: Tensor) -> Tensor:
        rows, columns = self.kernel.shape
        padded = x.new_zeros(x.shape[-2:], dtype=_exact(x).dtype)
        padded[:rows, :columns] = self.kernel.to(padded)
        centred = padded.roll((-(rows // 2), -(columns // 2)), (0, 1))
        response = torch.fft.rfft2(centred)
        # The operator loses the same frequencies as its inverse, so that this is its exact pseudo-inverse.
        return torch.where(response.abs() >= self.least * response.abs().max(), response, 0.0)

    @staticmethod
    def _filtered(x: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(_exact(x)) * response, s=x.shape[-2:]).to(x.dtype)


def _exact(x: Tensor) -> Tensor:
    """In float32 or more: half precision has no transforms, and rounds more than one level of 256."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SingleImageHDR(Operator):
    """An exposure that clips: light `exposure * (x + 1) / 2`, cut off at 1 and rounded to `levels`, in [-1, 1] again.

    Not linear. For gradients, clipping and rounding count as the identity: a guess that clips where the measurement
    does not is then pulled back, and where both do there is nothing to pull.

    Args:
        exposure: the factor; above 1 the brightest are clipped.
        levels: that the measurement is rounded to.
        noise_std: as of `Operator`.

    Raises:
        ValueError: `exposure` is not positive, or `levels` below 2.
    """

    linear = False

    def __init__(self, exposure: float = 2.0, levels: int = 256, noise_std: float = 0.0) -> None:
        super().__init__(noise_std)
        if not (math.isfinite(exposure) and exposure > 0):
            raise ValueError(f"exposure: expected a positive number, got {exposure}")
        if not is_int(levels) or levels < 2:
            raise ValueError(f"levels: expected an int of at least 2, got {levels!r}")
        self.exposure, self.levels = exposure, levels

    def __call__(self, x: Tensor) -> Tensor:
        light = self.exposure * (_exact(x) + 1) / 2
        seen = (light.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)
        return ((light + (seen - light).detach()) * 2 - 1).to(x.dtype)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """The darkest scene that looks so."""
        return (y + 1) / self.exposure - 1


def operator_of(task: str, shape: tuple[int, int, int], noise_std: float | None = None) -> Operator:
    """The operator of a task of `fastgen restore`.

    Args:
        task: `"super-resolution"` (from means of 2x2 pixels), `"denoise"`, `"inpaint"` (the middle), `"uncrop"` (the
            right half), `"deblur"` (a normal kernel of 3x3), `"colourise"` or `"hdr"` (an exposure twice too long).
        shape: of an image, (channels, height, width).
        noise_std: of the measurement; None takes the operator's default.

    Raises:
        ValueError: no such task, a noise that is negative, an operator that does not fit the image.
    """
    height, width = shape[1:]
    options = {} if noise_std is None else {"noise_std": noise_std}
    middle = torch.ones(height, width, dtype=torch.bool)
    middle[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    operators = {
        "super-resolution": lambda: SuperResolution(2, **options),
        "denoise": lambda: Denoising(**options),
        "inpaint": lambda: Inpainting(middle, **options),
        "uncrop": lambda: Uncropping((height, width), 0, 0, height, max(width // 2, 1), **options),
        "deblur": lambda: Deblurring.gaussian(3, 1.0, **options),
        "colourise": lambda: Colourisation(**options),
        "hdr": lambda: SingleImageHDR(2.0, **options),
    }
    if task not in operators:
        raise ValueError(f"--task is {task}, expected one of: {', '.join(operators)}")
    operator = operators[task]()
    operator.check(shape)
    return operator
