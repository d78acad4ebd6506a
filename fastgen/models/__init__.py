"""Models: what the papers define, each a `torch.nn.Module` with `loss`, `sample`, and `log_prob` or a bound of it."""

from torch import nn

from fastgen.models.adversarial import AdversarialModel
from fastgen.models.autoencoder import Autoencoder
from fastgen.models.autoregressive import AutoregressiveModel
from fastgen.models.dcgan import DCGAN, WGANGP
from fastgen.models.ddpm import DDPM
from fastgen.models.denoising_autoencoder import DenoisingAutoencoder
from fastgen.models.diffusion import Diffusion
from fastgen.models.diffusion_probabilistic import DiffusionProbabilisticModel
from fastgen.models.divergence import SamplingDiverged
from fastgen.models.edm import EDM
from fastgen.models.flow import Flow
from fastgen.models.flow_matching import FlowMatching
from fastgen.models.gan import GAN
from fastgen.models.gated_pixelcnn import GatedPixelCNN
from fastgen.models.glow import Glow
from fastgen.models.latent_diffusion import LatentDiffusion
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
    "ddpm": DDPM,
    "diffusion-2015": DiffusionProbabilisticModel,
    "score-sde": ScoreSDE,
    "edm": EDM,
    "flow-matching": FlowMatching,
    "ae": Autoencoder,
    "dae": DenoisingAutoencoder,
    "vae": VAE,
    "cvae": ConditionalVAE,
    "vqvae": VQVAE,
    "gan": GAN,
    "dcgan": DCGAN,
    "wgan-gp": WGANGP,
    "stylegan2": StyleGAN2,
}

__all__ = [
    "DCGAN",
    "DDPM",
    "EDM",
    "GAN",
    "IAF",
    "MAF",
    "MODELS",
    "VAE",
    "VQVAE",
    "WGANGP",
    "AdversarialModel",
    "Autoencoder",
    "AutoregressiveModel",
    "ConditionalVAE",
    "DenoisingAutoencoder",
    "Diffusion",
    "DiffusionProbabilisticModel",
    "Flow",
    "FlowMatching",
    "GatedPixelCNN",
    "Glow",
    "LatentDiffusion",
    "NeuralSplineFlow",
    "PixelCNN",
    "PixelCNNPP",
    "RealNVP",
    "SamplingDiverged",
    "ScoreSDE",
    "StyleGAN2",
    "UNet",
]
