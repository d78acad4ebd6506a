"""Backward through a chain of transforms that rebuilds the activations instead of keeping them.

The chain is cut into segments: a transform with a network, and the layers without one that stand before it. A segment
is one autograd node. Only the last keeps its output; in backward a node takes its output from the node after it,
rebuilds its input by the inverses, differentiates there, and leaves the input to the node before it. The nodes hold
parameters and context as autograd does: a parameter that is overwritten before backward is an error, and gradients
reach the parameters one segment after another, through the usual hooks (DDP overlaps as ever).

What a node replays: the random numbers that a transform drew in forward (dropout), autocast as it was, ActNorm without
its initialisation.

What it costs: the inverses without gradients, then the transforms with them. A transform that offers the four methods
of `Conditioned` runs its conditioner once for both.

Where the gradient will be differentiated itself (`create_graph=True`), the chain is run again as it is written, from
its input, and keeps its activations as any other would.

Refused: transforms that change a buffer whenever they run, as the running statistics of batch normalisation do, since a
replay would change it again.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level as _functorch_level
from torch.autograd import forward_ad as _forward_ad
from torch.utils import _pytree as pytree

from fastgen.nn.arguments import positive
from fastgen.nn.transform import Inverse

# Bounds what the backward of a segment holds, where a chain has no networks.
_LONGEST_SEGMENT = 4

Gradients = Sequence[Tensor | None]


class Conditioned(Protocol):
    """A transform `y = merge(identity, f(transformed; condition(identity)))`, where x and y split into the same
    `identity` and each element goes to one of the two parts: so gradients split and merge as activations do.
    """

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def _condition(self, identity: Tensor, context: Any) -> Tensor: ...

    def _transform(self, transformed: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]: ...

    def _merge(self, identity: Tensor, transformed: Tensor) -> Tensor: ...


@functools.cache
def _is_conditioned(transform: type) -> bool:
    return all(callable(getattr(transform, name, None)) for name in ("_split", "_condition", "_transform", "_merge"))


def is_reversible_here(module: nn.Module, x: Tensor, context: Any) -> bool:
    """Whether autograd records this call, and nothing else does."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    # The parameters of a replica of nn.DataParallel are attributes, which a node would not see.
    if getattr(module, "_is_replica", False):
        return False
    if _functorch_level() is not None or _forward_ad._current_level >= 0:
        return False
    parameters = list(module.parameters())
    # Parameters given by torch.func.functional_call are gone in backward, and may be made of each other.
    if not all(isinstance(p, nn.Parameter) for p in parameters):
        return False
    return any(t.requires_grad for t in (x, *_tensors(context), *parameters))


def run_reversibly(
    transforms: Sequence[nn.Module], x: Tensor, context: Any, *, inverse: bool, drift: Drift
) -> tuple[Tensor, Tensor]:
    """`(y, logabsdet)` of the transforms, or of their inverses, in this order."""
    segments = list(_segments(transforms, inverse))
    every = drift.interval(len(segments), x.dtype)
    chain, tensors = _Chain(x, context, drift), _tensors(context)
    total = segment = None
    for i, steps in enumerate(segments):
        keeps_input = every is not None and i % every == 0
        segment = _Segment(chain, segment, steps, keeps_input=keeps_input, is_last=i == len(segments) - 1)
        x, logabsdet = _Node.apply(segment, x, *tensors, *segment.parameters)
        total = logabsdet if total is None else total + logabsdet
    return x, total


def _segments(transforms: Sequence[nn.Module], inverse: bool) -> Iterator[list[_Step]]:
    segment: list[_Step] = []
    for transform in transforms:
        step = _Step(transform, inverse)
        segment.append(step)
        has_network = step.is_conditioned or next(step.transform.children(), None) is not None
        if has_network or len(segment) == _LONGEST_SEGMENT:
            yield segment
            segment = []
    if segment:
        yield segment


