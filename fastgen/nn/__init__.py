"""Layers: drop-in modules over `fastgen.ops`, each with the state-dict keys of the `torch.nn` layer it stands for."""

from fastgen.nn.causal import CausalConv1d
from fastgen.nn.gated import GatedPixelCNNLayer, HorizontalStackConv2d, VerticalStackConv2d
from fastgen.nn.masked import MaskedConv2d
from fastgen.nn.resnet import GatedResnet, concat_elu
from fastgen.nn.shifted import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    down_shift,
    right_shift,
)
from fastgen.nn.weight_norm import data_dependent_init, weight_norm

__all__ = [
    "CausalConv1d",
    "DownRightShiftedConv2d",
    "DownRightShiftedConvTranspose2d",
    "DownShiftedConv2d",
    "DownShiftedConvTranspose2d",
    "GatedPixelCNNLayer",
    "GatedResnet",
    "HorizontalStackConv2d",
    "MaskedConv2d",
    "VerticalStackConv2d",
    "concat_elu",
    "data_dependent_init",
    "down_shift",
    "right_shift",
    "weight_norm",
]
