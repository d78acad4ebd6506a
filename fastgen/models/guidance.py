"""The pull of a classifier of noisy data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def classifier_gradient(
    classifier: Callable[[Tensor, Tensor], Tensor], x: Tensor, time: Tensor, labels: Tensor
) -> Tensor:
    """`grad_x log p(labels | x)` at `time`, [batch, ...].

    Raises:
        ValueError: the classifier's logits are not [batch, classes], or labels are none of them.

    Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), section 4.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = classifier(x, time.expand(len(x)))
        if logits.dim() != 2 or len(logits) != len(x):
            raise ValueError(f"classifier: expected logits [{len(x)}, classes], got {list(logits.shape)}")
        if labels.device.type == "cpu" and int(labels.max()) >= logits.shape[1]:
            raise ValueError(f"labels: expected classes of the classifier's {logits.shape[1]}, got {int(labels.max())}")
        chosen = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1).gather(1, labels[:, None])
        return torch.autograd.grad(chosen.sum(), x)[0]
