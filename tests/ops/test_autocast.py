"""Autocast changes what a layer multiplies, and nothing else: not distances, sums, roots, resampling or likelihoods."""

from __future__ import annotations

import pytest
import torch

from fastgen import conformance as c
from fastgen.ops.extensions import UNUSABLE
from fastgen.ops.registry import Op

# Convolutions and matrix products of layers, of which autocast decides as of F.conv2d and F.linear.
LAYERS = {"causal_conv1d", "invertible_conv1x1", "masked_conv2d", "modulated_conv2d"}
VARIANTS = [
    (op, v)
    for op, v in [*c.variants("cpu"), *((op, "reference") for op in c.EVERY_OP)]
    if op.name not in LAYERS and v not in ("cpp/AVX2", "triton")
]


@pytest.mark.parametrize(("op", "variant"), VARIANTS, ids=c.ids)
def test_autocast_changes_nothing(op: Op, variant: str):
    if UNUSABLE.get(variant.partition("/")[0]):
        pytest.skip(UNUSABLE[variant.partition("/")[0]])
    drawn = list(op.samples("cpu", torch.float32)) if variant == "reference" else c.samples(op, variant, torch.float32)
    sizes = [[t.numel() for t in c.floating(s.args)] for s in drawn]
    for sample in [s for s, n in zip(drawn, sizes, strict=True) if all(n) and sum(n) < 2000][:8]:

        def cast(*args, **kwargs):
            with torch.autocast("cpu", torch.bfloat16):
                return op.public(*args, **kwargs)

        with c.running_on(variant):
            usual = c.values_and_gradients(op.public, sample, torch.float32, gradient=op.grad_order > 0)
            found = c.values_and_gradients(cast, sample, torch.float32, gradient=op.grad_order > 0)
        for value, expected in zip(found, usual, strict=True):
            assert value.dtype == expected.dtype
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, equal_nan=True, msg=sample.name)
