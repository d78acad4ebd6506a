"""Inverse problems: images from what was measured of them, with a diffusion model as the prior."""

from fastgen.inverse.methods import METHODS
from fastgen.inverse.operators import (
    Colourisation,
    Deblurring,
    Denoising,
    Inpainting,
    Operator,
    SingleImageHDR,
    SuperResolution,
    Uncropping,
    operator_of,
)
from fastgen.inverse.solve import solve

__all__ = [
    "METHODS",
    "Colourisation",
    "Deblurring",
    "Denoising",
    "Inpainting",
    "Operator",
    "SingleImageHDR",
    "SuperResolution",
    "Uncropping",
    "operator_of",
    "solve",
]
