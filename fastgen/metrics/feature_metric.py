"""Metrics of features of one set or two, with results that do not depend on the order of the examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgen.metrics.arguments import seed_of
from fastgen.metrics.features import feature_extractor
from fastgen.metrics.metric import Metric
from fastgen.nn.full_precision import full_precision

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FeatureMetric(Metric):
    """A metric of the features that an extractor gives for examples.

    Features are taken without gradient and with autocast off, in float32 or float64; images in half precision are
    widened for a network in float32. A network of the user's works in eval mode if it is in eval mode when it is handed
    in: call its `eval()` first. It is neither in the metric's `state_dict` nor among its parameters.

    Args:
        feature: as for `fastgen.metrics.features.feature_extractor`.
        weights: file of Inception's weights.
        preprocessing: of images for Inception.
        kwargs: torchmetrics' own (`sync_on_compute`, `process_group`, ...).
    """

    is_differentiable = False

    def __init__(
        self,
        feature: str | nn.Module = "inception",
        *,
        weights: str | None = None,
        preprocessing: str = "clean-fid",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.extractor = feature_extractor(feature, weights=weights, preprocessing=preprocessing)
        named = isinstance(feature, str)
        # Metrics with equal values here extract the same features.
        self.features_of = (feature, weights, preprocessing) if named else id(feature)

    def extract(self, imgs: Tensor) -> Tensor:
        """The features [B, d] of a batch, without gradient, float32 or float64.

        Raises:
            ValueError: the extractor gives no rows for the batch, or features that are not finite.
        """
        features = rows_of(self.extractor, imgs)
        check_features(features)
        return features

    def check_width(self, features: Tensor, what: str, *held: Tensor | list[Tensor]) -> None:
        """Raises ValueError unless features [B, d] are as wide as the first rows [..., d] that are held."""
        known = next((rows[0].shape[-1] for rows in held if len(rows)), features.shape[1])
        if known != features.shape[1]:
            raise ValueError(f"features: expected {known} columns as before, got {features.shape[1]} ({what})")

    def add_set(self, name: str) -> None:
        """Add the states of a set of features and of their `row_keys`."""
        for state in (f"{name}_features", f"{name}_keys"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def keep_set(self, name: str, features: Tensor, imgs: Tensor, keys: Tensor | None = None) -> None:
        """Add features [B, d] of examples to a set; `keys` [B] are the examples' `row_keys`, None takes them here."""
        self.keep(f"{name}_features", features)
        self.keep(f"{name}_keys", row_keys(imgs) if keys is None else checked_keys(keys, len(imgs)))

    def set_of(self, name: str, at_least: int, what: str) -> Tensor:
        """The features [N, d] of a set in the order of their keys, whatever order and process they came in.

        Raises:
            ValueError: fewer than `at_least`; `what` says of what.
        """
        features = self.rows(f"{name}_features")
        self.check_enough(len(features), at_least, f"{what} examples")
        return features[order_of(self.rows(f"{name}_keys"))]


