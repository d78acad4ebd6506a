"""The importance-weighted bound on a log-likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating


def importance_weighted_bound(log_weights: Tensor, *, dim: int = 0) -> Tensor:
    """The bound of an importance-weighted autoencoder, from k samples of its posterior for each x.

        L_k = log (1/k sum_i w_i) <= log p(x), with log w_i = log p(x, z_i) - log q(z_i | x)

    One sample gives the evidence lower bound; more are never worse on average. Its gradient weighs that of each
    log-weight with its share of the sum, so a loss of it trains as the paper's estimator does.

    Args:
        log_weights: [..., k, ...], nats.
        dim: that of the samples.

    Returns:
        The shape of `log_weights` without `dim`, nats; float32 where that has a half type. Minus infinity where every
        weight is zero.

    Raises:
        ValueError: no samples.
        TypeError: a dtype that is not floating.

    Gradients of every order, by PyTorch: one number for each sample of each x, where a kernel would win nothing.

    Source: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders" (2016), equation 8.
    """
    check_floating("log_weights", log_weights)
    if log_weights.dim() == 0 or log_weights.shape[dim] == 0:
        raise ValueError(f"log_weights: expected at least one sample along dim {dim}, got {tuple(log_weights.shape)}")
    wide = log_weights.to(torch.promote_types(log_weights.dtype, torch.float32))
    return torch.logsumexp(wide, dim) - math.log(log_weights.shape[dim])
