"""Ops on the meta device answer with the shapes and dtypes of a real call, whatever its autocast and checks look at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastgen.conformance as c
from fastgen.ops.registry import Op

# Its settings lie among the weights.
OPS = [op for op in c.EVERY_OP if op.name != "coupling_flow"]


@pytest.mark.parametrize("op", OPS, ids=c.ids)
def test_meta_tensors_have_the_shapes_of_results(op: Op):
    def to_meta(value):
        return value.to("meta") if isinstance(value, Tensor) else value

    for sample in op.samples("cpu", torch.float32):
        expected = c.as_tuple(op.public(*sample.args, **sample.kwargs))
        keywords = {name: to_meta(value) for name, value in sample.kwargs.items()}
        found = c.as_tuple(op.public(*map(to_meta, sample.args), **keywords))
        assert all(t.is_meta for t in found), sample.name
        assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected], sample.name
