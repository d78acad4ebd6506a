"""The published weights of FID's Inception network: from a file, or fetched once, and checked."""

from __future__ import annotations

import hashlib
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastgen.metrics.features.cache import cache_folder

NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
# The file's name ends with the first digits of its SHA-256, as PyTorch's model files do.
SHA256_PREFIX = "6726825d"


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
    found = _sha256(file)
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
    """The file where fastgen or PyTorch (for pytorch-fid, say) has put it, None if neither has."""
    folders = (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints")
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def _download() -> Path:
    file = cache_folder() / NAME
    beside = file.with_name(f".{NAME}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=30) as answer, open(beside, "wb") as copy:
            while part := answer.read(2**20):
                copy.write(part)
        # Checked before it gets its name: a download that broke off is not kept.
        found = _sha256(beside)
        if not found.startswith(SHA256_PREFIX):
            raise ValueError(
                f"weights: {URL} gave a file with the SHA-256 {found[:16]}..., expected {SHA256_PREFIX}..."
            )
        os.replace(beside, file)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"weights: {NAME} is not in {file.parent} and could not be downloaded ({reason}): "
            f"fetch it from {URL} and name the file (--weights)"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return file


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
