"""Models of the papers, each a `torch.nn.Module` with `loss`, `sample`, and `log_prob` or a bound of it.

A model is imported when its name is first used, so that `fastgen train --help` need not wait for all of them.
"""

# ruff: noqa: F401 (imports for type checkers)
from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastgen.models.index import INDEX

if TYPE_CHECKING:
    from torch import nn

    from fastgen.models.adversarial import AdversarialModel
    from fastgen.models.autoencoder import Autoencoder
    from fastgen.models.autoregressive import AutoregressiveModel
    from fastgen.models.dcgan import DCGAN, WGANGP
    from fastgen.models.ddpm import DDPM
    from fastgen.models.denoising_autoencoder import DenoisingAutoencoder
    from fastgen.models.diffusion import Diffusion
    from fastgen.models.diffusion_probabilistic import DiffusionProbabilisticModel
    from fastgen.models.edm import EDM
    from fastgen.models.flow import Flow
    from fastgen.models.flow_matching import FlowMatching
    from fastgen.models.gan import GAN
    from fastgen.models.gated_pixelcnn import GatedPixelCNN
    from fastgen.models.glow import Glow
    from fastgen.models.latent_diffusion import LatentDiffusion
    from fastgen.models.loop import SamplingDiverged
    from fastgen.models.maf import IAF, MAF
    from fastgen.models.neural_spline_flow import NeuralSplineFlow
    from fastgen.models.pixelcnn import PixelCNN
    from fastgen.models.pixelcnnpp import PixelCNNPP
    from fastgen.models.realnvp import RealNVP
    from fastgen.models.score_sde import ScoreSDE
    from fastgen.models.stylegan2 import StyleGAN2
    from fastgen.models.unet import UNet
    from fastgen.models.vae import VAE, ConditionalVAE
    from fastgen.models.vqvae import VQVAE

# The files of what is public besides the models that the command line knows.
_OTHERS = {
    "AdversarialModel": "adversarial",
    "AutoregressiveModel": "autoregressive",
    "Diffusion": "diffusion",
    "Flow": "flow",
    "LatentDiffusion": "latent_diffusion",
    "SamplingDiverged": "loop",
    "UNet": "unet",
}
_FILES = {entry.kind: entry.module for entry in INDEX.values()} | _OTHERS

__all__ = sorted([*_FILES, "MODELS"])


class _Models(Mapping[str, "type[nn.Module]"]):
    """The classes by their names on the command line."""

    def __getitem__(self, name: str) -> type[nn.Module]:
        return INDEX[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(INDEX)

    def __len__(self) -> int:
        return len(INDEX)


MODELS: Mapping[str, type[nn.Module]] = _Models()


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'fastgen.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastgen.models.{_FILES[name]}"), name)
