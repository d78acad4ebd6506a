"""Squeezing and splitting are nflows' and are undone exactly."""

import pytest
import torch

from fastgen.nn import Split, Squeeze
from tests.nn.transform_properties import PROPERTIES, Case

CASES = [Case("factor 2", Squeeze, (3, 2, 4)), Case("factor 3", lambda: Squeeze(3), (1, 3, 6))]


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_property(case, check):
    check(case)


def test_squares_become_channels_row_by_row():
    x = torch.arange(8.0).reshape(1, 1, 2, 4)
    assert Squeeze()(x)[0].tolist() == [[[[0, 2]], [[1, 3]], [[4, 6]], [[5, 7]]]]


@pytest.mark.parametrize("factor", [2, 4])
def test_is_nflows(factor):
    reshape = pytest.importorskip("nflows.transforms.reshape")
    theirs, ours = reshape.SqueezeTransform(factor), Squeeze(factor)
    x = torch.randn(2, 3, 4, 8)
    y = theirs(x)[0]
    assert torch.equal(ours(x)[0], y) and torch.equal(ours.inverse(y)[0], theirs.inverse(y)[0])


def test_split_is_undone():
    x = torch.randn(2, 6, 3, 3)
    kept, out = Split()(x)
    assert kept.shape == out.shape == (2, 3, 3, 3)
    assert torch.equal(Split().inverse(kept, out), x)


def test_refuses():
    for factor in (1, 2.0, -2):
        with pytest.raises(ValueError, match="factor: expected an int of at least 2"):
            Squeeze(factor)
    with pytest.raises(ValueError, match=r"x: expected .* multiples of 2, got \(1, 1, 2, 3\)"):
        Squeeze()(torch.randn(1, 1, 2, 3))
    with pytest.raises(ValueError, match=r"y: expected .* channels a multiple of 4, got \(1, 6, 2, 2\)"):
        Squeeze().inverse(torch.randn(1, 6, 2, 2))
    with pytest.raises(ValueError, match=r"x: expected .* an even number of channels, got \(2, 3, 4, 4\)"):
        Split()(torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"out: expected the shape of kept, \(2, 3\), got \(2, 2\)"):
        Split().inverse(torch.randn(2, 3), torch.randn(2, 2))
    with pytest.raises(TypeError, match="x: expected a floating dtype"):
        Squeeze()(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
