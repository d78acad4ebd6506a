"""A training step of a VAE, against pythae and the plain one: what the bound's terms cost in it.

A step is the loss, its gradients and AdamW. `pythae` is its VAE on the same weights, `eager` one in plain PyTorch from
the paper, `compile` the compiled loss of that. The gate trains all of them on the same noise, and holds their losses to
ours. `bound_share` is the part of our step that the terms of the bound take, with their gradients: the sample, its
divergence and the log-probability of the pixels, on latents and logits at hand.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgen.bench.measure import Call
from fastgen.bench.results import Row
from fastgen.bench.suites import Measured, Options, RedGate, installed, say, step, timed
from fastgen.bench.vae_peers import PlainVAE, PythaeVAE
from fastgen.models.vae import VAE
from fastgen.ops.philox import philox_normal
from fastgen.ops.reconstruction import bernoulli_log_prob
from fastgen.ops.reparameterize import gaussian_reparameterize_kl

# Relative, of the losses of each of so many steps.
_SAME_LOSSES, _STEPS = 1e-5, 20


@dataclass(frozen=True)
class Subject:
    """A dense VAE of images in [0, 1], `size` x `size`, which is how pythae takes them."""

    size: int
    channels: int
    latent_size: int
    batch: int

    @property
    def case(self) -> str:
        return f"{self.size**2}-{self.channels}-{self.latent_size}, batch {self.batch}"

    def build(self, device: str) -> VAE:
        """The model with its initial weights, the same in every call."""
        torch.manual_seed(0)
        return VAE(self.size, 1, None, channels=self.channels, latent_size=self.latent_size).to(device)


SUBJECTS = (Subject(28, 512, 64, 256),)


def measured() -> list[Measured]:
    return [(f"VAE, {subject.case}", functools.partial(_measure, subject)) for subject in SUBJECTS]


def _measure(subject: Subject, options: Options) -> Iterator[Row]:
    device = options.device
    model = subject.build(device).train()
    x = (torch.rand(subject.batch, *model.shape, device=device) < 0.2).float()
    peers: dict[str, nn.Module] = {}
    if "peers" in options.against and subject.channels == 512 and (peer := installed(PythaeVAE, model)):
        peers["pythae"] = peer
    if "eager" in options.against:
        peers["eager"] = PlainVAE(model)
    difference = max((_difference(model, peer, x) for peer in peers.values()), default=None)
    say(f"autoencoders VAE, {subject.case}: the same losses (difference {difference or 0:.1e}), timing")
    if options.compiles:
        torch._dynamo.reset()
        peers["compile"] = PlainVAE(model)
        peers["compile"].loss = torch.compile(peers["compile"].loss, dynamic=False)
    methods = {"fastgen": _step(copy.deepcopy(model), x), **{name: _step(peer, x) for name, peer in peers.items()}}
    yield timed(
        "autoencoders/VAE",
        subject.case,
        "step",
        {**methods, "bound": _bound(subject, x)},
        options,
        error=difference,
        budget=3,
        aside=("bound",),
        metrics=lambda timings: {
            "bound_share": timings["bound"].median_s / timings["fastgen"].median_s,
            "bound_s": timings["bound"].median_s,
            "images_per_s": subject.batch / timings["fastgen"].median_s,
        },
    )


def _step(module: nn.Module, x: Tensor) -> Call:
    return step(torch.optim.AdamW(module.parameters(), lr=1e-4), lambda: module.loss(x))


def _bound(subject: Subject, x: Tensor) -> Call:
    """The terms of the bound and their gradients, from what the encoder and the decoder say."""
    both = torch.randn(subject.batch, 2 * subject.latent_size, device=x.device, requires_grad=True)
    logits = torch.randn(x.shape, device=x.device, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        mean, logvar = both.chunk(2, 1)
        z, kl = gaussian_reparameterize_kl(mean, logvar, seed=int(torch.randint(2**63 - 1, ())))
        loss = (kl - bernoulli_log_prob(logits, x)).mean()
        # The gradient that comes from the decoder is of this size.
        return torch.autograd.grad((loss, z), (both, logits), (torch.ones_like(loss), torch.ones_like(z)))

    return run


def _difference(model: VAE, peer: nn.Module, x: Tensor) -> float:
    """The largest relative difference of the losses of a few steps, on the same noise; red where it is too large."""
    own, peer = copy.deepcopy(model), copy.deepcopy(peer)
    own_step, other = _step(own, x), _step(peer, x)
    largest = 0.0
    for number in range(_STEPS):
        torch.manual_seed(number)
        # The seed that the model draws next.
        seed = int(torch.randint(2**63 - 1, ()))
        peer.noise = lambda like, seed=seed: philox_normal(like.shape, seed=seed, offset=0, device=like.device)
        expected = other().item()
        torch.manual_seed(number)
        largest = max(largest, abs(own_step().item() - expected) / abs(expected))
    if not largest <= _SAME_LOSSES:
        raise RedGate(f"VAE: losses differ by {largest:.2e} from those of {type(peer).__name__}")
    return largest
