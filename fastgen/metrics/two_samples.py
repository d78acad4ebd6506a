"""Metrics that keep the features of two sets: the real and the generated one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen.metrics.arguments import seed_of
from fastgen.metrics.feature_metric import FeatureMetric, has_none
from fastgen.metrics.row_keys import checked_keys, order_of, row_keys


class TwoSampleMetric(FeatureMetric):
    """A metric that compares the features of generated examples with those of real ones.

    What is drawn depends on `seed` and on the examples alone, not on their order or on how processes share them.

    Args:
        seed: of what is drawn.
        reset_real_features: whether `reset` forgets the real features too.
        kwargs: as for `FeatureMetric`.
    """

    # Fewer than these in either set are an error.
    at_least = 2

    def __init__(self, *args: Any, seed: int = 0, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed, self.reset_real_features = seed_of(seed), bool(reset_real_features)
        for state in ("real_features", "fake_features", "real_keys", "fake_keys"):
            self.add_state(state, default=[], dist_reduce_fx="cat")
        self.share_states(TwoSampleMetric, self.features_of, self.reset_real_features)

    @property
    def outlives_reset(self) -> Sequence[str]:
        return () if self.reset_real_features else ("real_features", "real_keys")

    def update(self, imgs: Tensor, real: bool, keys: Tensor | None = None) -> None:
        """Take in a batch: images (uint8, or floats in [0, 1]) or what else the extractor takes.

        Args:
            imgs: [B, ...]; B may be zero.
            real: whether it is of the real set, or of the generated one.
            keys: the `row_keys` [B] of the examples, where `imgs` holds features of them; None takes those of `imgs`.
        """
        if has_none(imgs):
            return
        features = self.extract(imgs)
        self._check_width(features, "real" if real else "generated")
        side = "real" if real else "fake"
        self.keep(f"{side}_features", features)
        self.keep(f"{side}_keys", row_keys(imgs) if keys is None else checked_keys(keys, len(imgs)))

    def sets(self) -> tuple[Tensor, Tensor]:
        """The real and the generated features, [N, d] and [M, d], each in the order of its keys.

        Raises:
            ValueError: one of the sets is too small.
        """
        found = []
        for side, what in (("real", "real"), ("fake", "generated")):
            features, keys = self.rows(f"{side}_features"), self.rows(f"{side}_keys")
            if len(features) < self.at_least:
                raise ValueError(
                    f"{type(self).__name__}: expected at least {self.at_least} {what} examples, got {len(features)}"
                )
            found.append(features[order_of(keys)])
        real, fake = found
        if real.shape[1] != fake.shape[1]:
            raise ValueError(
                f"features: expected one width, got {real.shape[1]} (real) and {fake.shape[1]} (generated)"
            )
        dtype = torch.promote_types(real.dtype, fake.dtype)
        return real.to(dtype), fake.to(dtype)

    def generator(self) -> torch.Generator:
        """A fresh generator of the seed."""
        return torch.Generator().manual_seed(self.seed)

    def _check_width(self, features: Tensor, what: str) -> None:
        for known in (*self.real_features[:1], *self.fake_features[:1]):
            if known.shape[1] != features.shape[1]:
                raise ValueError(
                    f"features: expected {known.shape[1]} columns as before, got {features.shape[1]} ({what})"
                )
