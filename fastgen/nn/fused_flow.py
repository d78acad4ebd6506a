"""A flow's transform as one call: packed for the CPU, captured as a graph on a GPU; in eval mode without gradients.

A flow on a small batch is hundreds of small operations that each wait for the last. On a CPU the weights of all layers
are packed once and the whole flow is one call of `fastgen.ops.coupling_flow`; on a GPU its layers are captured as one
CUDA graph for each batch size and direction. The numbers are those of the layers, up to rounding.

Packed weights are compared with the parameters at every call, in a few microseconds: their versions, which every
in-place operation counts up, their addresses, and eight values of each, since a write through `.data` changes nothing
else. What escapes is a write through `.data` to other elements alone, and a submodule whose mode is changed by itself;
`reset` forgets what was packed, and that a flow was refused.
"""

from __future__ import annotations

import operator
import weakref
from collections import OrderedDict

import torch
from torch import Tensor, nn

from fastgen.nn.fused_program import fused_flow_refusal, program_of
from fastgen.ops._registry import BACKENDS, is_forced
from fastgen.ops.coupling_flow import COUPLING_FLOW

__all__ = ["FusedFlow", "fused_flow_refusal"]

# Elements of the input beyond which launches are no longer what costs; a graph holds everything between in and out.
_LARGEST_CAPTURED_INPUT = 2**18
_MOST_GRAPHS = 16
_SEEN_ONCE, _UNCAPTURABLE = "seen once", "uncapturable"


