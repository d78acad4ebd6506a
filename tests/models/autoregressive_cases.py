"""Small autoregressive image models of every kind."""

from fastgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP

SMALL = {
    "pixelcnn": (PixelCNN, {"image_size": 8, "levels": 5, "channels": 8, "layers": 2}),
    "pixelcnn-rgb": (PixelCNN, {"image_size": (4, 5), "image_channels": 3, "levels": 3, "channels": 12, "layers": 2}),
    "gated": (GatedPixelCNN, {"image_size": 8, "levels": 5, "channels": 8, "layers": 3, "skip_connections": True}),
    "gated-rgb": (
        GatedPixelCNN,
        {"image_size": (4, 5), "image_channels": 3, "levels": 3, "channels": 6, "layers": 3, "num_classes": 2},
    ),
    "pixelcnnpp": (
        PixelCNNPP,
        {"image_size": 8, "image_channels": 1, "levels": 9, "channels": 6, "resnets": 1, "num_classes": 3},
    ),
    "pixelcnnpp-rgb": (
        PixelCNNPP,
        {"image_size": (4, 6), "channels": 6, "resnets": 1, "scales": 2, "num_mixtures": 3, "weight_norm": False},
    ),
}
