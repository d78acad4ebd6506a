"""Layers: drop-in modules over `fastgen.ops`, each with the state-dict keys of the layer it stands for (`torch.nn`'s,
or nflows').
"""

from fastgen.nn.actnorm import ActNorm
from fastgen.nn.causal import CausalConv1d
from fastgen.nn.compose import Compose
from fastgen.nn.conditioner import MLP, ConvNet, ResidualNet
from fastgen.nn.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    MaskedAffineCoupling,
    RationalQuadraticCDF,
    RationalQuadraticCoupling,
    checkerboard_mask,
)
from fastgen.nn.frozen import freeze, unfreeze
from fastgen.nn.gan import Maxout, MinibatchStdDev, PixelNorm, ProjectionHead
from fastgen.nn.gated import GatedPixelCNNLayer, HorizontalStackConv2d, VerticalStackConv2d
from fastgen.nn.group_norm_silu import GroupNormSiLU
from fastgen.nn.linear import InvertibleConv1x1, LULinear
from fastgen.nn.made import MADE, MaskedMLP
from fastgen.nn.masked import MaskedConv2d
from fastgen.nn.masked_autoregressive import MaskedAutoregressive
from fastgen.nn.norm_modulate import SPADE, AdaptiveInstanceNorm, BatchNormLeakyReLU, ConditionalBatchNorm, NormModulate
from fastgen.nn.permutation import Permutation, RandomPermutation, ReversePermutation
from fastgen.nn.pixelcnnpp import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    GatedResnet,
    concat_elu,
    down_shift,
    right_shift,
)
from fastgen.nn.planar import PlanarFlow, RadialFlow
from fastgen.nn.squeeze import Split, Squeeze
from fastgen.nn.stylegan import (
    BiasAct,
    EqualizedConv2d,
    EqualizedLinear,
    ModulatedConv2d,
    Resample2d,
    StyledConv2d,
    ToImage,
)
from fastgen.nn.transform import Inverse
from fastgen.nn.vector_quantizer import ResidualVectorQuantizer, VectorQuantizer
from fastgen.nn.weight_norm import data_dependent_init, weight_norm

__all__ = [
    "MADE",
    "MLP",
    "SPADE",
    "ActNorm",
    "AdaptiveInstanceNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "BatchNormLeakyReLU",
    "BiasAct",
    "CausalConv1d",
    "Compose",
    "ConditionalBatchNorm",
    "ConvNet",
    "DownRightShiftedConv2d",
    "DownRightShiftedConvTranspose2d",
    "DownShiftedConv2d",
    "DownShiftedConvTranspose2d",
    "EqualizedConv2d",
    "EqualizedLinear",
    "GatedPixelCNNLayer",
    "GatedResnet",
    "GroupNormSiLU",
    "HorizontalStackConv2d",
    "Inverse",
    "InvertibleConv1x1",
    "LULinear",
    "MaskedAffineCoupling",
    "MaskedAutoregressive",
    "MaskedConv2d",
    "MaskedMLP",
    "Maxout",
    "MinibatchStdDev",
    "ModulatedConv2d",
    "NormModulate",
    "Permutation",
    "PixelNorm",
    "PlanarFlow",
    "ProjectionHead",
    "RadialFlow",
    "RandomPermutation",
    "RationalQuadraticCDF",
    "RationalQuadraticCoupling",
    "Resample2d",
    "ResidualNet",
    "ResidualVectorQuantizer",
    "ReversePermutation",
    "Split",
    "Squeeze",
    "StyledConv2d",
    "ToImage",
    "VectorQuantizer",
    "VerticalStackConv2d",
    "checkerboard_mask",
    "concat_elu",
    "data_dependent_init",
    "down_shift",
    "freeze",
    "right_shift",
    "unfreeze",
    "weight_norm",
]
