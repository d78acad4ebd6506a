"""Flows: density and samples in eval mode, and a training step, against nflows, zuko and the compiled layers.

Ours are frozen where they are evaluated; the pass `log_prob, unfrozen` says what it costs to compare the weights.
Peers have the weights of ours, and the gate holds them to the same numbers in float64. `eager` and `compile` are our
layers on the ops' references. `conditioners` is what the conditioners alone take in PyTorch, forward (and, in a step,
backward) on inputs at hand: the ratio says how much of their time the whole flow takes.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgen.bench.flow_peers import Peer, nflows_peer, zuko_peer
from fastgen.bench.measure import Call
from fastgen.bench.results import Row
from fastgen.bench.suites import Measured, Options, RedGate, compiled, gradients, installed, say, step, timed
from fastgen.conformance.calls import forced
from fastgen.conformance.measure import relative_error
from fastgen.models import MAF, NeuralSplineFlow
from fastgen.models.flow import Flow
from fastgen.nn import Compose, MaskedAutoregressive
from fastgen.ops.registry import Cost

# How far a peer with our weights may be from us in float64: further, and it computes something else.
_SAME_NUMBERS = 1e-9


@dataclass(frozen=True)
class Subject:
    """A flow, described in a few words, and what is measured of it: (pass, batch)."""

    name: str
    size: str
    make: Callable[[], Flow]
    measured: tuple[tuple[str, int], ...]
    peer: tuple[str, Callable[[Flow], Peer]]

    def case(self, batch: int) -> str:
        return f"{self.size}, batch {batch}"

    def build(self, device: str) -> Flow:
        """The flow with its initial weights, the same in every call."""
        torch.manual_seed(0)
        return self.make().to(device)


def _zuko_maf() -> Flow:
    """zuko's MAF: plain masked networks, a soft clip of the scale, orders that alternate."""
    layers = [
        MaskedAutoregressive(
            64, (128, 128), order=torch.arange(64) if i % 2 == 0 else torch.arange(63, -1, -1), scale_map="softclip",
            bound=-math.log(1e-3),
        )
        for i in range(3)
    ]  # fmt: skip
    return Flow(Compose(layers), (64,))


EVALUATED = (("log_prob", 4096), ("sample", 4096), ("log_prob", 64), ("sample", 64), ("log_prob", 1), ("sample", 1))
# What a call costs that compares the weights.
_UNFROZEN = "log_prob, unfrozen"
SUBJECTS = (
    Subject(
        "NeuralSplineFlow",
        "8 couplings, D=16, 2x128, K=8",
        lambda: NeuralSplineFlow(16),
        (*EVALUATED, (_UNFROZEN, 1), ("step", 4096)),
        ("nflows", nflows_peer),
    ),
    Subject("MAF", "3 MLPs, D=64, 2x128", _zuko_maf, (("sample", 256), ("log_prob", 256)), ("zuko", zuko_peer)),
    Subject(
        "MAF",
        "3 MADEs, D=64, 2x128",
        lambda: MAF(64, transforms=3),
        (("sample", 256), ("log_prob", 256)),
        ("nflows", nflows_peer),
    ),
)


def measured() -> list[Measured]:
    every = [(subject, pass_, batch) for subject in SUBJECTS for pass_, batch in subject.measured]
    return [(_name(*case), functools.partial(_measure, *case)) for case in every]


def _name(subject: Subject, pass_: str, batch: int) -> str:
    return f"{subject.name}, {subject.case(batch)}, {pass_}"


def _measure(subject: Subject, pass_: str, batch: int, options: Options) -> Iterator[Row]:
    flow = subject.build(options.device)
    if pass_ not in ("step", _UNFROZEN):
        flow.freeze()
    flow.train(pass_ == "step")
    torch.manual_seed(1)
    x = torch.randn(batch, flow.features, device=options.device)
    peer_name, make_peer = subject.peer
    peer = installed(make_peer, flow) if "peers" in options.against else None
    title = _name(subject, pass_, batch)
    error = _gate(title, flow, x, pass_, make_peer if peer else None)
    say(f"flows {title}: the numbers are right (error {error:.1e}), timing")
    methods_of = _steps if pass_ == "step" else _evaluations
    with torch.set_grad_enabled(pass_ == "step"):
        row = timed(
            f"flows/{subject.name}",
            subject.case(batch),
            pass_,
            methods_of(flow, x, pass_, {peer_name: peer} if peer else {}, options),
            options,
            error=error,
            cost=_cost(flow, x, pass_),
            aside=("conditioners",),
            metrics=lambda timings: {
                "conditioners": timings["fastgen"].median_s / timings["conditioners"].median_s,
                "rows_per_s": batch / timings["fastgen"].median_s,
            },
        )
    yield row


