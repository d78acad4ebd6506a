"""Images to the features and the classes of FID's Inception network, with its published weights."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgen.files import cache_folder, write_whole
from fastgen.metrics.features.images import in_color, resize_antialiased, resize_bilinear, unit_images
from fastgen.metrics.features.inception import InceptionV3

SIZE = (299, 299)
# The library whose numbers come out. It decides the resizing and the scale: (255 x - 128) / 128, or 2 x - 1.
PREPROCESSING = ("clean-fid", "pytorch-fid")

NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
# The file's name ends with the first digits of its SHA-256, as PyTorch's model files do.
SHA256_PREFIX = "6726825d"


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

    def _load(self, state: Mapping[str, Tensor]) -> None:
        # Files older than PyTorch 0.4.1 lack the number of batches, which is not used.
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


def inception_weights(path: str | os.PathLike | None = None) -> Mapping[str, Tensor]:
    """The state dict of pytorch-fid's Inception network.

    Args:
        path: of the file. None takes it from fastgen's or PyTorch's cache folder, or downloads it to the former.

    Raises:
        ValueError: no such file, the wrong checksum, or the download failed.
    """
    file = Path(path) if path is not None else _find() or _download()
    if not file.is_file():
        raise ValueError(f"weights: no file {file}: expected {NAME}")
    with open(file, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if not found.startswith(SHA256_PREFIX):
        raise ValueError(
            f"weights: {file} has the SHA-256 {found[:16]}..., expected {SHA256_PREFIX}... as {NAME} has: "
            "it is damaged or of another network"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"weights: {file} cannot be read: {error}") from error
    return state


def _find() -> Path | None:
    """The file in the cache folder of fastgen or of PyTorch (where pytorch-fid keeps it), None if it is in neither."""
    folders = (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints")
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def _download() -> Path:
    file = cache_folder() / NAME
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=30) as answer:
            content = answer.read()
        # Checked before it is written: a download that broke off is not kept.
        found = hashlib.sha256(content).hexdigest()
        if not found.startswith(SHA256_PREFIX):
            raise ValueError(
                f"weights: {URL} gave a file with the SHA-256 {found[:16]}..., expected {SHA256_PREFIX}..."
            )
        write_whole(file, content)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"weights: {NAME} is not in {file.parent} and could not be downloaded ({reason}): "
            f"fetch it from {URL} and name the file (--weights)"
        ) from error
    return file
