"""Scikit-learn's handwritten digits: 1,797 real 8x8 images with 17 grey levels, on disk wherever scikit-learn is."""

from __future__ import annotations

import torch

from fastgen.data.images import Images


def digits() -> Images:
    """The UCI optical digits test set, `[1797, 1, 8, 8]` with values 0 to 16 and labels 0 to 9.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Images(
        images=torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1),
        levels=17,
        labels=torch.from_numpy(bunch.target).to(torch.int64),
        num_classes=10,
    )
