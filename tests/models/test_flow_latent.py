"""Interpolation and attribute vectors move in the latents of flows."""

import pytest
import torch

from tests.models.flow_cases import EVERY, IMAGES, context_for, data_for, make


@pytest.fixture(params=EVERY)
def flow(request):
    return make(request.param)


@pytest.fixture(params=IMAGES)
def image_flow(request):
    return make(request.param)


def test_interpolate(image_flow):
    flow, context = image_flow, context_for(image_flow, 2)
    a, b = torch.randint(flow.levels, (2, 2, *flow.shape))
    path = flow.interpolate(a, b, 5, context)
    assert path.shape == (5, 2, *flow.shape) and path.dtype == torch.uint8
    assert torch.equal(path[0], a.to(torch.uint8)) and torch.equal(path[-1], b.to(torch.uint8))
    middle = flow.decode((flow.encode(a, context) + flow.encode(b, context)) / 2, context)
    assert torch.equal(path[2], middle.floor().clamp(0, flow.levels - 1).to(torch.uint8))
    with pytest.raises(ValueError, match="steps: expected an int of at least 2, got 1"):
        flow.interpolate(a, b, 1, context)
    with pytest.raises(ValueError, match="b: expected the shape of a"):
        flow.interpolate(a, b[:1], 3, context)


def test_attribute_vectors_move_between_groups(flow):
    context = context_for(flow, 8)
    x = data_for(flow, 8)
    attribute = torch.arange(8) % 2 == 0
    vector = flow.attribute_vector(x, attribute, context)
    z = flow.encode(x, context)
    torch.testing.assert_close(vector, z[::2].mean(0) - z[1::2].mean(0))
    moved = flow.manipulate(x, vector, -0.5, context)
    expected = flow.decode(z - 0.5 * vector, context)
    if flow.levels is not None:
        expected = expected.floor().clamp(0, flow.levels - 1).to(torch.uint8)
    torch.testing.assert_close(moved, expected)
    with pytest.raises(ValueError, match=r"attribute: expected a bool tensor \[8\]"):
        flow.attribute_vector(x, attribute[:4], context)
    with pytest.raises(ValueError, match="attribute: expected examples with it and examples without"):
        flow.attribute_vector(x, torch.ones(8, dtype=torch.bool), context)
    with pytest.raises(ValueError, match="vector: expected"):
        flow.manipulate(x, vector[:-1], 1.0, context)
