"""Flows of nflows and zuko with the weights of ours, so that they compute the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgen.models.flow import Flow
from fastgen.nn import MaskedAutoregressive, RationalQuadraticCoupling


class Peer(NamedTuple):
    """A flow of another library: its module, and the calls that `fastgen.models.Flow` has."""

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    decode: Callable[[Tensor], Tensor]


def nflows_peer(flow: Flow) -> Peer:
    """A flow of couplings by splines, or of masked autoregressive affine layers and permutations.

    Raises:
        ImportError: nflows is not installed.
    """
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow as NFlow
    from nflows.transforms import CompositeTransform

    transform = CompositeTransform([_nflows_layer(layer) for layer in flow.transform.transforms])
    transform.load_state_dict({f"_{name}": value for name, value in flow.transform.state_dict().items()})
    peer = NFlow(transform, StandardNormal(flow.shape)).to(flow.device, flow.dtype).train(flow.training)
    return Peer(peer, peer.log_prob, peer.sample, lambda z: peer._transform.inverse(z)[0])


def _nflows_layer(layer: nn.Module) -> nn.Module:
    from nflows import transforms
    from nflows.nn.nets import ResidualNet

    if isinstance(layer, RationalQuadraticCoupling):
        mask = torch.zeros(layer.features).index_fill(0, layer.transform_features.cpu(), 1)
        net = layer.transform_net
        network = {"hidden_features": net.hidden_features, "num_blocks": len(net.blocks)}
        return transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, lambda a, b: ResidualNet(a, b, **network), num_bins=layer.num_bins, tails=layer.tails,
            tail_bound=layer.tail_bound,
        )  # fmt: skip
    if isinstance(layer, MaskedAutoregressive):
        net = layer.autoregressive_net
        return transforms.MaskedAffineAutoregressiveTransform(
            layer.features, net.final_layer.in_features, num_blocks=len(net.blocks)
        )
    return transforms.ReversePermutation(len(layer.permutation))


def zuko_peer(flow: Flow) -> Peer:
    """A masked autoregressive flow of `MaskedMLP`s, the order of the features reversed from layer to layer.

    Raises:
        ImportError: zuko is not installed.
    """
    import zuko

    layers = list(flow.transform.transforms)
    hidden = layers[0].autoregressive_net.hidden_features
    peer = zuko.flows.MAF(flow.features, transforms=len(layers), hidden_features=hidden)
    for own, other in zip(layers, peer.transform.transforms, strict=True):
        linears = [module for module in other.hyper if isinstance(module, nn.Linear)]
        for ours, theirs in zip(own.autoregressive_net.masked_linears(), linears, strict=True):
            theirs.load_state_dict({"weight": ours.weight, "bias": ours.bias}, strict=False)
        # zuko has the shift of a feature in front of its scale.
        last = linears[-1]
        for parameter in (last.weight, last.bias):
            parameter.data = parameter.data.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    peer.to(flow.device, flow.dtype).train(flow.training)
    return Peer(peer, lambda x: peer().log_prob(x), lambda n: peer().sample((n,)), lambda z: peer().transform.inv(z))
