"""Vector quantisation as a layer: a codebook that moving averages train."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fastgen.nn.arguments import floating, plain_numbers, positive, without_effect
from fastgen.nn.module_state import RunningAverages
from fastgen.ops.vector_quantize import code_perplexity, vector_quantize


class Quantized(NamedTuple):
    """What a vector quantiser returns.

    Attributes:
        quantized: the shape and dtype of the input, with the gradient straight through to it.
        indices: int64, the codes; without the dimension of the features, or with the codebooks in its place at the end.
        loss: the commitment loss, and with a learned codebook that codebook's too; a scalar.
        perplexity: how many codes this batch uses, 1 to `num_codes`; a scalar, of residual stages one number each.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    perplexity: Tensor


class VectorQuantizer(RunningAverages):
    """Replaces every vector of features by the nearest code; training moves codes to the mean of their vectors.

    In training every call is one step of the moving averages of counts and sums, `N_k <- g N_k + (1 - g) n_k` and
    `m_k <- g m_k + (1 - g) sum x`, and the codes that the batch uses become `m_k / N_k`; the others stay. The first
    batch, and later every code whose average count falls below `restart_below` of its fair share, starts again from a
    vector of the batch: no code stays dead. In distributed training counts and sums are those of all processes.

    Args:
        num_codes: in the codebook.
        code_dim: features of a code.
        decay: g, of the moving averages; None for a codebook that is a parameter, trained by
            `|sg[x] - e|^2` in the loss.
        commitment: weight of the commitment loss, `|x - sg[e]|^2`.
        restart_below: a share of the average count, 0 for codes that are never restarted; of moving averages alone.
        feature_dim: where the features are: 1 in images [batch, code_dim, height, width], -1 in sequences.

    Shape: `x` any with `code_dim` at `feature_dim`; indices have that shape without it.

    Raises:
        ValueError: arguments out of range, or an `x` of other features.
        TypeError: an `x` that is not a floating tensor.

    Source: van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (2017), section 3.2 and
    appendix A.1; restarts: Dhariwal et al., "Jukebox" (2020), section 3.1.
    """

    averages: ClassVar[tuple[str, ...]] = ("average_counts", "average_sums")

    @plain_numbers
    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        decay: float | None = 0.99,
        commitment: float = 0.25,
        restart_below: float = 0.05,
        feature_dim: int = 1,
    ) -> None:
        super().__init__()
        positive(num_codes=num_codes, code_dim=code_dim)
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1) or None, got {decay!r}")
        if not commitment >= 0:
            raise ValueError(f"commitment: expected at least 0, got {commitment!r}")
        if not 0 <= restart_below < 1:
            raise ValueError(f"restart_below: expected a share in [0, 1), got {restart_below!r}")
        if decay is None:
            without_effect(VectorQuantizer.__init__, locals(), "without decay", "restart_below")
        self.num_codes, self.code_dim, self.decay = num_codes, code_dim, decay
        self.commitment, self.restart_below, self.feature_dim = commitment, restart_below, feature_dim
        codebook = torch.randn(num_codes, code_dim)
        if decay is None:
            self.codebook = nn.Parameter(codebook / num_codes)
            return
        self.register_buffer("codebook", codebook)
        self.register_buffer("average_counts", torch.ones(num_codes))
        self.register_buffer("average_sums", codebook.clone())
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Quantized:
        floating(x)
        if x.dim() < 2 or not -x.dim() <= self.feature_dim < x.dim() or x.shape[self.feature_dim] != self.code_dim:
            raise ValueError(f"x: expected {self.code_dim} features at {self.feature_dim}, got {tuple(x.shape)}")
        features_last = x.movedim(self.feature_dim, -1)
        found = vector_quantize(features_last, self.codebook)
        loss = self._loss(features_last, found.quantized, found.indices)
        if self.training and self.decay is not None:
            self._move(features_last.detach().reshape(-1, self.code_dim), found.counts, found.sums)
        quantized = found.quantized.movedim(-1, self.feature_dim)
        return Quantized(quantized, found.indices, loss, code_perplexity(found.counts))

    def decode(self, indices: Tensor) -> Tensor:
        """The codes of these indices, their features at `feature_dim`."""
        return nn.functional.embedding(indices, self.codebook).movedim(-1, self.feature_dim)

    def _loss(self, x: Tensor, quantized: Tensor, indices: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, self.codebook.dtype)
        loss = self.commitment * mse_loss(x.to(dtype), quantized.detach().to(dtype))
        if self.decay is None:
            # A vector that is not finite has no code, and makes the first term NaN already.
            codes = nn.functional.embedding(indices.clamp(min=0), self.codebook)
            loss = loss + mse_loss(codes.to(dtype), x.detach().to(dtype))
        return loss

    @torch.no_grad()
    def _move(self, rows: Tensor, counts: Tensor, sums: Tensor) -> None:
        """One step of the moving averages, without the host waiting for a number."""
        counts, sums = counts.to(self.average_counts.dtype), sums.to(self.average_sums.dtype)
        fresh = self._rows_of_the_batch(rows).to(sums.dtype)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
            dist.broadcast(fresh, 0)
        share, moved = counts.mean(), (counts > 0).unsqueeze(1)
        self.average_counts.lerp_(counts, 1 - self.decay)
        self.average_sums.lerp_(sums, 1 - self.decay)
        if self.restart_below > 0:
            dead = (self.average_counts < self.restart_below * share) | ~self.started
            # An empty batch has no vectors to start the codes from; a later one has.
            dead = (dead & (share > 0) & fresh.isfinite().all(1)).unsqueeze(1)
            # A new code gets the mean weight, and so as much time as a used one before it counts as dead.
            self.average_counts.copy_(torch.where(dead.squeeze(1), share, self.average_counts))
            self.average_sums.copy_(torch.where(dead, fresh * share, self.average_sums))
            moved = moved | dead
        self.started.copy_(self.started | (share > 0))
        # Averages of a code that goes unused fall to nothing, both alike: their ratio stays, and is not to be rounded.
        self.codebook.copy_(torch.where(moved, self.average_sums / self.average_counts.unsqueeze(1), self.codebook))

    def _rows_of_the_batch(self, rows: Tensor) -> Tensor:
        """`num_codes` of them at random, each as seldom twice as can be."""
        n = rows.shape[0]
        if n == 0:
            return self.codebook.clone()
        order = torch.randperm(n, device=rows.device)
        chosen = order.repeat(-(-self.num_codes // n))[: self.num_codes]
        return rows[chosen].to(self.codebook.dtype)

    def extra_repr(self) -> str:
        return f"num_codes={self.num_codes}, code_dim={self.code_dim}, decay={self.decay}, commitment={self.commitment}"


class ResidualVectorQuantizer(nn.Module):
    """Quantises in stages: every stage is a `VectorQuantizer` of what those before it have left.

    `num_quantizers` codebooks of k codes tell k^num_quantizers vectors apart.

    Args:
        num_quantizers: stages.
        num_codes, code_dim: of every codebook.
        options: of every `VectorQuantizer`.

    Shape: as of `VectorQuantizer`; indices and perplexity have the stages in a last dimension more. The loss is the
        mean over the stages.

    Raises:
        ValueError, TypeError: what `VectorQuantizer` raises.

    Source: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec" (2021), section III.C.
    """

    @plain_numbers
    def __init__(self, num_quantizers: int, num_codes: int, code_dim: int, **options) -> None:
        super().__init__()
        positive(num_quantizers=num_quantizers)
        self.stages = nn.ModuleList(VectorQuantizer(num_codes, code_dim, **options) for _ in range(num_quantizers))

    def forward(self, x: Tensor) -> Quantized:
        residual, found = x, []
        for stage in self.stages:
            found.append(stage(residual))
            residual = residual - found[-1].quantized.detach()
        codes, indices, losses, perplexities = zip(*found, strict=True)
        # Added is zero, with the gradient of x.
        quantized = torch.stack(codes).detach().sum(0) + (x - x.detach())
        return Quantized(quantized, torch.stack(indices, -1), torch.stack(losses).mean(), torch.stack(perplexities))

    def decode(self, indices: Tensor) -> Tensor:
        """The sums of the codes of these indices [..., num_quantizers], their features at `feature_dim`."""
        parts = [stage.decode(index) for stage, index in zip(self.stages, indices.unbind(-1), strict=True)]
        return torch.stack(parts).sum(0)
