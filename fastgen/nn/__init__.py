"""Layers: drop-in modules over `fastgen.ops`, each with the state-dict keys of the layer it stands for (`torch.nn`'s,
or nflows').
"""

from fastgen.nn.actnorm import ActNorm
from fastgen.nn.batch_norm import BatchNormLeakyReLU
from fastgen.nn.bias_act import BiasAct
from fastgen.nn.causal import CausalConv1d
from fastgen.nn.compose import Compose
from fastgen.nn.conditioner import MLP, ConvNet, ResidualNet
from fastgen.nn.coupling import AdditiveCoupling, AffineCoupling, RationalQuadraticCoupling
from fastgen.nn.elementwise_spline import RationalQuadraticCDF
from fastgen.nn.equalized import EqualizedConv2d, EqualizedLinear
from fastgen.nn.frozen import freeze, unfreeze
from fastgen.nn.gated import GatedPixelCNNLayer, HorizontalStackConv2d, VerticalStackConv2d
from fastgen.nn.group_norm_silu import GroupNormSiLU
from fastgen.nn.inverse import Inverse
from fastgen.nn.linear import InvertibleConv1x1, LULinear
from fastgen.nn.made import MADE, MaskedMLP
from fastgen.nn.masked import MaskedConv2d
from fastgen.nn.masked_autoregressive import MaskedAutoregressive
from fastgen.nn.masked_coupling import MaskedAffineCoupling, checkerboard_mask
from fastgen.nn.maxout import Maxout
from fastgen.nn.minibatch_stddev import MinibatchStdDev
from fastgen.nn.modulated_conv import ModulatedConv2d
from fastgen.nn.norm_modulate import SPADE, AdaptiveInstanceNorm, ConditionalBatchNorm, NormModulate
from fastgen.nn.permutation import Permutation, RandomPermutation, ReversePermutation
from fastgen.nn.pixel_norm import PixelNorm
from fastgen.nn.planar import PlanarFlow, RadialFlow
from fastgen.nn.projection import ProjectionHead
from fastgen.nn.resample import Resample2d
from fastgen.nn.resnet import GatedResnet, concat_elu
from fastgen.nn.shifted import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    down_shift,
    right_shift,
)
from fastgen.nn.squeeze import Split, Squeeze
from fastgen.nn.styled import StyledConv2d, ToImage
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
