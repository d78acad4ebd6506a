"""The autoencoder whose latents are codes of a codebook, and the PixelCNN that draws codes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fastgen.models.encoder_decoder import EncoderDecoder
from fastgen.models.model import Bounded, evaluating
from fastgen.models.pixelcnn import PixelCNN
from fastgen.nn import MaskedConv2d, VectorQuantizer
from fastgen.nn.arguments import is_int, positive
from fastgen.nn.module_state import Constants
from fastgen.nn.vector_quantizer import Quantized


class VQVAE(Bounded, EncoderDecoder, without=("network", "num_classes")):
    """Images as maps of codes: every place of the encoder's output becomes the nearest of `num_codes` vectors.

    With `z = e_k`, `k = argmin_j |encoder(x) - e_j|`, for each place, and a prior `P(k)` over maps of codes,
    `log p(x) >= log p(x | z) + log P(k)`, as the posterior is sure of its codes. The loss is the negative of it and the
    commitment of the encoder, `commitment |encoder(x) - sg[z]|^2`. Moving averages train the codebook, the prior sees
    codes without a gradient to them: training both at once is the paper's two stages, but for codes that still move.

    Args:
        num_codes: 2 to 256.
        latent_size: numbers of a code.
        layers: halvings of the image: the map is [height / 2^layers, width / 2^layers], rounded up.
        commitment, decay, restart_below: of the codebook, see `fastgen.nn.VectorQuantizer`. Unasked no code starts
            again: it takes vectors from others, which the prior has to learn anew; `initialize` spreads them first.
        prior_channels, prior_layers, prior_dropout: of the prior, a `PixelCNN` that sees codes one-hot.

    The other arguments are as in `EncoderDecoder`; the network is spatial.

    Raises:
        ValueError: sizes out of range, what `EncoderDecoder` and `PixelCNN` refuse.

    Source: van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (2017), equations 1 to 3,
    sections 3.1 to 3.3.
    """

    starts_from_data = True
    presets: ClassVar = {
        "digits": {
            **{"num_codes": 32, "latent_size": 16, "channels": 32, "layers": 1},
            **{"likelihood": "discretized_logistic", "prior_channels": 64, "prior_layers": 4, "prior_dropout": 0.4},
            **EncoderDecoder.digits,
            "epochs": 60,
        }
    }

    def __init__(
        self,
        *images: Any,
        num_codes: int = 128,
        latent_size: int = 64,
        channels: int = 64,
        layers: int = 2,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart_below: float = 0.0,
        prior_channels: int = 64,
        prior_layers: int = 4,
        prior_dropout: float = 0.0,
        **options: Any,
    ) -> None:
        sizes = {"latent_size": latent_size, "channels": channels, "layers": layers}
        super().__init__(*images, network="spatial", **sizes, **options)
        if not is_int(num_codes) or not 2 <= num_codes <= 256:
            raise ValueError(f"num_codes: expected an int from 2 to 256, got {num_codes!r}")
        self.quantizer = VectorQuantizer(
            num_codes, latent_size, decay=decay, commitment=commitment, restart_below=restart_below
        )
        self.prior = CodePrior(
            image_size=self.latent_shape[1:],
            levels=num_codes,
            channels=prior_channels,
            layers=prior_layers,
            first_kernel_size=5,
            dropout=prior_dropout,
        )

    def validation_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        return {"bits_per_dim": self.bits_per_dim(x, labels)}

    @torch.no_grad()
    def initialize(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Sets the codes to latents of images, all different as far as they go; arguments and errors as in `encode`."""
        with evaluating(self):
            rows = self.encode(images).movedim(1, -1).flatten(0, -2).unique(dim=0)
        order = torch.randperm(len(rows)).repeat(-(-self.quantizer.num_codes // len(rows)))
        codebook = rows[order[: self.quantizer.num_codes].to(rows.device)]
        self.quantizer.codebook.copy_(codebook)
        # As if each code had averaged one vector.
        self.quantizer.average_counts.fill_(1.0)
        self.quantizer.average_sums.copy_(codebook)

    def codes(self, images: Tensor) -> Tensor:
        """The codes of images, int64 [batch, height', width']; arguments and errors as in `encode`."""
        return self._quantized(self.encode(images)).indices

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean image of the codes nearest to latents [batch, *latent_shape]: as `sample` gives it."""
        self._check_latents(z)
        return super().decode(self._quantized(z).quantized, labels)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """The mean image of codes, integers [batch, height', width']: uint8 levels, floating where `levels` is None.

        Raises:
            TypeError, ValueError: codes of another dtype or shape, or out of range.
        """
        # The prior knows what an image of codes is, and checks it.
        self.prior.check_images(codes.unsqueeze(1), None)
        return super().decode(self.quantizer.decode(codes.long()))

    def loss(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of `-log p(x|z) - log P(codes) + commitment`, in nats: a scalar."""
        self.check_labels(labels, images.shape[0])
        found = self.quantizer(self.encode(images))
        reconstruction = self.log_likelihood(images, found.quantized)
        # The loss is a mean over latents; the other terms are sums over pixels and places.
        commitment = found.loss * math.prod(self.latent_shape)
        return commitment - (reconstruction + self._log_prior(found.indices)).mean()

    def log_prob_bound(
        self, images: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None
    ) -> Tensor:
        """`log p(x|z) + log P(codes)`, a lower bound of `log p(x)` in nats, [batch]; nothing in it is random.

        Arguments and errors as in `encode`.
        """
        self.check_labels(labels, images.shape[0])
        found = self._quantized(self.encode(images))
        return self.log_likelihood(images, found.quantized) + self._log_prior(found.indices)

    def draw_latents(self, n: int, generator: Generator | None = None) -> Tensor:
        """The codes of `n` maps that the prior draws, [n, *latent_shape]."""
        positive(n=n)
        return self.quantizer.decode(self.prior.sample(n, generator=generator)[:, 0].long())

    def _quantized(self, z: Tensor) -> Quantized:
        """Quantises latents without updating the moving averages of the codebook."""
        training, self.quantizer.training = self.quantizer.training, False
        try:
            return self.quantizer(z)
        finally:
            self.quantizer.training = training

    def _log_prior(self, codes: Tensor) -> Tensor:
        # A NaN latent has the code -1; the other terms of the loss are NaN then.
        return self.prior.log_prob(codes.clamp(min=0).unsqueeze(1))


class CodePrior(PixelCNN):
    """A `PixelCNN` whose levels are names and not intensities: its first layer sees them one-hot."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        first = MaskedConv2d("A", self.levels, self.config["channels"], self.config["first_kernel_size"])
        self.first = nn.Sequential(OneHotLevels(self.levels), first)


class OneHotLevels(Constants):
    """Levels spread over [-1, 1], [batch, 1, height, width], one-hot: [batch, levels, height, width].

    `max(0, 1 - |level - k|)` by two convolutions, which the cached sampler can follow pixel by pixel.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self._register_constants()

    def _constants(self) -> dict[str, Tensor]:
        half, k, eye = (self.levels - 1) / 2, torch.arange(self.levels), torch.eye(self.levels)
        ones = torch.ones(self.levels)
        return {
            "scale": half * torch.cat([ones, -ones]).view(-1, 1, 1, 1),
            "offset": torch.cat([half - k, k - half]),
            "both": -torch.cat([eye, eye], 1)[:, :, None, None],
            "one": ones,
        }

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(F.relu(F.conv2d(x, self.scale, self.offset)), self.both, self.one))
