"""Models: what the papers define, each a `torch.nn.Module` with `loss`, `log_prob` and `sample`."""

from torch import nn

from fastgen.models.autoregressive import AutoregressiveModel
from fastgen.models.flow import Flow
from fastgen.models.gated_pixelcnn import GatedPixelCNN
from fastgen.models.glow import Glow
from fastgen.models.maf import IAF, MAF
from fastgen.models.neural_spline_flow import NeuralSplineFlow
from fastgen.models.pixelcnn import PixelCNN
from fastgen.models.pixelcnnpp import PixelCNNPP
from fastgen.models.realnvp import RealNVP

# By the names that the command line and checkpoints use.
MODELS: dict[str, type[nn.Module]] = {
    "pixelcnn": PixelCNN,
    "gated-pixelcnn": GatedPixelCNN,
    "pixelcnnpp": PixelCNNPP,
    "nsf": NeuralSplineFlow,
    "realnvp": RealNVP,
    "glow": Glow,
    "maf": MAF,
    "iaf": IAF,
}

__all__ = [
    "IAF",
    "MAF",
    "MODELS",
    "AutoregressiveModel",
    "Flow",
    "GatedPixelCNN",
    "Glow",
    "NeuralSplineFlow",
    "PixelCNN",
    "PixelCNNPP",
    "RealNVP",
]
