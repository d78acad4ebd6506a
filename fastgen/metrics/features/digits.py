"""A small classifier of scikit-learn's digits: features and classes where an ImageNet network has nothing to say."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen.files import cache_folder, write_whole
from fastgen.metrics.features.images import unit_images
from fastgen.nn.full_precision import full_precision, with_autograd

NUM_FEATURES = 64
EPOCHS, BATCH, PEAK_LR = 24, 64, 4e-3
# Part of the name of the file in the cache: a change of the training gets another number.
VERSION = 1


class DigitFeatures(nn.Module):
    """A convolutional classifier of 8 x 8 digits: [B, 1, 8, 8] to 64 features, and to the logits of 10 classes.

    It is trained on first use, in seconds, on nine tenths of scikit-learn's 1,797 digits, and kept in the cache folder
    (`$FASTGEN_CACHE`). Of the other tenth it classifies more than 97 % correctly (`accuracy`). The seed decides its
    weights.

    Args:
        seed: of the held-out tenth, the weights and the order of training.
        cached: take it from the cache folder, and keep it there.

    Images are uint8 (0 to 255) or floats in [0, 1]; the data's own levels 0 to 16 are to be divided by 16 first.
    """

    num_features = NUM_FEATURES
    num_classes = 10
    # The share of the held-out digits that are classified right.
    accuracy: float

    @full_precision
    @with_autograd
    def __init__(self, seed: int = 0, *, cached: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Conv2d(1, 24, 3, padding=1), nn.Conv2d(24, 48, 3, padding=1)
            self.hidden, self.classes = nn.Linear(48 * 16, NUM_FEATURES), nn.Linear(NUM_FEATURES, 10)
        self.register_buffer("_accuracy", torch.zeros((), dtype=torch.float64))
        file = cache_folder() / f"digits-{VERSION}-{seed}.npz"
        if not (cached and self._restore(file)):
            self._accuracy.fill_(train(self, seed))
            if cached:
                self._keep(file)
        self.accuracy = self._accuracy.item()
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """The activations [B, 64] before the last layer."""
        images = unit_images(images)
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(f"images: the features 'digits' are of [B, 1, 8, 8], got {tuple(images.shape)}")
        x = images.to(self.first.weight.dtype)
        x = F.max_pool2d(F.relu(self.second(F.relu(self.first(x)))), 2)
        return F.relu(self.hidden(x.flatten(1)))

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the digits, [B, 10]."""
        return self.logits_of_features(self(images))

    def logits_of_features(self, features: Tensor) -> Tensor:
        """`logits` from what `forward` gave."""
        return self.classes(features)

    def _restore(self, file: Path) -> bool:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                self.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile):
            # Not there yet, or damaged: it is made again.
            return False
        return True

    def _keep(self, file: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **{name: tensor.numpy() for name, tensor in self.state_dict().items()})
        # A cache that cannot be written is no reason to stop.
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, buffer.getvalue())


def train(model: DigitFeatures, seed: int) -> float:
    """Teach `model` the digits; gives the share of the held-out ones that it classifies right."""
    from fastgen.data.digits import digits

    learned, held_out = digits().split(0.1, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK_LR)
    steps = EPOCHS * (len(learned) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    threads = torch.get_num_threads()
    # One thread adds in one order, so that the weights do not depend on the number of cores.
    torch.set_num_threads(1)
    try:
        for _ in range(EPOCHS):
            order = torch.randperm(len(learned), generator=generator)
            for index in order.split(BATCH)[: len(learned) // BATCH]:
                images = _shifted(learned.images[index].float() / 16, generator)
                loss = F.cross_entropy(model.logits(images), learned.labels[index], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            found = model.logits(held_out.images.float() / 16).argmax(1)
    finally:
        torch.set_num_threads(threads)
    return (found == held_out.labels).double().mean().item()


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images moved by up to one pixel each way, with zeros at the edges."""
    moves = torch.randint(-1, 2, (len(images), 2), generator=generator)
    moves[torch.rand(len(images), generator=generator) < 0.5] = 0
    padded = F.pad(images, (1, 1, 1, 1))
    rows = (torch.arange(8) + 1 + moves[:, :1])[:, None, :, None]
    columns = (torch.arange(8) + 1 + moves[:, 1:])[:, None, None, :]
    return padded[torch.arange(len(images))[:, None, None, None], 0, rows, columns]