class TwoSampleMetric(FeatureMetric):
    """A metric that compares the features of generated examples with those of real ones.

    Random choices depend on `seed` and on the examples alone, not on their order or on how processes share them.

    Args:
        seed: of random choices.
        reset_real_features: whether `reset` forgets the real features too.
        kwargs: as for `FeatureMetric`.
    """

    # The least number of examples in either set.
    at_least = 2

    def __init__(self, *args: Any, seed: int = 0, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed, self.reset_real_features = seed_of(seed), bool(reset_real_features)
        self.add_set("real")
        self.add_set("fake")
        self.share_states(TwoSampleMetric, self.features_of, self.reset_real_features)

    @property
    def outlives_reset(self) -> Sequence[str]:
        """The states of the real set, unless `reset_real_features`."""
        return () if self.reset_real_features else ("real_features", "real_keys")

    def update(self, imgs: Tensor, real: bool, keys: Tensor | None = None) -> None:
        """Take in a batch: images (uint8, or floats in [0, 1]) or what else the extractor takes.

        Args:
            imgs: [B, ...]; B may be zero.
            real: whether it is of the real set, or of the generated one.
            keys: the `row_keys` [B] of the examples, where `imgs` holds features of them; None takes those of `imgs`.

        Raises:
            TypeError, ValueError: the extractor refuses the batch, its features are not finite or of another width
                than before, or `keys` is not int64 [B].
        """
        if has_none(imgs):
            return
        features = self.extract(imgs)
        self.check_width(features, "real" if real else "generated", self.real_features, self.fake_features)
        self.keep_set("real" if real else "fake", features, imgs, keys)

    def sets(self) -> tuple[Tensor, Tensor]:
        """The real and the generated features, [N, d] and [M, d], each in the order of its keys.

        Raises:
            ValueError: one of the sets is too small.
        """
        real, fake = self.set_of("real", self.at_least, "real"), self.set_of("fake", self.at_least, "generated")
        if real.shape[1] != fake.shape[1]:
            raise ValueError(
                f"features: expected one width, got {real.shape[1]} (real) and {fake.shape[1]} (generated)"
            )
        dtype = torch.promote_types(real.dtype, fake.dtype)
        return real.to(dtype), fake.to(dtype)

    def generator(self) -> torch.Generator:
        """A fresh generator of the seed."""
        return torch.Generator().manual_seed(self.seed)


def has_none(imgs: Tensor) -> bool:
    """Whether a batch has no example.

    Raises:
        TypeError: no batch of tensors.
    """
    if not isinstance(imgs, Tensor) or not imgs.dim():
        got = "one number" if isinstance(imgs, Tensor) else type(imgs).__name__
        raise TypeError(f"imgs: expected a tensor of images (or rows, with feature='given'), got {got}")
    return len(imgs) == 0


@full_precision
@torch.no_grad()
def rows_of(extractor: nn.Module, imgs: Tensor, method: str | None = None) -> Tensor:
    """The rows that an extractor, or a method of it, gives for a batch, without gradient: [B, d], float32 or float64.

    Raises:
        TypeError: no tensor.
        ValueError: other than one row for each example.
    """
    has_none(imgs)
    if imgs.dtype in (torch.float16, torch.bfloat16):
        weight = next((p for p in extractor.parameters() if p.is_floating_point()), None)
        imgs = imgs.to(torch.promote_types(imgs.dtype, torch.float32 if weight is None else weight.dtype))
    rows = (extractor if method is None else getattr(extractor, method))(imgs)
    if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) != len(imgs):
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(
            f"{method or 'features'}: expected [{len(imgs)}, d] from {type(extractor).__name__}, got {got}"
        )
    return rows if rows.dtype == torch.float64 else rows.float()


def check_features(features: Tensor, what: str = "features") -> None:
    """Raises ValueError, with their number, where rows [N, d] are not finite."""
    if bad := int((~features.isfinite()).any(1).sum()):
        raise ValueError(f"{what}: {bad} of {len(features)} rows hold NaN or infinity")


def row_keys(x: Tensor) -> Tensor:
    """A 64-bit hash of each row of [B, ...], int64 [B]: a sum of the products of the bits of its values with odd random
    numbers, modulo 2^64. Sums of integers are the same in every order, so a row has one key on every machine.
    """
    # Half precision is widened for the extractor, and has the keys of the widened values.
    rows = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    rows = rows.contiguous().flatten(1) if x.dim() > 1 else rows.contiguous()[:, None]
    bits = rows.view(_INTEGERS[rows.element_size()]).to(torch.int64)
    # NumPy's generator gives the same numbers everywhere; as signed integers they wrap around, modulo 2^64.
    factors = np.random.default_rng(20170818).integers(0, 2**63, bits.shape[1], dtype=np.int64) * 2 + 1
    return (bits * torch.from_numpy(factors).to(bits.device)).sum(1)


def checked_keys(keys: Tensor, n: int) -> Tensor:
    """`keys`, for n examples, as they were given.

    Raises:
        ValueError: other than int64 [n].
    """
    if keys.shape != (n,) or keys.dtype != torch.int64:
        raise ValueError(f"keys: expected int64 [{n}], got {keys.dtype} {list(keys.shape)}")
    return keys


def order_of(keys: Tensor) -> Tensor:
    """Indices that put rows in the order of their keys; those of equal keys are equal and may be in any order."""
    return keys.argsort(stable=True)
