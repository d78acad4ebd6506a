"""Diffusion: sampling, a training step, the network and the likelihood, against the bare network, diffusers and scipy.

The model is the small `UNet` of digits, taught by a few steps so that its numbers are not those of chance. `network` is
what as many bare calls of that network take, and the ratio to it what everything else costs.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.bench.diffusion_peers import ScipyLikelihood, diffusers_samples
from fastgen.bench.measure import Call, Timing
from fastgen.bench.results import Row
from fastgen.bench.suites import Measured, Options, RedGate, compiled, installed, say, step, timed
from fastgen.bench.unet_peers import diffusers_unet
from fastgen.conformance.calls import forced
from fastgen.conformance.measure import relative_error
from fastgen.data import load
from fastgen.models.ddpm import DDPM
from fastgen.models.diffusion import Diffusion
from fastgen.models.score_sde import ScoreSDE
from fastgen.models.unet import UNet
from fastgen.train.recipe import Recipe

SIZES = {"channels": 32, "channel_multipliers": (1, 2), "layers": 2, "attention_levels": (1,), "groups": 8}
_NETWORK = "UNet of 1M, 8x8"
SAMPLED, SAMPLING_STEPS = 64, 50
TRAINED = 64
SCORED = 8
_LESSONS = 150
# How far a peer with our weights may be: further, and it computes something else. A sampler's 50 steps add up.
_SAME_OUTPUTS, _SAME_SAMPLES = 1e-5, 1e-4
# Of a likelihood, in bits per dimension, and the tolerances of the solution that it is compared with.
_SAME_BITS, _TIGHT = 1e-3, 1e-7


def measured() -> list[Measured]:
    return [
        (f"{subject}, {case}, {pass_}", functools.partial(measure, f"diffusion/{subject}", case, pass_))
        for subject, case, pass_, measure in _MEASURED
    ]


def _model(family: type[Diffusion], device: str) -> Diffusion:
    """The same in every call: taught digits, floating, so that no rounding to levels hides a difference."""
    torch.manual_seed(0)
    model = family(8, 1, None, **SIZES).to(device)
    images = load("digits").train.images.to(device).float() / 8 - 1
    (optimizer,) = Recipe(lr=1e-3).optimizers(model).values()
    for batch in images[torch.randint(len(images), (_LESSONS, 64))]:
        step(optimizer, lambda batch=batch: model.loss(batch))()
    return model.eval()


def _sampling(op: str, case: str, pass_: str, options: Options) -> Iterator[Row]:
    """A sampler's loop against its forward passes alone."""
    model, device = _model(DDPM, options.device), options.device
    noise = torch.randn(SAMPLED, *model.shape, device=device)
    time = torch.full((1,), 500, device=device)

    def sample() -> Tensor:
        return model.sample(SAMPLED, sampler="ddim", steps=SAMPLING_STEPS, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def network() -> list[Tensor]:
        return [model.network(noise, time) for _ in range(SAMPLING_STEPS)]

    methods: dict[str, Call] = {"fastgen": sample, "network": network}
    if "peers" in options.against:
        start = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0)).to(device)

        @torch.no_grad()
        def theirs(start: Tensor = start) -> Tensor:
            return diffusers_samples(model.network, start, SAMPLING_STEPS, len(model.betas))

        if (samples := installed(theirs)) is not None:
            _same("samples", sample(), samples, _SAME_SAMPLES)
            methods["diffusers"] = theirs
    yield _row(op, case, pass_, methods, options, error=None)


def _training(op: str, case: str, pass_: str, options: Options) -> Iterator[Row]:
    """A step by the trainer's optimiser against the network's forward and backward pass alone."""
    model, device = _model(DDPM, options.device).train(), options.device
    images = load("digits").train.images[:TRAINED].to(device).float() / 8 - 1
    bare, time = copy.deepcopy(model.network), torch.full((TRAINED,), 500, device=device)

    def network() -> Tensor:
        bare.zero_grad(set_to_none=True)
        loss = bare(images, time).square().mean()
        loss.backward()
        return loss

    methods = {"fastgen": _step(copy.deepcopy(model), lambda m: m.loss(images)), "network": network}
    if "eager" in options.against:
        methods["eager"] = _step(copy.deepcopy(model), lambda m: forced(m.loss, "reference")(images))
    if "peers" in options.against and (peer := _diffusers(model.network)) is not None:
        alphas = model.alphas_cumprod.float()

        def loss(network: nn.Module) -> Tensor:
            times, noise = torch.randint(len(alphas), (TRAINED,), device=device), torch.randn_like(images)
            a = alphas[times].view(-1, 1, 1, 1)
            return F.mse_loss(network(a.sqrt() * images + (1 - a).sqrt() * noise, times).sample, noise)

        methods["diffusers"] = _step(peer.train(), loss)
    yield _row(op, case, pass_, methods, options, error=None)


