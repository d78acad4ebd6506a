"""Models: what the papers define, each a `torch.nn.Module` with `loss`, `log_prob` and `sample`."""

from fastgen.models.autoregressive import AutoregressiveModel
from fastgen.models.gated_pixelcnn import GatedPixelCNN
from fastgen.models.pixelcnn import PixelCNN
from fastgen.models.pixelcnnpp import PixelCNNPP

# By the names that the command line and checkpoints use.
MODELS: dict[str, type[AutoregressiveModel]] = {
    "pixelcnn": PixelCNN,
    "gated-pixelcnn": GatedPixelCNN,
    "pixelcnnpp": PixelCNNPP,
}

__all__ = ["MODELS", "AutoregressiveModel", "GatedPixelCNN", "PixelCNN", "PixelCNNPP"]
