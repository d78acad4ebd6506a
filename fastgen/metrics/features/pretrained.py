"""Features of any pretrained network of timm or torchvision, where one of them is installed."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.features.images import in_color, resize_antialiased, unit_images

# Where torchvision's networks keep their last layer.
_HEADS = ("fc", "classifier", "heads", "head")


class PretrainedFeatures(nn.Module):
    """What a classifier of timm or torchvision has before its last layer: [B, 1 or 3, H, W] to [B, d].

    Images are resized as Pillow does (bicubic, antialiased) and normalised as the network was trained.

    Args:
        name: "timm:NAME" or "torchvision:NAME"; a bare name is looked for in timm and then in torchvision.

    Raises:
        ModuleNotFoundError: that library is not installed.
        ValueError: it has no such network, or the weights could not be had.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        library, colon, model = name.partition(":")
        if not colon:
            library, model = _library_of(name), name
        if library not in ("timm", "torchvision"):
            raise ValueError(f"features: expected timm:NAME or torchvision:NAME, got {name!r}")
        try:
            self.network, self.size, mean, std = {"timm": _timm, "torchvision": _torchvision}[library](model)
        except ModuleNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"features: {library} gives no {model!r}: {' '.join(str(error).split())}") from error
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PretrainedFeatures:
        """It stays in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        images = resize_antialiased(in_color(unit_images(images)).to(self.mean.dtype), self.size)
        return self.network((images - self.mean) / self.std).flatten(1)


def _library_of(name: str) -> str:
    for library in ("timm", "torchvision"):
        if importlib.util.find_spec(library) is None:
            continue
        models = importlib.import_module("timm" if library == "timm" else "torchvision.models")
        if name in models.list_models():
            return library
    raise ValueError(
        f"features: no {name!r}: expected inception, digits, pixels, given, or the name of a network of timm or "
        "torchvision where they are installed"
    )


def _timm(name: str) -> tuple[nn.Module, tuple[int, int], Any, Any]:
    import timm

    network = timm.create_model(name, pretrained=True, num_classes=0)
    config = timm.data.resolve_model_data_config(network)
    return network, tuple(config["input_size"][1:]), config["mean"], config["std"]


def _torchvision(name: str) -> tuple[nn.Module, tuple[int, int], Any, Any]:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    network = models.get_model(name, weights=weights)
    head = next((head for head in _HEADS if hasattr(network, head)), None)
    if head is None:
        raise ValueError(f"its last layer is none of {', '.join(_HEADS)}")
    setattr(network, head, nn.Identity())
    recipe = weights.transforms()
    (side,) = recipe.crop_size
    return network, (side, side), recipe.mean, recipe.std