def _step(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Call:
    (optimizer,) = Recipe(lr=1e-5).optimizers(module).values()
    return step(optimizer, lambda: loss(module))


def _unet(op: str, case: str, pass_: str, options: Options) -> Iterator[Row]:
    """The network alone, with weights copied."""
    torch.manual_seed(0)
    ours = _fresh_unet(options.device)
    x = torch.randn(16, 3, 32, 32, device=options.device).to(memory_format=torch.channels_last)
    time = torch.arange(16, device=options.device) * 50.0
    backward = pass_ == "forward_backward"

    def call(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Call:
        if not backward:
            return torch.no_grad()(run)
        return lambda: torch.autograd.grad(run().square().mean(), parameters)

    methods = {"fastgen": call(lambda: ours(x, time), list(ours.parameters()))}
    if "eager" in options.against:
        plain = forced(ours, "reference")
        methods["eager"] = call(lambda: plain(x, time), list(ours.parameters()))
    if options.compiles:
        fused = compiled(ours)
        methods["compile"] = call(lambda: fused(x, time), list(ours.parameters()))
    if "peers" in options.against:
        formats = {"diffusers": torch.contiguous_format, "diffusers_channels_last": torch.channels_last}
        for name, memory_format in formats.items():
            if (peer := _diffusers(ours)) is None:
                break
            peer, here = peer.to(memory_format=memory_format), x.contiguous(memory_format=memory_format)
            with torch.no_grad():
                _same("the network's outputs", ours(x, time), peer(here, time).sample, _SAME_OUTPUTS)
            methods[name] = call(lambda p=peer, h=here: p(h, time).sample, list(peer.parameters()))
    with torch.no_grad():
        exact = forced(copy.deepcopy(ours).double(), "reference")(x.double(), time)
        error = relative_error(ours(x, time), exact)
    yield _row(op, case, pass_, methods, options, error=error)


def _fresh_unet(device: str) -> UNet:
    unet = UNet(3, **SIZES).to(device=device, memory_format=torch.channels_last).eval()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    return unet


def _likelihood(op: str, case: str, pass_: str, options: Options) -> Iterator[Row]:
    """By the probability flow, against scipy's solver, with the same probes; what is exact is scipy's in float64."""
    model, device = _model(ScoreSDE, options.device), options.device
    x = load("digits").train.images[:SCORED].float() / 8 - 1
    probes = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    here = x.to(device)

    def log_prob(**options: bool) -> Tensor:
        return model.log_prob(here, generator=torch.Generator().manual_seed(0), **options)

    methods: dict[str, Call] = {"fastgen": log_prob}
    on_host = copy.deepcopy(model).cpu()
    exact = ScipyLikelihood(copy.deepcopy(on_host).double(), _TIGHT, _TIGHT)(x.double(), probes.double())
    to_bits = 1 / (x[0].numel() * math.log(2))
    own, solution = log_prob(return_solution=True)
    error = (own.cpu() - exact).abs().max().item() * to_bits
    if not error <= _SAME_BITS:
        raise RedGate(f"{op}: {error:.1e} bits per dimension from scipy's solution in float64")
    metrics = {"error_bits_per_dim": error, "evaluations": solution.evaluations}
    if "peers" in options.against and device == "cpu":
        peer = ScipyLikelihood(on_host)
        metrics["scipy_error_bits_per_dim"] = (peer(x, probes) - exact).abs().max().item() * to_bits
        metrics["scipy_evaluations"] = peer.evaluations
        apart = ScipyLikelihood(on_host, apart=True)
        methods["scipy"] = lambda: peer(x, probes)
        methods["score_sde"] = lambda: apart(x, probes)
    yield _row(op, case, pass_, methods, options, error=relative_error(own.cpu(), exact), metrics=metrics, rounds=3)


def _diffusers(network: UNet) -> nn.Module | None:
    peer = installed(diffusers_unet, network, **SIZES)
    return peer and peer.to(next(network.parameters()).device)


def _same(what: str, ours: Tensor, theirs: Tensor, bound: float) -> None:
    difference = relative_error(ours, theirs.double())
    if not difference <= bound:
        raise RedGate(f"diffusion: {what} are {difference:.1e} from diffusers' with the same weights")


def _row(
    op: str,
    case: str,
    pass_: str,
    methods: dict[str, Call],
    options: Options,
    *,
    error: float | None,
    metrics: dict[str, float] | None = None,
    rounds: int = 5,
) -> Row:
    say(f"{op}, {case}, {pass_}: the numbers are right, timing")

    def every_metric(timings: Mapping[str, Timing]) -> dict[str, float]:
        found = dict(metrics or {})
        if "network" in timings:
            found["over_network"] = timings["fastgen"].median_s / timings["network"].median_s
        return found

    return timed(
        op,
        case,
        pass_,
        methods,
        options,
        error=error,
        budget=3,
        min_rounds=rounds,
        # Thousands of passes are more events than the profiler that counts bytes on a CPU can hold.
        peaks=() if pass_ in ("sample", "log_prob") else ("fastgen",),
        metrics=every_metric,
    )


_MEASURED = (
    ("sampling", f"{_NETWORK}, batch {SAMPLED}, DDIM {SAMPLING_STEPS}", "sample", _sampling),
    ("training", f"{_NETWORK}, batch {TRAINED}", "step", _training),
    ("UNet", "1M, 16x3x32x32", "forward", _unet),
    ("UNet", "1M, 16x3x32x32", "forward_backward", _unet),
    ("likelihood", f"{_NETWORK}, batch {SCORED}", "log_prob", _likelihood),
)