def _evaluations(flow: Flow, x: Tensor, pass_: str, peers: dict[str, Peer], options: Options) -> dict[str, Call]:
    """Calls that score `x`, or draw as many samples."""
    scores, (batch, features) = pass_.startswith("log_prob"), x.shape

    def call(function: Callable[[Tensor], Tensor]) -> Call:
        """Of a function that scores data, or that makes it of noise."""
        return lambda: function(x if scores else torch.randn(batch, features, device=x.device))

    def whole(flow: Flow | Peer) -> Call:
        return (lambda: flow.log_prob(x)) if scores else lambda: flow.sample(batch)

    methods = {"fastgen": whole(flow)}
    function = flow.log_prob if scores else flow.decode
    if "eager" in options.against:
        methods["eager"] = call(forced(function, "reference"))
    if options.compiles:
        methods["compile"] = call(compiled(function))
    methods |= {name: whole(peer) for name, peer in peers.items()}
    nets = _conditioners(flow)
    inputs = [x[:, : net.in_features].contiguous() if hasattr(net, "in_features") else x for net in nets]
    return {**methods, "conditioners": lambda: [net(v) for net, v in zip(nets, inputs, strict=True)]}


def _steps(flow: Flow, x: Tensor, pass_: str, peers: dict[str, Peer], options: Options) -> dict[str, Call]:
    """Steps of AdamW, each of a flow of its own."""

    def adamw(module: nn.Module, loss: Callable[[], Tensor]) -> Call:
        return step(torch.optim.AdamW(module.parameters(), lr=1e-5), loss)

    def own(loss_of: Callable[[Flow], Callable]) -> Call:
        copied = copy.deepcopy(flow)
        loss = loss_of(copied)
        return adamw(copied, lambda: loss(x))

    methods = {"fastgen": own(lambda f: f.loss)}
    if "eager" in options.against:
        methods["eager"] = own(lambda f: forced(f.loss, "reference"))
    if options.compiles:
        methods["compile"] = own(lambda f: compiled(f.loss))
    methods |= {name: adamw(peer.module, lambda p=peer: -p.log_prob(x).mean()) for name, peer in peers.items()}
    nets = nn.ModuleList(_conditioners(copy.deepcopy(flow)))
    inputs = [x[:, : net.in_features].clone().requires_grad_() for net in nets]

    def outputs() -> Tensor:
        return sum(net(v).square().mean() for net, v in zip(nets, inputs, strict=True))

    return {**methods, "conditioners": adamw(nets, outputs)}


def _conditioners(flow: Flow) -> list[nn.Module]:
    """The networks that the transforms ask for their parameters."""
    names = ("transform_net", "autoregressive_net")
    return [getattr(layer, name) for layer in flow.transform.transforms for name in names if hasattr(layer, name)]


def _cost(flow: Flow, x: Tensor, pass_: str) -> Cost:
    """Every weight of the conditioners is read once and multiplied with every row; a step does that three times."""
    weights = [p.numel() for net in _conditioners(flow) for p in net.parameters() if p.dim() == 2]
    times = 3 if pass_ == "step" else 1
    elements = times * (sum(weights) + x.numel()) + x.numel() + len(x)
    return Cost(bytes=elements * x.element_size(), flops=2 * times * sum(weights) * len(x))


def _gate(title: str, flow: Flow, x: Tensor, pass_: str, make_peer: Callable[[Flow], Peer] | None) -> float:
    """The relative error in float32; red where it exceeds that of the layers on their references, or where the peer
    computes other numbers.
    """
    exact_flow = copy.deepcopy(flow).double()
    exact = _numbers(forced(_call(exact_flow, pass_), "reference"), exact_flow, x.double(), pass_)
    if make_peer is not None:
        peer = make_peer(exact_flow)
        difference = relative_error(_numbers(_call(peer, pass_), peer.module, x.double(), pass_), exact)
        if not difference <= _SAME_NUMBERS:
            raise RedGate(f"{title}: the peer with our weights is {difference:.1e} away in float64")
    usual = relative_error(_numbers(forced(_call(flow, pass_), "reference"), flow, x, pass_), exact)
    error = relative_error(_numbers(_call(flow, pass_), flow, x, pass_), exact)
    if not error <= 2 * usual + 1e-6:
        raise RedGate(f"{title}: error {error:.2e}, the reference's {usual:.2e}")
    return error


def _call(flow: Flow | Peer, pass_: str) -> Callable[[Tensor], Tensor]:
    if pass_ == "step":
        return lambda x: -flow.log_prob(x).mean()
    return flow.log_prob if pass_.startswith("log_prob") else flow.decode


def _numbers(call: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, pass_: str) -> Tensor:
    """What the pass computes of `x`: log-densities, data, or the gradients of all parameters."""
    if pass_ == "step":
        return gradients(call(x), module)
    with torch.no_grad():
        return call(x)