class FusedFlow:
    """Runs a transform, as one call wherever that is possible. Copies and pickles of it start empty.

    >>> fused = FusedFlow()
    >>> z, logabsdet = fused(flow.transform, x, context)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets packed weights and captured graphs; the next call makes them anew."""
        self._packed: _Packed | None = None
        self._graphs: OrderedDict[tuple, _Graph | str] = OrderedDict()
        # The transform that cannot be packed, so that it is looked at once; with its dtype and device, which change.
        self._refused: tuple = ()

    def __reduce__(self) -> tuple:
        return FusedFlow, ()

    def __call__(
        self, transform: nn.Module, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`transform(x, context)`, or `transform.inverse(x, context)`."""
        found = None
        if not torch.compiler.is_compiling() and not transform.training and not _records(transform, x, context):
            if x.is_cpu:
                found = self._on_cpu(transform, x, context, inverse)
            elif x.is_cuda and not torch.cuda.is_current_stream_capturing():
                found = self._on_gpu(transform, x, context, inverse)
        if found is not None:
            return found
        return transform.inverse(x, context) if inverse else transform(x, context)

    def _on_cpu(
        self, transform: nn.Module, x: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor] | None:
        """The result of the packed flow; None where the layers have to run."""
        if torch.is_autocast_enabled("cpu") or _forced_elsewhere() or self._is_refused(transform):
            return None
        packed = self._packed
        if packed is None or packed.stale(transform):
            packed = self._packed = self._pack(transform)
        if packed is None or not packed.takes(x, context):
            return None
        if COUPLING_FLOW.choose((x, context, packed.weights)) == "reference":
            return None
        if context is not None:
            context = context.contiguous()
        return COUPLING_FLOW.call["cpp"]["coupling_flow"](
            x.contiguous(), context, packed.weights, packed.program, inverse
        )

    def _pack(self, transform: nn.Module) -> _Packed | None:
        if fused_flow_refusal(transform):
            self._refused = (weakref.ref(transform), *_kind(transform))
            return None
        # Not remembered: a mode changes.
        return None if any(module.training for module in transform.modules()) else _Packed(transform)

    def _is_refused(self, transform: nn.Module) -> bool:
        return bool(self._refused) and self._refused[0]() is transform and self._refused[1:] == _kind(transform)

    def _on_gpu(
        self, transform: nn.Module, x: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor] | None:
        """The result of a captured graph; None where the layers have to run."""
        if not 0 < x.numel() <= _LARGEST_CAPTURED_INPUT or torch.is_autocast_enabled("cuda"):
            return None
        shapes = [(t.shape, t.dtype, t.device) for t in (x, context) if t is not None]
        key = (inverse, *shapes)
        graph = self._graphs.get(key)
        if graph is _UNCAPTURABLE:
            return None
        if isinstance(graph, _Graph) and not graph.stale(transform):
            return graph(x, context)
        # Capturing is for batches that come again.
        graph = _captured(transform, x, context, inverse) if key in self._graphs else _SEEN_ONCE
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        if len(self._graphs) > _MOST_GRAPHS:
            self._graphs.popitem(last=False)
        return graph(x, context) if isinstance(graph, _Graph) else None


class _Snapshot:
    """What a transform is made of, to tell later whether it still is: its modules, hooks and the tensors' versions.

    Attributes:
        tensors: its parameters and buffers.
    """

    def __init__(self, transform: nn.Module) -> None:
        self.transform = weakref.ref(transform)
        self.tensors = [*transform.parameters(), *transform.buffers()]
        # Where every submodule, parameter and buffer is held, under which name, and what is there.
        self._slots: list[dict] = []
        self._names: list[str] = []
        self._held: list = []
        self._containers, self._hooks = [], []
        for module in transform.modules():
            for slot in (module._modules, module._parameters, module._buffers):
                self._slots += [slot] * len(slot)
                self._names += slot.keys()
                self._held += slot.values()
            self._containers += [module._modules] if module._modules else []
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        self._sizes = list(map(len, self._containers))
        self._versions = list(map(_VERSION, self.tensors))

    def stale(self, transform: nn.Module) -> bool:
        return (
            self.transform() is not transform
            or list(map(_VERSION, self.tensors)) != self._versions
            or list(map(len, self._containers)) != self._sizes
            or any(self._hooks)
            or self._replaced()
        )

    def _replaced(self) -> bool:
        """Whether a submodule, a parameter or a buffer is another object, or gone."""
        try:
            return not all(map(operator.is_, map(operator.getitem, self._slots, self._names), self._held))
        except KeyError:
            return True


_VERSION = operator.attrgetter("_version")


class _Packed(_Snapshot):
    """The weights and the program of a transform."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__(transform)
        self._watch = torch.ops.fastgen._watch(self.tensors)
        weakref.finalize(self, torch.ops.fastgen._watch_end, self._watch)
        self.weights, self.program = program_of(transform)
        self.features, self.context_features = self.program[:2].tolist()

    def stale(self, transform: nn.Module) -> bool:
        return super().stale(transform) or torch.ops.fastgen._watch_changed(self._watch)

    def takes(self, x: Tensor, context: Tensor | None) -> bool:
        """Whether these are inputs of the flow; the layers say what is wrong with others."""
        if x.dim() != 2 or x.shape[1] != self.features or x.dtype != self.weights.dtype:
            return False
        if context is None:
            return self.context_features == 0
        return context.dtype == x.dtype and context.is_cpu and context.shape == (len(x), self.context_features)


def _records(transform: nn.Module, x: Tensor, context: Tensor | None) -> bool:
    """Whether a call is recorded by autograd."""
    if not torch.is_grad_enabled():
        return False
    inputs = x.requires_grad or (context is not None and context.requires_grad)
    return inputs or any(parameter.requires_grad for parameter in transform.parameters())


def _kind(transform: nn.Module) -> tuple[torch.dtype, torch.device] | tuple[()]:
    """The dtype and the device of a transform."""
    first = next(transform.parameters(), None)
    return () if first is None else (first.dtype, first.device)


def _forced_elsewhere() -> bool:
    return not is_forced("cpp") and any(map(is_forced, BACKENDS))


def _captured(transform: nn.Module, x: Tensor, context: Tensor | None, inverse: bool) -> _Graph | str:
    try:
        return _Graph(transform, x, context, inverse)
    except RuntimeError:
        # A layer waits for the device, or copies to the host: it runs as it is.
        return _UNCAPTURABLE


class _Graph(_Snapshot):
    """One direction of a transform at one batch size: a captured CUDA graph, or the same operations where there is no
    CUDA. It reads the parameters where they are; what layers keep of them is why it gets stale.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, transform: nn.Module, x: Tensor, context: Tensor | None, inverse: bool) -> None:
        super().__init__(transform)
        self._addresses = [tensor.data_ptr() for tensor in self.tensors]
        self._x, self._context = x.clone(), None if context is None else context.clone()
        self._inverse = inverse
        self._graph: torch.cuda.CUDAGraph | None = None
        if x.is_cuda:
            self._graph = torch.cuda.CUDAGraph()
            self._capture(x.device)

    def stale(self, transform: nn.Module) -> bool:
        return super().stale(transform) or [tensor.data_ptr() for tensor in self.tensors] != self._addresses

    @torch.no_grad()
    def __call__(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        self._x.copy_(x)
        if context is not None:
            self._context.copy_(context)
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        # The next replay writes over them.
        return self._y.clone(), self._logabsdet.clone()

    def _run(self) -> None:
        transform = self.transform()
        run = transform.inverse if self._inverse else transform
        self._y, self._logabsdet = run(self._x, self._context)

    def _capture(self, device: torch.device) -> None:
        # A first run outside the capture makes libraries allocate, and layers cache, what they need.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._run()
        torch.cuda.current_stream(device).wait_stream(stream)
        with torch.cuda.graph(self._graph):
            self._run()
