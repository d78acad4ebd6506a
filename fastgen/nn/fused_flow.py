"""A flow's transform as one call: packed for the CPU, captured as a graph on a GPU; in eval mode without gradients.

A flow on a small batch is hundreds of small operations that each wait for the last. On a CPU the weights of all layers
are packed once and the whole flow is one call of `fastgen.ops.coupling_flow`; on a GPU its layers are captured as one
CUDA graph for each batch size and direction. The numbers are those of the layers, up to rounding.

`fastgen.nn.frozen` tells when what was packed is used again: after `freeze` without looking at the weights, else all
their bits are compared at every call. A graph reads the weights where they are.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.actnorm import ActNorm
from fastgen.nn.compose import Compose
from fastgen.nn.conditioner import MLP, ResidualBlock, ResidualNet
from fastgen.nn.coupling import AdditiveCoupling, AffineCoupling, FeatureCoupling, RationalQuadraticCoupling
from fastgen.nn.frozen import KeptOfModules, Originals, Structure, are_plain
from fastgen.nn.linear import LULinear
from fastgen.nn.permutation import Permutation, RandomPermutation, ReversePermutation
from fastgen.ops.coupling_flow import COUPLING_FLOW
from fastgen.ops.coupling_flow.program import (
    ACTIVATIONS,
    Affine,
    Dense,
    FlowProgram,
    Gated,
    Spline,
    mlp_layers,
    residual_layers,
)
from fastgen.ops.extensions import UNUSABLE
from fastgen.ops.registry import BACKENDS, is_forced
from fastgen.ops.spline import MAX_BINS

__all__ = ["FusedFlow", "fused_flow_refusal"]

# Elements of the input beyond which launches are no longer what costs; a graph holds everything between in and out.
_LARGEST_CAPTURED_INPUT = 2**18
_MOST_GRAPHS = 16
_UNCAPTURABLE = "uncapturable"


class FusedFlow:
    """Runs a transform, as one call wherever that is possible. Copies and pickles of it start empty.

    >>> fused = FusedFlow()
    >>> z, logabsdet = fused(flow.transform, x, context)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets packed weights, captured graphs, and that a flow was refused; the next call makes them anew."""
        self._kept = KeptOfModules()
        self._graphs: OrderedDict[tuple, _Graph | Originals | str] = OrderedDict()
        # The transform that cannot be packed, so that it is looked at once; with its dtype and device, which change.
        self._refused: tuple = ()

    def freeze(self, transform: nn.Module) -> None:
        """Takes the weights of `transform` as they are until `reset`."""
        self.reset()
        self._kept.freeze_modules([transform])

    def __reduce__(self) -> tuple:
        return FusedFlow, ()

    def __call__(
        self, transform: nn.Module, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`transform(x, context)`, or `transform.inverse(x, context)`."""
        found = None
        inputs = (x,) if context is None else (x, context)
        if not transform.training and are_plain(inputs) and not _records(transform, inputs):
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
        self._refused = ()

        def packed() -> _Packed | None:
            if fused_flow_refusal(transform):
                self._refused = (weakref.ref(transform), *_kind(transform))
                return None
            return _Packed.of(transform)

        found = self._kept.of(packed, [transform])
        if self._refused:
            self._kept.forget()
        elif not self._kept.is_frozen and self._kept.structure.is_training():
            return None
        if found is None or not found.takes(x, context):
            return None
        if COUPLING_FLOW.choose((x, context, found.weights)) == "reference":
            return None
        if context is not None:
            context = context.contiguous()
        call = COUPLING_FLOW.call["cpp"]["coupling_flow"]
        return call(x.contiguous(), context, found.weights, found.program, inverse)

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
        if any(module.training for module in transform.modules()):
            return None
        # Capturing is for batches, and weights, that come again.
        weights = Originals([*transform.parameters(), *transform.buffers()])
        again = isinstance(graph, Originals) and graph.hold(weights.tensors)
        self._graphs[key] = graph = _captured(transform, x, context, inverse) if again else weights
        self._graphs.move_to_end(key)
        if len(self._graphs) > _MOST_GRAPHS:
            self._graphs.popitem(last=False)
        return graph(x, context) if isinstance(graph, _Graph) else None


