"""Small flows of every kind, away from their start, with data and contexts to go with them."""

import torch

from fastgen.models import IAF, MAF, Glow, NeuralSplineFlow, RealNVP

SMALL = {"transforms": 2, "hidden_features": 8, "num_blocks": 1}
STANDARDIZED = {"mean": [1.0, -2.0, 0.5], "std": [2.0, 0.5, 1.0]}
VECTORS = {
    "nsf": (NeuralSplineFlow, {"features": 3, "num_bins": 4, **SMALL}),
    "nsf-lu": (NeuralSplineFlow, {"features": 3, "num_bins": 4, "linear": "lu", **STANDARDIZED, **SMALL}),
    "nsf-permutation": (
        NeuralSplineFlow,
        {"features": 4, "linear": "permutation", "context_features": 2, "dropout": 0.2, **SMALL},
    ),
    "nsf-autoregressive": (
        NeuralSplineFlow,
        {"features": 3, "num_bins": 4, "autoregressive": True, "context_features": 2, **SMALL},
    ),
    "realnvp": (RealNVP, {"features": 3, **STANDARDIZED, **SMALL}),
    "realnvp-classes": (RealNVP, {"features": 2, "num_classes": 3, "scale_map": "sigmoid", **SMALL}),
    "maf": (MAF, {"features": 3, "context_features": 2, **SMALL}),
    "maf-exp": (MAF, {"features": 3, "scale_map": "exp", **SMALL}),
    "iaf": (IAF, {"features": 3, **STANDARDIZED, **SMALL}),
}
IMAGES = {
    "realnvp-images": (
        RealNVP,
        {"image_size": 4, "image_channels": 1, "levels": 5, "channels": 4, "num_blocks": 1, "num_classes": 3},
    ),
    "realnvp-rgb": (
        RealNVP,
        {"image_size": (2, 4), "levels": 256, "channels": 4, "num_blocks": 1, "reversible": True},
    ),
    "realnvp-one-scale": (
        RealNVP,
        {
            "image_size": 4,
            "image_channels": 2,
            "levels": 16,
            "scales": 1,
            "channels": 4,
            "num_blocks": 1,
            "dropout": 0.2,
        },
    ),
    "glow": (
        Glow,
        {"image_size": (4, 8), "scales": 2, "steps": 2, "channels": 6, "num_classes": 3, "dropout": 0.2},
    ),
    "glow-splines": (
        Glow,
        {
            "image_size": (2, 4),
            "levels": 8,
            "scales": 1,
            "steps": 2,
            "channels": 6,
            "coupling": "rational_quadratic",
            "num_bins": 4,
        },
    ),
    "glow-additive": (
        Glow,
        {"image_size": 4, "image_channels": 1, "scales": 2, "steps": 1, "channels": 6, "coupling": "additive"},
    ),
    "glow-grey": (Glow, {"image_size": 4, "image_channels": 1, "levels": 5, "scales": 1, "steps": 2, "channels": 6}),
}
EVERY = VECTORS | IMAGES


def make(name):
    """A flow away from its start (where many layers are the identity), in float64 and in eval mode."""
    kind, config = EVERY[name]
    flow = kind(**config).double()
    if flow.levels is not None:
        flow.initialize(torch.randint(flow.levels, (8, *flow.shape)), context_for(flow, 8))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.eval()


def context_for(flow, n):
    if flow.num_classes is not None:
        return torch.arange(n) % flow.num_classes
    return None if flow.context_features is None else torch.randn(n, flow.context_features, dtype=flow.dtype)


def data_for(flow, n):
    if flow.levels is not None:
        return torch.rand(n, *flow.shape, dtype=flow.dtype) * flow.levels
    return torch.randn(n, *flow.shape, dtype=flow.dtype) * 1.5
