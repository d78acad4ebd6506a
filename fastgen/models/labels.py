"""The check of labels that models share."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.nn.arguments import readable


def check_classes(labels: Tensor, batch: int, num_classes: int, of: str = "image") -> None:
    """Raises where `labels` are not classes [batch] below `num_classes`, one for each of what `of` says.

    On an accelerator their values are not read: nothing waits.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integers, got {getattr(labels, 'dtype', type(labels).__name__)}")
    if labels.shape != (batch,):
        raise ValueError(f"labels: expected [{batch}], one class per {of}, got {list(labels.shape)}")
    if labels.device.type == "cpu" and readable(labels):
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels: expected classes 0 to {num_classes - 1}, got {low} to {high}")