class _Chain:
    """State that the segments of one call share. In backward, `activation` goes from one node to the next."""

    def __init__(self, x: Tensor, context: Any, drift: Drift) -> None:
        self._x, self._version, device = x, x._version, x.device
        # Whether gradients stop at the inputs of a segment, where they are to be differentiated again.
        self.is_cut = False
        leaves, self._spec = pytree.tree_flatten(context)
        self._constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.drift = drift
        self.random = RandomNumbers(device)
        self.autocast = Autocast(device)
        self.activation: Tensor | None = None

    @property
    def num_tensors(self) -> int:
        """How many tensors the context has."""
        return len(self._places)

    def context(self, tensors: Sequence[Tensor]) -> Any:
        """The context with these tensors in the places of its own."""
        leaves = list(self._constants)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self._spec)

    def input_of(self, segment: _Segment, context: Any) -> Tensor:
        """The input of a segment as autograd records it, from the chain's input on."""
        if self._x._version != self._version:
            raise RuntimeError("reversible: the input of the chain was changed in place before its second derivative")
        if segment.recorded is not None:
            x, segment.recorded = segment.recorded, None
            return x
        before, x = [], self._x
        while segment.before is not None:
            segment = segment.before
            before.append(segment)
        for segment in reversed(before):
            # The nodes before this one ask next.
            segment.recorded = x
            x, _ = segment.run(segment.steps, x, context)
        return x


class _Step:
    """A transform or its inverse."""

    def __init__(self, transform: nn.Module, inverse: bool) -> None:
        while type(transform) is Inverse:
            transform, inverse = transform.transform, not inverse
        self.transform = transform
        self.inverse = inverse
        # An unconditional transform changes what the conditioner reads.
        changes = getattr(transform, "unconditional_transform", None) is not None
        self.is_conditioned = _is_conditioned(type(transform)) and not changes
        self.drawn_from: State | None = None
        self.dtype: torch.dtype | None = None

    def run(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context) if self.inverse else self.transform(x, context)

    def rebuild(self, y: Tensor, context: Any) -> Tensor:
        """The input of which `y` is the output."""
        if not self.inverse:
            return self.transform.inverse(y, context)[0].to(self.dtype)
        with without_initialising(self.transform):
            return self.transform(y, context)[0].to(self.dtype)


