"""The layers of a flow as a program of `fastgen.ops.coupling_flow`: which can be, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.actnorm import ActNorm
from fastgen.nn.compose import Compose
from fastgen.nn.conditioner import MLP, ResidualBlock, ResidualNet
from fastgen.nn.coupling import AdditiveCoupling, AffineCoupling, FeatureCoupling, RationalQuadraticCoupling
from fastgen.nn.linear import LULinear
from fastgen.nn.permutation import Permutation, RandomPermutation, ReversePermutation
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
        if not 2 <= layer.num_bins <= 64:
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
