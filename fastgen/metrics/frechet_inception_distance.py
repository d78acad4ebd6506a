"""The Fréchet inception distance, and that of any other features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.feature_metric import FeatureMetric, has_none
from fastgen.metrics.moments import Moments, Statistics, read_statistics, write_statistics
from fastgen.ops import frechet_distance

# Rows are kept until there are so many, since large products are faster.
_CHUNK = 4096


class FrechetInceptionDistance(FeatureMetric):
    """The Fréchet distance between normal densities fitted to real and to generated features; the lower the better:

        FID = |m_r - m_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2))

    with means m and covariances C (over N - 1). FID proper is of Inception's features of 50,000 images; it is biased
    upwards by an amount that falls as 1 / N, so compare numbers of the same N only.

    Args:
        feature: as for `FeatureMetric`.
        reference: statistics of the real set, or the `.npz` file with them (pytorch-fid's, clean-fid's, or one of
            `save_statistics`): then only generated batches are taken in.
        reset_real_features: whether `reset` forgets the real set too.
        products: torch.float64, or torch.float32 for covariances in half the time, with an error of 1e-8 of the
            distance, or up to 1e-5 with fewer examples than features.
        kwargs: as for `FeatureMetric`.

    Raises:
        TypeError: another dtype of `products`.
        ValueError: `reference` cannot be read; on computing, fewer than two examples of a set.

    Features are summed in batches of thousands and not kept: the memory is that of two matrices [d, d]. Neither order
    nor batches nor the number of processes changes the result by more than rounding.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (2017),
    equation 6.
    """

    higher_is_better = False

    def __init__(
        self,
        feature: str | nn.Module = "inception",
        *,
        reference: Statistics | str | os.PathLike | None = None,
        reset_real_features: bool = True,
        products: torch.dtype = torch.float64,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, **kwargs)
        if products not in (torch.float32, torch.float64):
            raise TypeError(f"products: expected torch.float32 or torch.float64, got {products}")
        self.products, self.reset_real_features = products, bool(reset_real_features)
        if isinstance(reference, Statistics):
            reference = Statistics(reference.name, reference.mu.clone(), reference.sigma.clone())
        elif reference is not None:
            reference = read_statistics(reference)
        self.reference = reference
        for side in ("real", "fake"):
            # The latest rows, and the moments of the rows before them.
            self.add_state(f"{side}_rows", default=[], dist_reduce_fx="cat")
            self.add_state(f"{side}_moments", default=[], dist_reduce_fx="cat")

    @property
    def outlives_reset(self) -> Sequence[str]:
        """The states of the real set, unless `reset_real_features`."""
        return () if self.reset_real_features else ("real_rows", "real_moments")

    def update(self, imgs: Tensor, real: bool) -> None:
        """Take in a batch.

        Args:
            imgs: [B, ...], images (uint8, or floats in [0, 1]) or what else the extractor takes; B may be zero.
            real: whether it is of the real set, or of the generated one.
        """
        if real and self.reference is not None:
            raise ValueError(f"real: the real statistics are those of {self.reference.name}")
        if has_none(imgs):
            return
        features, side = self.extract(imgs), "real" if real else "fake"
        reference = [] if self.reference is None else [self.reference.mu]
        held = (self.real_rows, self.fake_rows, self.real_moments, self.fake_moments, reference)
        self.check_width(features, "real" if real else "generated", *held)
        self.keep(f"{side}_rows", features)
        if sum(map(len, getattr(self, f"{side}_rows"))) >= _CHUNK:
            self._compress(side)

    def compute(self) -> Tensor:
        """The distance, float64.

        Raises:
            ValueError: fewer than two examples of a set; statistics of features of another width.
        """
        return self.distance_to(self.statistics(real=False))

    def distance_to(self, fake: Statistics) -> Tensor:
        """The distance of the real set to other statistics.

        Raises:
            ValueError: fewer than two real examples; statistics of features of another width.
        """
        real = self.reference or self.statistics(real=True)
        if len(real.mu) != len(fake.mu):
            raise ValueError(
                f"features of different width: {len(real.mu)} ({real.name}) and {len(fake.mu)} ({fake.name})"
            )
        device = fake.mu.device
        return frechet_distance(real.mu.to(device), real.sigma.to(device), fake.mu, fake.sigma)

    def statistics(self, real: bool) -> Statistics:
        """The mean and the covariance of one of the sets, of this process' examples.

        Raises:
            ValueError: it has fewer than two.
        """
        side = "real" if real else "fake"
        total = self._moments(side)
        self.check_enough(0 if total is None else total.count, 2, f"{'real' if real else 'generated'} examples")
        return Statistics(f"the {side} set", *total.mean_and_covariance())

    def save_statistics(self, path: str | os.PathLike, real: bool = True) -> None:
        """Write the statistics of one of the sets where pytorch-fid, clean-fid and `reference` read them."""
        found = self.reference if real and self.reference is not None else self.statistics(real)
        write_statistics(path, found.mu, found.sigma)

    def _compress(self, side: str) -> None:
        """Replace the rows by their moments: the scatter, the mean and the count, as rows [d + 2, d]."""
        state = self._moments(side).state()
        packed = torch.vstack([state["scatter"], state["mean"], state["count"].double().expand_as(state["mean"])])
        setattr(self, f"{side}_moments", [packed[None]])
        setattr(self, f"{side}_rows", [])

    def _moments(self, side: str) -> Moments | None:
        """The moments of all rows of a side, those of other processes too once they are gathered; None without any."""
        rows, packed = getattr(self, f"{side}_rows"), self.rows(f"{side}_moments")
        # torchmetrics turns gathered rows into one tensor.
        rows = [rows] if isinstance(rows, Tensor) else rows
        rows = [part for part in rows if len(part)]
        if not rows and not len(packed):
            return None
        first = rows[0] if rows else packed[0]
        total = Moments(first.shape[-1], dtype=self.products, device=first.device)
        for one in packed:
            state = {"count": one[-1, 0].long(), "mean": one[-2], "scatter": one[:-2]}
            total.merge(Moments(len(one[-2]), dtype=self.products, device=one.device).load(state))
        for part in rows:
            total.update(part)
        return total