class _Segment:
    """Steps that make one node, and what their first run has noted for the replay."""

    def __init__(
        self, chain: _Chain, before: _Segment | None, steps: list[_Step], *, keeps_input: bool, is_last: bool
    ) -> None:
        self.chain = chain
        self.before = before
        self.recorded: Tensor | None = None
        self.steps = steps
        # Each once, as a transform may stand in several places.
        self.modules = tuple(dict.fromkeys(module for step in steps for module in step.transform.modules()))
        self.parameters = self.parameters_now()
        self.keeps_input = keeps_input
        self.is_last = is_last
        self.sums: RowSums | None = None

    def parameters_now(self) -> tuple[Tensor, ...]:
        found = (p for module in self.modules for p in module._parameters.values() if p is not None)
        return tuple(dict.fromkeys(found))

    def first_run(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        self.sums = None if self.keeps_input else RowSums.of(x)
        buffers = Buffers(self.modules)
        states, total = [self.chain.random.state()], None
        with self.chain.autocast.restored():
            for step in self.steps:
                step.dtype = x.dtype
                x, logabsdet = step.run(x, context)
                states.append(self.chain.random.state())
                total = logabsdet if total is None else total + logabsdet
        for step, state in zip(self.steps, self.chain.random.drawn(states), strict=True):
            step.drawn_from = state
        buffers.check_unchanged()
        # Detached, since a transform may return its very input, or a tensor that it keeps.
        return x.detach(), total.detach()

    def run(self, steps: list[_Step], x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """Some of the steps again, from their input."""
        total = None
        for step in steps:
            with self.replay(step):
                x, logabsdet = step.run(x, context)
            total = logabsdet if total is None else total + logabsdet
        return x, total

    def replay(self, step: _Step) -> contextlib.AbstractContextManager:
        """Autocast and random numbers as in the first run of the step."""
        if step.drawn_from is None:
            return self.chain.autocast.restored()
        stack = contextlib.ExitStack()
        stack.enter_context(self.chain.autocast.restored())
        stack.enter_context(self.chain.random.replayed(step.drawn_from))
        return stack


class _Node(torch.autograd.Function):
    """`(y, logabsdet)` of a segment. `tensors` are those of the context, then the parameters."""

    @staticmethod
    def forward(ctx: Any, segment: _Segment, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        y, logabsdet = segment.first_run(x, segment.chain.context(tensors[: segment.chain.num_tensors]))
        ctx.segment = segment
        ctx.save_for_backward(x if segment.keeps_input else None, y if segment.is_last else None, *tensors)
        return y, logabsdet

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        segment, chain = ctx.segment, ctx.segment.chain
        x, y, *tensors = ctx.saved_tensors
        _check_parameters(segment)
        if torch.is_grad_enabled():
            return None, *_differentiable_gradients(segment, tensors, grads, ctx.needs_input_grad[1:])
        if segment.is_last:
            chain.drift.start(y.device)
        else:
            y, chain.activation = chain.activation, None

        _, needs_x, *needed = ctx.needs_input_grad
        context = zip(tensors[: chain.num_tensors], needed, strict=False)
        leaves = [tensor.detach().requires_grad_(need) for tensor, need in context]
        wanted = [t for t, n in zip((*leaves, *segment.parameters), needed, strict=True) if n]
        point = _Point(segment, chain.context(leaves), wanted)
        if segment.keeps_input:
            grad_x, found = point.at_input(segment.steps, x, grads, needs_x)
        else:
            x, grad_x, found = point.at_output(segment.steps, y, grads, needs_x)
            chain.drift.add(segment.sums, x)
        chain.activation = x if needs_x else None
        found = iter(found)
        return None, grad_x, *(next(found) if n else None for n in needed)


class _Gate(torch.autograd.Function):
    """An input of a segment, at which gradients stop while the chain is cut."""

    @staticmethod
    def forward(ctx: Any, chain: _Chain, t: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.chain = chain
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, Tensor | None]:
        return None, None if ctx.chain.is_cut else grad


def _differentiable_gradients(
    segment: _Segment, tensors: Sequence[Tensor], grads: Gradients, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of a node in its input, the context and the parameters, which can be differentiated themselves."""
    chain, count = segment.chain, segment.chain.num_tensors
    x = chain.input_of(segment, chain.context(tensors[:count]))
    # What the inputs were made of, parameters too, gets its gradients from other nodes.
    x, *context = (_Gate.apply(chain, t) if t.requires_grad else t for t in (x, *tensors[:count]))
    outputs = segment.run(segment.steps, x, chain.context(context))
    wanted = [t if need else t.detach() for t, need in zip((x, *context, *segment.parameters), needed, strict=True)]
    chain.is_cut = True
    try:
        return _gradients(outputs, grads, wanted, create_graph=True)
    finally:
        chain.is_cut = False


def _check_parameters(segment: _Segment) -> None:
    now = segment.parameters_now()
    if len(now) != len(segment.parameters) or any(a is not b for a, b in zip(now, segment.parameters, strict=True)):
        names = ", ".join(type(step.transform).__name__ for step in segment.steps)
        raise RuntimeError(f"reversible: other parameters than in forward in one of {names}")


class _Point(NamedTuple):
    """Where a segment is differentiated. Its methods take the gradients of y and of logabsdet, and give that of x and
    those of `wanted`: leaves of the context, and parameters.
    """

    segment: _Segment
    context: Any
    wanted: list[Tensor]

    def at_input(
        self, steps: list[_Step], x: Tensor, grads: Gradients, needs_x: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        x = x.detach().requires_grad_(needs_x)
        with torch.enable_grad():
            outputs = self.segment.run(steps, x, self.context)
        grad_x, *found = _gradients(outputs, grads, [x, *self.wanted])
        return grad_x, found

    def at_output(
        self, steps: list[_Step], y: Tensor, grads: Gradients, needs_x: bool
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        *before, last = steps
        if not last.is_conditioned:
            x = y
            for step in reversed(steps):
                with self.segment.replay(step):
                    x = step.rebuild(x, self.context)
            return x, *self.at_input(steps, x, grads, needs_x)
        x, grad_x, found = self.at_output_of_conditioned(last, y, grads, needs_x or bool(before))
        if not before:
            return x, grad_x, found
        x, grad_x, more = self.at_output(before, x, (grad_x, grads[1]), needs_x)
        return x, grad_x, [a if b is None else b if a is None else a + b for a, b in zip(found, more, strict=True)]

    def at_output_of_conditioned(
        self, step: _Step, y: Tensor, grads: Gradients, needs_x: bool
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """Both parts are leaves, so that the conditioner's one output serves the inverse and the derivative."""
        transform: Conditioned = step.transform
        grad_y, grad_logabsdet = grads
        identity, transformed = transform._split(y)
        identity = identity.detach().to(step.dtype).requires_grad_(needs_x)
        with self.segment.replay(step):
            with torch.enable_grad():
                params = transform._condition(identity, self.context)
            transformed, _ = transform._transform(transformed, params.detach(), not step.inverse)
            transformed = transformed.to(step.dtype).requires_grad_(needs_x)
            with torch.enable_grad():
                outputs = transform._transform(transformed, params, step.inverse)
        grad_identity, grad_transformed = transform._split(torch.zeros_like(y) if grad_y is None else grad_y)
        through_params, grad_transformed, *found = _gradients(
            outputs, (grad_transformed, grad_logabsdet), [identity, transformed, *self.wanted]
        )
        x, grad_x = transform._merge(identity.detach(), transformed.detach()), None
        if needs_x:
            grad_identity = grad_identity if through_params is None else grad_identity + through_params
            grad_x = transform._merge(grad_identity, grad_transformed)
        return x, grad_x, found


def _gradients(
    outputs: Sequence[Tensor], grads: Gradients, inputs: Sequence[Tensor], *, create_graph: bool = False
) -> list[Tensor | None]:
    """Gradients in `inputs`; None for those that need none or have no part in the outputs."""
    used = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    used = [pair for pair in used if pair[1] is not None]
    wanted = [t for t in inputs if t.requires_grad]
    if not used or not wanted:
        return [None] * len(inputs)
    with _without_hooks(wanted):
        found = iter(
            torch.autograd.grad(
                [o for o, _ in used], wanted, [g for _, g in used], allow_unused=True, create_graph=create_graph
            )
        )
    return [next(found) if t.requires_grad else None for t in inputs]


def _tensors(context: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(context) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def _without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Tensor hooks of parameters run when the node hands out their gradients, not also when it computes them."""
    hooks = [(t._backward_hooks, dict(t._backward_hooks)) for t in tensors if t._backward_hooks]
    for live, _ in hooks:
        live.clear()
    try:
        yield
    finally:
        for live, kept in hooks:
            live.update(kept)


State = tuple[Tensor, ...]


class RandomNumbers:
    """The generators that modules draw from: the CPU's, and that of `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = None if device.type in ("cpu", "meta") else device

    def state(self) -> State:
        """5 KB of the CPU's generator, 16 bytes of CUDA's."""
        if self._device is None:
            return (torch.get_rng_state(),)
        return torch.get_rng_state(), torch.get_device_module(self._device).get_rng_state(self._device)

    @staticmethod
    def drawn(states: Sequence[State]) -> list[State | None]:
        """For each two states in a row the first, or None where no numbers were drawn between them."""
        if _equal(states[0], states[-1]):
            return [None] * (len(states) - 1)
        return [None if _equal(before, after) else before for before, after in pairwise(states)]

    @contextlib.contextmanager
    def replayed(self, state: State) -> Iterator[None]:
        """Draws from `state` on, and goes on afterwards as if nothing had been drawn."""
        now = self.state()
        self._write(state)
        try:
            yield
        finally:
            self._write(now)

    def _write(self, state: State) -> None:
        torch.set_rng_state(state[0])
        if self._device is not None:
            torch.get_device_module(self._device).set_rng_state(state[1], self._device)


def _equal(a: State, b: State) -> bool:
    return all(map(torch.equal, a, b))


class Autocast:
    """Autocast as it is now, on the CPU and on `device`.

    Its cache of weights is off inside: releases of torch differ in whether a cast that was cached without gradients
    serves a run that needs them.
    """

    def __init__(self, device: torch.device) -> None:
        types = [kind for kind in dict.fromkeys(("cpu", device.type)) if torch.amp.is_autocast_available(kind)]
        self._was = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in types]

    def restored(self) -> contextlib.AbstractContextManager:
        differing = [was for was in self._was if was[2] or torch.is_autocast_enabled(was[0])]
        if not differing:
            return contextlib.nullcontext()
        stack = contextlib.ExitStack()
        for kind, dtype, enabled in differing:
            stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
        return stack


class Buffers:
    """The buffers of some modules before a run."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._versions = [
            (module, name, buffer, buffer._version)
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()
        ]

    def check_unchanged(self) -> None:
        """Raises where the run has changed one, as another run would again."""
        for module, name, buffer, version in self._versions:
            if buffer._version != version and not _initialises(module):
                raise ValueError(
                    f"reversible: {type(module).__name__} changes its {name} whenever it runs, and would again when "
                    "backward replays it; use reversible=False"
                )


def _initialises(module: nn.Module) -> bool:
    """Whether the module sets its parameters by the first batch that it sees in training, as ActNorm does."""
    return hasattr(module, "initialized")


@contextlib.contextmanager
def without_initialising(transform: nn.Module) -> Iterator[None]:
    """Runs modules without letting them take this batch for their first, by which ActNorm initialises itself."""
    modules = [module for module in transform.modules() if _initialises(module) and module.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


# Rows that are measured, spread over the batch.
_ROWS = 64


class Drift:
    """Measures the drift of a chain in backward, and says how many true activations to keep for it.

    The drift of an activation is `|rebuilt - true| / |true|`, over up to 64 rows of the batch. A few numbers stand for
    it in the meantime: the sums of the rows, since for errors of independent signs the square of `sum(e)` has the mean
    `|e|^2`, and the norms of the rows.

    Reading a measurement never waits for a device: its copy to the host starts in the forward pass after, and is read
    in the first one that finds it there.

    Attributes:
        limit: the largest drift that is accepted.
        checkpoint_every: keep the input of every k-th segment; None for none.

    Raises:
        ValueError: `limit` that is not positive, `checkpoint_every` that is not a positive int.
    """

    def __init__(self, limit: float, checkpoint_every: int | None = None) -> None:
        if not limit > 0:
            raise ValueError(f"max_drift: expected a positive number, got {limit!r}")
        if checkpoint_every is not None:
            positive(checkpoint_every=checkpoint_every)
        self.limit = float(limit)
        self.checkpoint_every = None if checkpoint_every is None else int(checkpoint_every)
        self._measured: list[tuple[Tensor, Tensor, Tensor]] = []
        self._largest: Tensor | None = None
        self._is_new = False
        self._reading: _HostCopy | None = None

    def __reduce__(self) -> tuple:
        # Measurements stay with the process.
        return Drift, (self.limit, self.checkpoint_every)

    def interval(self, num_segments: int, dtype: torch.dtype) -> int | None:
        """The k of the next forward pass, where it is one of `num_segments`."""
        if self._is_new and self._reading is None:
            self._reading, self._is_new = _HostCopy(self.largest), False
        if self._reading is not None and self._reading.has_arrived():
            if not self._reading.value <= self.limit:
                self.checkpoint_every = math.ceil((self.checkpoint_every or num_segments) / 2)
            self._reading = None
        # One rounding is more than what is accepted.
        return 1 if torch.finfo(dtype).eps > self.limit else self.checkpoint_every

    def start(self, device: torch.device) -> None:
        """A backward begins."""
        self._measured, self._largest, self._is_new = [], torch.zeros((), device=device), True

    def add(self, true: RowSums, rebuilt: Tensor) -> None:
        self._measured.append((*true, _sums(_some_rows(rebuilt))))

    @property
    def largest(self) -> Tensor | None:
        """The largest drift of an activation in the last backward, a scalar; None before any backward."""
        if self._measured:
            true, norms, rebuilt = map(torch.stack, zip(*self._measured, strict=True))
            # A row that was not finite cannot drift; one that has become so has drifted all the way.
            finite = true.isfinite() & norms.isfinite()
            error = (rebuilt - true).where(finite, 0).norm(dim=1)
            ratio = error / norms.where(finite, 0).norm(dim=1).clamp_min(torch.finfo(error.dtype).tiny)
            self._measured, self._largest = [], ratio.nan_to_num(nan=math.inf, posinf=math.inf).max()
        return self._largest


class RowSums(NamedTuple):
    """Sums and norms of the measured rows of an activation."""

    sums: Tensor
    norms: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        rows = _some_rows(x)
        return cls(_sums(rows), torch.linalg.vector_norm(rows, dim=1, dtype=_at_least_float32(rows)))


def _some_rows(x: Tensor) -> Tensor:
    return x.detach()[:: max(1, math.ceil(len(x) / _ROWS))].unsqueeze(-1).flatten(1)


def _sums(rows: Tensor) -> Tensor:
    return rows.sum(1, dtype=_at_least_float32(rows))


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _HostCopy:
    """A scalar on its way to the CPU; `value` is good to read once it `has_arrived`."""

    def __init__(self, value: Tensor) -> None:
        self.value, self._event = value, None
        if value.device.type != "cpu":
            self.value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self.value.copy_(value, non_blocking=True)
            self._event = torch.Event(value.device)
            self._event.record()

    def has_arrived(self) -> bool:
        return self._event is None or self._event.query()
