"""The models that the suites measure, at the sizes papers and tutorials use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fastgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP
from fastgen.models.autoregressive import AutoregressiveModel


@dataclass(frozen=True)
class Subject:
    """A model at a size, described in a few words, and the batches it is measured at."""

    model: type[AutoregressiveModel]
    size: str
    config: Mapping[str, int]
    batches: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.model.__name__

    def case(self, batch: int) -> str:
        return f"{self.size}, batch {batch}"

    def build(self, device: str) -> AutoregressiveModel:
        """The model with its initial weights, the same in every call."""
        torch.manual_seed(0)
        return self.model(**self.config).to(device)


GATED = {"image_size": 28, "levels": 256, "channels": 64, "layers": 10}
PLAIN = {"image_size": 28, "levels": 256, "channels": 64, "layers": 7}
# Two resolutions of two residual blocks: the published network has three of five.
PLUS_PLUS = {"image_size": 32, "channels": 160, "resnets": 2, "scales": 2, "dropout": 0}

SAMPLED = (
    Subject(GatedPixelCNN, "10x64, 28x28", GATED, batches=(16, 1, 64)),
    Subject(PixelCNN, "7x64, 28x28", PLAIN, batches=(16, 1, 64)),
    Subject(PixelCNNPP, "2x2x160, 32x32", PLUS_PLUS, batches=(1, 8)),
)
TRAINED = (
    Subject(GatedPixelCNN, "10x64, 28x28", GATED, batches=(4,)),
    Subject(PixelCNN, "7x64, 28x28", PLAIN, batches=(16,)),
    Subject(PixelCNNPP, "2x2x64, 32x32", {**PLUS_PLUS, "channels": 64}, batches=(2,)),
)


def images(model: AutoregressiveModel, batch: int) -> torch.Tensor:
    """Levels drawn uniformly, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.levels, (batch, *model.shape), generator=generator).to(model.device)
