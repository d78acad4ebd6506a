"""Every model by the name that the command line and checkpoints use, for help that starts without importing torch."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """Where a model is, and a line about it.

    Attributes:
        module, kind: the file below `fastgen.models`, and the class in it.
        learns: `"images"`, `"vectors"`, or `"images, vectors"`.
        about: what it is, for people who choose one.
    """

    module: str
    kind: str
    learns: str
    about: str

    def load(self) -> type[Any]:
        """The class."""
        return getattr(importlib.import_module(f"fastgen.models.{self.module}"), self.kind)


INDEX: dict[str, Entry] = {
    "pixelcnn": Entry("pixelcnn", "PixelCNN", "images", "pixel by pixel, with masked convolutions (2016)"),
    "gated-pixelcnn": Entry("gated_pixelcnn", "GatedPixelCNN", "images", "two stacks with gates, of classes (2016)"),
    "pixelcnnpp": Entry("pixelcnnpp", "PixelCNNPP", "images", "several scales, mixtures of logistics (2017)"),
    "nsf": Entry("neural_spline_flow", "NeuralSplineFlow", "vectors", "flow of rational-quadratic splines (2019)"),
    "realnvp": Entry("realnvp", "RealNVP", "images, vectors", "flow of affine couplings (2017)"),
    "glow": Entry("glow", "Glow", "images", "flow with invertible 1x1 convolutions (2018)"),
    "maf": Entry("maf", "MAF", "vectors", "masked autoregressive flow, quick to score (2017)"),
    "iaf": Entry("maf", "IAF", "vectors", "inverse autoregressive flow, quick to sample (2016)"),
    "ddpm": Entry("ddpm", "DDPM", "images", "denoising diffusion (2020)"),
    "diffusion-2015": Entry(
        "diffusion_probabilistic", "DiffusionProbabilisticModel", "images", "diffusion by its variational bound (2015)"
    ),
    "score-sde": Entry("score_sde", "ScoreSDE", "images", "scores of a stochastic differential equation (2021)"),
    "edm": Entry("edm", "EDM", "images", "diffusion with preconditioning and Heun's sampler (2022)"),
    "flow-matching": Entry("flow_matching", "FlowMatching", "images", "velocities from noise to data (2023)"),
    "ae": Entry("autoencoder", "Autoencoder", "images", "autoencoder (1986)"),
    "dae": Entry("denoising_autoencoder", "DenoisingAutoencoder", "images", "denoising autoencoder, as a chain (2013)"),
    "vae": Entry("vae", "VAE", "images", "variational autoencoder (2014)"),
    "cvae": Entry("vae", "ConditionalVAE", "images", "variational autoencoder of classes (2015)"),
    "vqvae": Entry("vqvae", "VQVAE", "images", "autoencoder of discrete codes (2017)"),
    "gan": Entry("gan", "GAN", "images, vectors", "generative adversarial network, dense (2014)"),
    "dcgan": Entry("dcgan", "DCGAN", "images", "deep convolutional GAN (2016)"),
    "wgan-gp": Entry("dcgan", "WGANGP", "images", "Wasserstein GAN with gradient penalty (2017)"),
    "stylegan2": Entry("stylegan2", "StyleGAN2", "images", "GAN whose layers are modulated by styles (2020)"),
}
