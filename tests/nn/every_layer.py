"""A small case of every layer of `fastgen.nn`, for tests of what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastgen import nn as layers
from fastgen.nn.unet import SpatialAttention, TimeEmbedding

MASK = [1, 0, 1, 0]
_NET = partial(layers.ResidualNet, hidden_features=6, num_blocks=1)
_CONV = partial(layers.ConvNet, hidden_channels=6)
VECTORS, IMAGES = (2, 4), (2, 4, 4, 4)


@dataclass(frozen=True)
class Layer:
    """How a layer is made, and the shapes of what it is called with; an int stands for that many classes."""

    kind: Callable[..., nn.Module]
    arguments: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...] | int, ...] = (IMAGES,)

    def make(self, **changed: Any) -> nn.Module:
        return self.kind(**{**self.arguments, **changed})

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)

        def drawn(shape: tuple[int, ...] | int) -> Tensor:
            if isinstance(shape, int):
                return torch.arange(2) % shape
            return torch.randn(shape, generator=generator).to(dtype)

        return tuple(drawn(shape) for shape in self.shapes)


LAYERS: dict[str, Layer] = {
    "ActNorm": Layer(layers.ActNorm, {"features": 4}),
    "AdaptiveInstanceNorm": Layer(
        layers.AdaptiveInstanceNorm, {"num_channels": 4, "style_features": 3}, (IMAGES, (2, 3))
    ),
    "AdditiveCoupling": Layer(
        layers.AdditiveCoupling, {"mask": MASK, "transform_net_create_fn": _NET}, (VECTORS,)
    ),
    "AffineCoupling": Layer(layers.AffineCoupling, {"mask": MASK, "transform_net_create_fn": _CONV}),
    "BatchNormLeakyReLU": Layer(layers.BatchNormLeakyReLU, {"channels": 4, "negative_slope": 0.2}),
    "BiasAct": Layer(layers.BiasAct, {"num_channels": 4}),
    "CausalConv1d": Layer(
        layers.CausalConv1d, {"in_channels": 4, "out_channels": 3, "kernel_size": 2}, ((2, 4, 5),)
    ),
    "ConditionalBatchNorm": Layer(
        layers.ConditionalBatchNorm, {"num_channels": 4, "num_classes": 3}, (IMAGES, 3)
    ),
    "ConvNet": Layer(
        layers.ConvNet,
        {"in_channels": 4, "out_channels": 2, "hidden_channels": 6, "context_features": 3},
        (IMAGES, (2, 3)),
    ),
    "DownRightShiftedConv2d": Layer(layers.DownRightShiftedConv2d, {"in_channels": 4, "out_channels": 3}),
    "DownRightShiftedConvTranspose2d": Layer(
        layers.DownRightShiftedConvTranspose2d, {"in_channels": 4, "out_channels": 3}
    ),
    "DownShiftedConv2d": Layer(layers.DownShiftedConv2d, {"in_channels": 4, "out_channels": 3}),
    "DownShiftedConvTranspose2d": Layer(layers.DownShiftedConvTranspose2d, {"in_channels": 4, "out_channels": 3}),
    "EqualizedConv2d": Layer(layers.EqualizedConv2d, {"in_channels": 4, "out_channels": 3, "down": 2}),
    "EqualizedLinear": Layer(layers.EqualizedLinear, {"in_features": 4, "out_features": 3}, (VECTORS,)),
    "GatedPixelCNNLayer": Layer(
        layers.GatedPixelCNNLayer,
        {"mask_type": "B", "in_channels": 3, "channels": 3, "kernel_size": 3, "condition_channels": 2,
         "skip_channels": 3, "color_groups": 3},
        ((2, 3, 4, 4), (2, 3, 4, 4), (2, 2)),
    ),
    "GatedResnet": Layer(
        layers.GatedResnet,
        {"conv": layers.DownShiftedConv2d, "channels": 4, "shortcut_channels": 2, "condition_channels": 3},
        (IMAGES, (2, 2, 4, 4), (2, 3)),
    ),
    "GroupNormSiLU": Layer(layers.GroupNormSiLU, {"num_groups": 2, "num_channels": 4}),
    "HorizontalStackConv2d": Layer(
        layers.HorizontalStackConv2d,
        {"mask_type": "B", "in_channels": 3, "out_channels": 3, "kernel_size": 3, "color_groups": 3},
        ((2, 3, 4, 4),),
    ),
    "InvertibleConv1x1": Layer(layers.InvertibleConv1x1, {"channels": 4}),
    "LULinear": Layer(layers.LULinear, {"features": 4, "identity_init": False}, (VECTORS,)),
    "MADE": Layer(
        layers.MADE,
        {"features": 4, "hidden_features": 6, "context_features": 3, "output_multiplier": 2},
        (VECTORS, (2, 3)),
    ),
    "MLP": Layer(
        layers.MLP, {"in_features": 4, "out_features": 3, "hidden_features": (5,), "context_features": 3},
        (VECTORS, (2, 3)),
    ),
    "MaskedAffineCoupling": Layer(
        layers.MaskedAffineCoupling,
        {"mask": layers.checkerboard_mask(4, 4, 4), "transform_net_create_fn": _CONV},
    ),
    "MaskedAutoregressive": Layer(
        layers.MaskedAutoregressive, {"features": 4, "hidden_features": 6, "num_blocks": 1}, (VECTORS,)
    ),
    "MaskedAutoregressive (splines)": Layer(
        layers.MaskedAutoregressive,
        {"features": 4, "hidden_features": (6,), "transform": "rational_quadratic", "num_bins": 3, "tail_bound": 3.0},
        (VECTORS,),
    ),
    "MaskedConv2d": Layer(
        layers.MaskedConv2d, {"mask_type": "B", "in_channels": 4, "out_channels": 3, "kernel_size": 3}
    ),
    "MaskedMLP": Layer(layers.MaskedMLP, {"features": 4, "hidden_features": (6,)}, (VECTORS,)),
    "Maxout": Layer(layers.Maxout, {"in_features": 4, "out_features": 3, "pieces": 2}, (VECTORS,)),
    "MinibatchStdDev": Layer(layers.MinibatchStdDev, {"group_size": 2}),
    "ModulatedConv2d": Layer(
        layers.ModulatedConv2d, {"in_channels": 4, "out_channels": 3, "kernel_size": 3, "up": 2}, (IMAGES, VECTORS)
    ),
    "NormModulate": Layer(layers.NormModulate, {"num_channels": 4, "norm": "batch"}),
    "Permutation": Layer(layers.Permutation, {"permutation": [2, 0, 3, 1]}),
    "PixelNorm": Layer(layers.PixelNorm),
    "PlanarFlow": Layer(layers.PlanarFlow, {"features": 4, "context_features": 3}, (VECTORS, (2, 3))),
    "ProjectionHead": Layer(layers.ProjectionHead, {"features": 4, "num_classes": 3}, (VECTORS, 3)),
    "RadialFlow": Layer(layers.RadialFlow, {"features": 4, "context_features": 3}, (VECTORS, (2, 3))),
    "RandomPermutation": Layer(layers.RandomPermutation, {"features": 4}, (VECTORS,)),
    "RationalQuadraticCDF": Layer(layers.RationalQuadraticCDF, {"shape": (4,), "tails": "linear"}, (VECTORS,)),
    "RationalQuadraticCoupling": Layer(
        layers.RationalQuadraticCoupling,
        {"mask": MASK, "transform_net_create_fn": _NET, "num_bins": 3, "tails": "linear", "tail_bound": 3.0},
        (VECTORS,),
    ),
    "Resample2d": Layer(layers.Resample2d, {"up": 2}),
    "ResidualNet": Layer(
        layers.ResidualNet,
        {"in_features": 4, "out_features": 3, "hidden_features": 6, "context_features": 3},
        (VECTORS, (2, 3)),
    ),
    "ResidualVectorQuantizer": Layer(
        layers.ResidualVectorQuantizer, {"num_quantizers": 2, "num_codes": 5, "code_dim": 4}
    ),
    "ReversePermutation": Layer(layers.ReversePermutation, {"features": 4}, (VECTORS,)),
    "SPADE": Layer(
        layers.SPADE, {"num_channels": 4, "label_channels": 2, "hidden_channels": 3}, (IMAGES, (2, 2, 2, 2))
    ),
    "SpatialAttention": Layer(SpatialAttention, {"channels": 4, "groups": 2}),
    "Split": Layer(layers.Split),
    "Squeeze": Layer(layers.Squeeze),
    "StyledConv2d": Layer(
        layers.StyledConv2d,
        {"in_channels": 4, "out_channels": 3, "style_size": 3, "image_size": (8, 8), "up": 2},
        (IMAGES, (2, 3)),
    ),
    "TimeEmbedding": Layer(TimeEmbedding, {"channels": 4, "features": 3}, ((2,),)),
    "ToImage": Layer(layers.ToImage, {"in_channels": 4, "image_channels": 3, "style_size": 3}, (IMAGES, (2, 3))),
    "VectorQuantizer": Layer(layers.VectorQuantizer, {"num_codes": 5, "code_dim": 4}),
    "VerticalStackConv2d": Layer(
        layers.VerticalStackConv2d, {"in_channels": 4, "out_channels": 3, "kernel_size": 3}
    ),
    "Compose": Layer(
        lambda: layers.Compose([layers.ActNorm(4), layers.LULinear(4), layers.ReversePermutation(4)]), {}, (VECTORS,)
    ),
    "Inverse": Layer(lambda: layers.Inverse(layers.LULinear(4, identity_init=False)), {}, (VECTORS,)),
}  # fmt: skip


def numbers(result: Any) -> list[Tensor]:
    """The tensors of what a layer returns."""
    if isinstance(result, Tensor):
        return [result]
    return [] if result is None else [tensor for part in result for tensor in numbers(part)]
