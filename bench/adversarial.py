"""A discriminator's step with its R1 penalty, against the same network in plain PyTorch.

A step is the outputs for real and for generated images, the loss, half the squared gradient in the real images, the
gradients of all of that in the weights, and Adam. `eager` is the same network, with the same weights, of PyTorch's own
layers in channels-last. There is no compiled rival: torch.compile cannot differentiate twice.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgen.bench.adversarial_plain import PlainDCGANDiscriminator, PlainStyleDiscriminator
from fastgen.bench.measure import Call
from fastgen.bench.results import Row
from fastgen.bench.suites import Measured, Options, RedGate, gradients, say, step, timed
from fastgen.conformance.measure import relative_error
from fastgen.gan import adversarial_loss, squared_gradient
from fastgen.models.dcgan import DCGANDiscriminator
from fastgen.models.stylegan2 import StyleDiscriminator

LOSS = adversarial_loss("non_saturating")
R1 = 10.0


@dataclass(frozen=True)
class Subject:
    """A discriminator, its rival, and the images it is measured on."""

    name: str
    build: Callable[[], nn.Module]
    plain: Callable[[nn.Module], nn.Module]
    image_size: int
    image_channels: int
    batch: int

    @property
    def case(self) -> str:
        return f"R1 step, {self.image_size}x{self.image_size}, batch {self.batch}"

    def images(self, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Real and generated images, the same in every call."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, self.batch, self.image_channels, self.image_size, self.image_size)
        return torch.randn(shape, generator=generator).to(device, dtype).unbind(0)


def _style_discriminator() -> nn.Module:
    return StyleDiscriminator([(64 >> i, 64 >> i) for i in range(5)], [64, 128, 256, 256, 256], 3)


def _dcgan_discriminator() -> nn.Module:
    return DCGANDiscriminator(3, [64, 128, 256, 512], (4, 4))


SUBJECTS = (
    Subject("StyleGAN2", _style_discriminator, PlainStyleDiscriminator, 64, 3, 16),
    Subject("DCGAN", _dcgan_discriminator, PlainDCGANDiscriminator, 64, 3, 32),
)


def measured() -> list[Measured]:
    return [(f"{subject.name}, {subject.case}", functools.partial(_measure, subject)) for subject in SUBJECTS]


def _measure(subject: Subject, options: Options) -> Iterator[Row]:
    device = options.device
    torch.manual_seed(0)
    own = subject.build().to(device).train()
    error = _gradient_error(subject, own, device)
    say(f"adversarial {subject.name}, {subject.case}: gradients are right (error {error:.1e}), timing")
    real, fake = subject.images(device)
    methods = {"fastgen": _step(copy.deepcopy(own), real, fake)}
    if "eager" in options.against:
        images = (x.to(memory_format=torch.channels_last) for x in (real, fake))
        plain = subject.plain(copy.deepcopy(own)).to(memory_format=torch.channels_last)
        methods["eager"] = _step(plain, *images)
    yield timed(
        f"adversarial/{subject.name}",
        subject.case,
        "step",
        methods,
        options,
        error=error,
        metrics=lambda timings: {"images_per_s": subject.batch / timings["fastgen"].median_s},
    )


def _loss(network: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    squared, outputs = squared_gradient(network, real)
    return LOSS.discriminator(outputs, network(fake)) + R1 / 2 * squared.mean()


def _step(network: nn.Module, real: Tensor, fake: Tensor) -> Call:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.0, 0.99))
    return step(optimizer, lambda: _loss(network, real, fake))


def _gradient_error(subject: Subject, own: nn.Module, device: str) -> float:
    """The relative error of all gradients together, against the plain network's in float64."""
    plain = subject.plain(copy.deepcopy(own))
    usual = gradients(_loss(plain, *subject.images(device)), plain)
    exact = gradients(_loss(plain.double(), *subject.images(device, torch.float64)), plain)
    error = relative_error(gradients(_loss(own, *subject.images(device)), own), exact)
    allowed = relative_error(usual, exact)
    if not error <= max(2 * allowed, 1e-5):
        raise RedGate(f"{subject.name}: gradients of the R1 step: error {error:.2e}, plain PyTorch's {allowed:.2e}")
    return error
