"""One file for one fitted estimator: safetensors, with the configuration as JSON in its header; whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastgen.whole_file import write_whole

FORMAT = 1


def write(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write an estimator's file, by `write_whole`.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: the configuration is not JSON.
    """
    save = _safetensors().torch.save
    # Tensors that share memory are refused, hence the clones.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, save(whole, metadata={"config": json.dumps({"format": FORMAT, **config})}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the configuration of the file that `write` wrote.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the file is missing, damaged, or no estimator's.
    """
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        version = config.pop("format", None)
    except KeyError:
        raise ValueError(f"{path} is not a file of a fitted estimator") from None
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is missing, truncated or damaged: {error}") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, expected {FORMAT}")
    return tensors, config


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ImportError("saving and loading need safetensors: pip install 'fastgen[train]'") from None
    return safetensors
