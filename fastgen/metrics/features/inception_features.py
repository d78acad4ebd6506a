"""Images to the features and the classes of FID's Inception network."""

from __future__ import annotations

import os

from torch import Tensor, nn

from fastgen.metrics.features.images import in_color, resize_antialiased, resize_bilinear, unit_images
from fastgen.metrics.features.inception import InceptionV3
from fastgen.metrics.features.inception_weights import inception_weights

SIZE = (299, 299)
# Resizing, and then the scale that the network gets: [0, 255] as (x - 128) / 128, or [0, 1] as 2 x - 1.
PREPROCESSING = ("clean-fid", "pytorch-fid")


class InceptionV3Features(nn.Module):
    """The features that FID is defined by: [B, 1 or 3, H, W] to [B, 2048].

    Args:
        weights: file of pytorch-fid's weights; None looks in the cache folders and downloads them if they are not
            there.
        preprocessing: "clean-fid" resizes as Pillow does (bicubic, antialiased) and gives the numbers of clean-fid;
            "pytorch-fid" interpolates bilinearly between four pixels and gives the numbers of pytorch-fid, which differ
            as soon as images are resized.

    Raises:
        ValueError: no such preprocessing; weights that are missing, damaged or of another network.

    Images are uint8 (0 to 255) or floats in [0, 1]; grey ones are taken in three equal colours. Gradients flow to float
    images.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017); Parmar, Zhang and Zhu, "On Aliased
    Resizing and Surprising Subtleties in GAN Evaluation" (2022).
    """

    num_features = 2048
    num_classes = 1008

    def __init__(self, weights: str | os.PathLike | None = None, preprocessing: str = "clean-fid") -> None:
        super().__init__()
        if preprocessing not in PREPROCESSING:
            raise ValueError(f"preprocessing: expected one of {', '.join(PREPROCESSING)}, got {preprocessing!r}")
        self.preprocessing = preprocessing
        self.network = InceptionV3()
        self._load(inception_weights(weights))
        self.requires_grad_(False).eval()

    def _load(self, state) -> None:
        # Files older than PyTorch 0.4.1 have no count of batches, which nothing here reads.
        missing, unexpected = self.network.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise ValueError(
                f"weights: of another network: {len(missing)} tensors are missing and {len(unexpected)} are unknown, "
                f"the first is {(missing + unexpected)[0]}"
            )

    def train(self, mode: bool = True) -> InceptionV3Features:
        """It stays in eval mode: its batch statistics are part of the metric."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """The means [B, 2048] of the last block over the image."""
        return self.network(self.prepare(images))

    def logits(self, images: Tensor) -> Tensor:
        """What the Inception Score is taken of, [B, 1008]: the last layer without its bias."""
        return self.logits_of_features(self(images))

    def logits_of_features(self, features: Tensor) -> Tensor:
        """`logits` from what `forward` gave."""
        return features @ self.network.fc.weight.T

    def prepare(self, images: Tensor) -> Tensor:
        """Images as the network takes them, [B, 3, 299, 299]."""
        images = in_color(unit_images(images)).to(self.network.fc.weight.dtype)
        if self.preprocessing == "pytorch-fid":
            return 2 * resize_bilinear(images, SIZE) - 1
        return (255 * resize_antialiased(images, SIZE) - 128) / 128
