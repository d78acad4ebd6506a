"""Training a Glow-like chain with `Compose(reversible=True)`: what a step costs, and the memory that it does not take.

A step is the loss and its gradients. `ordinary` is the same chain with its activations kept, `checkpoint` the same with
`torch.utils.checkpoint` around every flow step, as one does without reversible layers. Peaks are of activations: the
parameters have their gradients before the step.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastgen.bench.measure import Call
from fastgen.bench.results import Row
from fastgen.bench.suites import Measured, Options, RedGate, say, timed
from fastgen.conformance.measure import relative_error
from fastgen.nn.actnorm import ActNorm
from fastgen.nn.compose import Compose
from fastgen.nn.conditioner import ConvNet
from fastgen.nn.coupling import AffineCoupling
from fastgen.nn.linear import InvertibleConv1x1

DEPTHS = (4, 16, 64)
BATCH, CHANNELS, SIZE, HIDDEN = 8, 12, 16, 128

# How far the gradients may be from those of autograd in the same precision.
_LARGEST_DIFFERENCE = 1e-4

Run = Callable[[Tensor], tuple[Tensor, Tensor]]


def measured() -> list[Measured]:
    return [(_case(depth), functools.partial(_measure, depth)) for depth in DEPTHS]


def _case(depth: int) -> str:
    return f"depth {depth}, {BATCH}x{CHANNELS}x{SIZE}x{SIZE}, hidden {HIDDEN}"


def _measure(depth: int, options: Options) -> Iterator[Row]:
    device = options.device
    torch.manual_seed(0)
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE).to(device)
    ordinary = glow(depth).to(device)
    # The first batch initialises ActNorm, which is not what a step is.
    ordinary(x)
    rebuilt = copy.deepcopy(ordinary)
    rebuilt.reversible = True
    error, usual, difference = _gradient_errors(rebuilt, ordinary, x)
    say(f"reversible, depth {depth}: gradients are right (difference {difference:.1e}), timing")
    methods = {
        "fastgen": _step(rebuilt, rebuilt, x),
        "ordinary": _step(ordinary, ordinary, x),
        "checkpoint": _step(ordinary, lambda x: _checkpointed(ordinary, x), x),
    }
    yield timed(
        "reversible/Glow-like",
        _case(depth),
        "step",
        methods,
        options,
        error=error,
        budget=3,
        peaks=methods,
        baseline_errors={"ordinary": usual},
        metrics=lambda timings: {
            "step_over_ordinary": timings["fastgen"].median_s / timings["ordinary"].median_s,
            "gradient_difference": difference,
            "drift": float(rebuilt.drift),
        },
    )


def glow(depth: int) -> Compose:
    """Steps of a Glow whose conditioners are not at zero, where a coupling would be the same for all inputs."""
    mask = torch.arange(CHANNELS) < CHANNELS // 2
    steps = [(ActNorm(CHANNELS), InvertibleConv1x1(CHANNELS), AffineCoupling(mask, _conv_net)) for _ in range(depth)]
    return Compose([transform for step in steps for transform in step])


def _conv_net(inputs: int, outputs: int) -> ConvNet:
    # With ReLU a unit that rounding carries over the kink changes its whole gradient: in 64 steps this puts autograd's
    # own float32 gradients 1e-4 from those of float64, which would hide what is compared here.
    net = ConvNet(inputs, outputs, HIDDEN, activation=F.elu)
    nn.init.normal_(net.final_layer.weight, std=0.02)
    return net


def _checkpointed(flow: Compose, x: Tensor) -> tuple[Tensor, Tensor]:
    total = 0
    for i in range(0, len(flow), 3):
        x, logabsdet = checkpoint(flow[i : i + 3], x, use_reentrant=False)
        total = total + logabsdet
    return x, total


def _step(flow: nn.Module, run: Run, x: Tensor) -> Call:
    def step() -> Tensor:
        flow.zero_grad(set_to_none=False)
        y, logabsdet = run(x)
        loss = (y.square().flatten(1).sum(1) / 2 - logabsdet).mean()
        loss.backward()
        return loss

    return step


def _gradient_errors(rebuilt: Compose, ordinary: Compose, x: Tensor) -> tuple[float, float, float]:
    """Relative, of all gradients together: the reversible chain's and the ordinary one's against the ordinary one in
    float64, and the first against the second.
    """
    exact = _gradients(copy.deepcopy(ordinary).double(), x.double())
    own, usual = _gradients(rebuilt, x), _gradients(ordinary, x)
    difference = relative_error(own, usual)
    if not difference <= _LARGEST_DIFFERENCE:
        raise RedGate(f"reversible: gradients differ by {difference:.2e} from autograd's")
    return relative_error(own, exact), relative_error(usual, exact), difference


def _gradients(flow: Compose, x: Tensor) -> Tensor:
    _step(flow, flow, x)()
    return torch.cat([parameter.grad.flatten() for parameter in flow.parameters()])