class _Packed(NamedTuple):
    """The weights and the program of a transform."""

    weights: Tensor
    program: Tensor
    features: int
    context_features: int

    @classmethod
    def of(cls, transform: nn.Module) -> _Packed:
        weights, program = program_of(transform)
        return cls(weights, program, *program[:2].tolist())

    def takes(self, x: Tensor, context: Tensor | None) -> bool:
        """Whether these are inputs of the flow; the layers say what is wrong with others."""
        if x.dim() != 2 or x.shape[1] != self.features or x.dtype != self.weights.dtype:
            return False
        if context is None:
            return self.context_features == 0
        return context.dtype == x.dtype and context.is_cpu and context.shape == (len(x), self.context_features)


def _records(transform: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a call is recorded by autograd."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *transform.parameters()))


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


class _Graph:
    """One direction of a transform at one batch size: a captured CUDA graph, or the same operations where there is no
    CUDA. It reads the parameters where they are; what frozen layers keep of them is why a write makes it stale.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, transform: nn.Module, x: Tensor, context: Tensor | None, inverse: bool) -> None:
        self._transform, self._structure = transform, Structure([transform])
        self._reads = Originals(self._structure.tensors([transform]))
        self._x, self._context = x.clone(), None if context is None else context.clone()
        self._inverse = inverse
        self._graph: torch.cuda.CUDAGraph | None = None
        if x.is_cuda:
            self._graph = torch.cuda.CUDAGraph()
            self._capture(x.device)

    def stale(self, transform: nn.Module) -> bool:
        tensors = self._structure.tensors([transform])
        made_so = tensors is not None and not self._structure.is_training()
        return not (made_so and self._reads.can_be_read_in_place(tensors))

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
        run = self._transform.inverse if self._inverse else self._transform
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


_COUPLINGS = (AffineCoupling, AdditiveCoupling, RationalQuadraticCoupling)
_PERMUTATIONS = (Permutation, ReversePermutation, RandomPermutation)
_ACTIVATION_OF: dict[Any, str] = {
    **{function: name for name, function in ACTIVATIONS.items()},
    torch.relu: "relu",
    F.tanh: "tanh",
    F.sigmoid: "sigmoid",
}
# By what they print: an argument that is not the default is another function.
_ACTIVATION_OF_MODULE = {
    repr(module): name
    for name, module in {
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(),
        "elu": nn.ELU(),
        "silu": nn.SiLU(),
        "gelu": nn.GELU(),
        "tanh": nn.Tanh(),
        "sigmoid": nn.Sigmoid(),
        "identity": nn.Identity(),
    }.items()
}


def fused_flow_refusal(transform: nn.Module) -> str:
    """Why a transform cannot be packed into one call on the CPU; empty where it can."""
    if UNUSABLE["cpp"]:
        return UNUSABLE["cpp"]
    layers = list(_layers_of(transform))
    reason = next(filter(None, map(_layer_refusal, layers)), "")
    if reason or not any(isinstance(layer, FeatureCoupling) for layer in layers):
        return reason or "no coupling among its layers"
    features = {_features_of(layer) for layer in layers}
    tensors = [*transform.parameters(), *(b for b in transform.buffers() if b.is_floating_point())]
    dtypes = {tensor.dtype for tensor in tensors}
    if len(features) > 1:
        return f"layers of {sorted(features)} features"
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        return f"parameters in {', '.join(sorted(map(str, dtypes)))}"
    if any(tensor.device.type != "cpu" or tensor.is_inference() for tensor in tensors):
        return "parameters that are not ordinary tensors on the CPU"
    if any(_is_hooked(module) for module in transform.modules()):
        return "a module with hooks or a forward of its own"
    contexts = {_context_features(layer.transform_net) for layer in layers if isinstance(layer, FeatureCoupling)}
    return "" if len(contexts) == 1 else f"conditioners with contexts of {sorted(map(str, contexts))} features"


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _layers_of(transform: nn.Module) -> Iterator[nn.Module]:
    """The transform's layers in the order of `forward`, those of a `Compose` in its place."""
    if type(transform) is Compose:
        for layer in transform.transforms:
            yield from _layers_of(layer)
    else:
        yield transform


def _features_of(layer: nn.Module) -> int:
    return len(layer.permutation) if isinstance(layer, Permutation) else layer.features


def _layer_refusal(layer: nn.Module) -> str:
    kind = type(layer)
    if kind in (ActNorm, LULinear):
        return ""
    if kind in _PERMUTATIONS:
        return "" if layer.dim == 1 else f"a permutation of dimension {layer.dim}"
    if kind not in _COUPLINGS:
        return f"{kind.__name__} is not a layer that can be packed"
    if layer.unconditional_transform is not None:
        return "a coupling with an unconditional transform"
    if not len(layer.identity_features) or not len(layer.transform_features):
        return "a coupling that reads or transforms nothing"
    if kind is RationalQuadraticCoupling:
        if layer.tails is None:
            return "splines without tails, which check their inputs"
        if not 2 <= layer.num_bins <= MAX_BINS:
            return f"splines of {layer.num_bins} bins"
    return _conditioner_refusal(layer.transform_net)


def _conditioner_refusal(net: nn.Module) -> str:
    if type(net) not in (MLP, ResidualNet):
        return f"{type(net).__name__} is not a conditioner that can be packed"
    linears = net.layers if type(net) is MLP else [net.initial_layer, net.final_layer]
    activations = {_activation_name(net.activation)} if type(net) is MLP else set()
    for block in net.blocks if type(net) is ResidualNet else ():
        if type(block) is not ResidualBlock or block.use_batch_norm:
            return "a residual block with batch norm"
        activations.add(_activation_name(block.activation))
        linears = [*linears, *block.linear_layers, *([block.context_layer] if block.context_layer is not None else [])]
    if any(type(linear) is not nn.Linear or linear.bias is None for linear in linears):
        return "a conditioner with layers that are not plain nn.Linear with a bias"
    if len(activations) > 1 or "" in activations:
        return "an activation that the kernel does not know"
    return ""


def _activation_name(activation: Any) -> str:
    """Its name in the program; empty where it has none."""
    if isinstance(activation, nn.Module):
        return _ACTIVATION_OF_MODULE.get(repr(activation), "")
    return _ACTIVATION_OF.get(activation, "")


def _context_features(net: nn.Module) -> int:
    return net.context_features or 0


@torch.no_grad()
def program_of(transform: nn.Module) -> tuple[Tensor, Tensor]:
    """The packed weights and the program of a transform that is not refused."""
    layers = list(_layers_of(transform))
    couplings = [layer for layer in layers if isinstance(layer, FeatureCoupling)]
    dtype = next(transform.parameters()).dtype
    program = FlowProgram(_features_of(layers[0]), _context_features(couplings[0].transform_net), dtype)
    for layer in layers:
        if isinstance(layer, FeatureCoupling):
            _write_coupling(program, layer)
        elif isinstance(layer, Permutation):
            program.permutation(layer.permutation.tolist())
        elif isinstance(layer, ActNorm):
            program.elementwise(layer.log_scale.exp(), layer.shift, layer.log_scale.sum())
        else:
            weight = layer.weight()
            program.linear(weight, layer.bias, weight.double().inverse(), layer.logabsdet())
    return program.finish()


def _write_coupling(program: FlowProgram, coupling: FeatureCoupling) -> None:
    identity, transformed = coupling.identity_features.tolist(), coupling.transform_features.tolist()
    net = coupling.transform_net
    layers, activation = _conditioner_layers(net, len(identity))
    program.coupling(identity, transformed, layers, _transform_of(coupling), activation)


def _conditioner_layers(net: nn.Module, num_identity: int) -> tuple[Sequence[Dense | Gated], str]:
    if type(net) is MLP:
        return mlp_layers(list(map(_parameters, net.layers))), _activation_name(net.activation)
    blocks = []
    for block in net.blocks:
        gates = [] if block.context_layer is None else [block.context_layer]
        blocks.append([_parameters(linear) for linear in (*block.linear_layers, *gates)])
    layers = residual_layers(_parameters(net.initial_layer), blocks, _parameters(net.final_layer), num_identity)
    return layers, _activation_name(net.blocks[0].activation) if blocks else "relu"


def _parameters(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    return linear.weight, linear.bias


def _transform_of(coupling: FeatureCoupling) -> Affine | Spline:
    if isinstance(coupling, AdditiveCoupling):
        return Affine("additive")
    if isinstance(coupling, AffineCoupling):
        return Affine(coupling.scale_map, coupling.bound if coupling.scale_map == "tanh" else coupling.min_scale)
    return Spline(
        coupling.num_bins, coupling.tails, coupling.tail_bound, coupling.min_bin_width, coupling.min_bin_height,
        coupling.min_derivative, softmax_scale=coupling.softmax_scale,
    )  # fmt: skip
