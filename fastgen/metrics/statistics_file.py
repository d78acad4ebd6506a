"""The mean and covariance of features in a file, as pytorch-fid and clean-fid write and read them."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgen.files import write_whole


@dataclass(frozen=True)
class Statistics:
    """What a Fréchet distance needs to know of a set of features.

    Args:
        name: where they are from.
        mu: the mean [d], float64.
        sigma: the covariance [d, d], float64.
    """

    name: str
    mu: Tensor
    sigma: Tensor


def read_statistics(path: str | os.PathLike) -> Statistics:
    """The statistics in an `.npz` file of pytorch-fid, clean-fid or `write_statistics`.

    Raises:
        ValueError: no such file, no NumPy file, without `mu` or `sigma`, or these are not a mean and a covariance.
    """
    path = Path(path)
    try:
        content = np.load(path, allow_pickle=False)
        arrays = None if isinstance(content, np.ndarray) else dict(content)
    except FileNotFoundError as error:
        raise ValueError(f"no file {path}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is not a whole .npz file: {error}") from error
    if arrays is None:
        raise ValueError(f"{path} holds one array, expected mu and sigma")
    return statistics_of_arrays(arrays, str(path))


def statistics_of_arrays(arrays: Mapping[str, np.ndarray], name: str) -> Statistics:
    """The statistics among `arrays`; `name` says where they are from.

    Raises:
        ValueError: as `read_statistics`.
    """
    if missing := [key for key in ("mu", "sigma") if key not in arrays]:
        held = ", ".join(arrays) or "nothing"
        raise ValueError(f"{name} holds no {' and no '.join(missing)}, expected mu and sigma, got {held}")
    mu, sigma = (np.array(arrays[key], dtype=np.float64) for key in ("mu", "sigma"))
    if mu.ndim != 1 or not mu.size or sigma.shape != (mu.size, mu.size):
        raise ValueError(f"{name}: expected mu [d] and sigma [d, d], got {list(mu.shape)} and {list(sigma.shape)}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{name}: mu or sigma holds NaN or infinity")
    return Statistics(name, torch.from_numpy(mu), torch.from_numpy(sigma))


def write_statistics(path: str | os.PathLike, mu: Tensor, sigma: Tensor) -> None:
    """Write statistics for pytorch-fid, clean-fid and `read_statistics`, all of the file or nothing."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mu=mu.double().cpu().numpy(), sigma=sigma.double().cpu().numpy())
    write_whole(Path(path), buffer.getvalue())
