"""Parts of generative adversarial networks: losses, penalties, augmentation, the game's dynamics."""

from fastgen.gan.augment import Augment
from fastgen.gan.losses import DIVERGENCES, LOSSES, AdversarialLoss, Divergence, adversarial_loss
from fastgen.gan.regularizers import (
    gradient_penalty,
    normalize_spectrally,
    path_lengths,
    squared_gradient,
    zero_centred_penalty,
)

__all__ = [
    "DIVERGENCES",
    "LOSSES",
    "AdversarialLoss",
    "Augment",
    "Divergence",
    "adversarial_loss",
    "gradient_penalty",
    "normalize_spectrally",
    "path_lengths",
    "squared_gradient",
    "zero_centred_penalty",
]
