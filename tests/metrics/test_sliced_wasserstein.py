"""The sliced distance equals scipy's on each direction, and is a metric with gradients."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from fastgen.metrics import SlicedWasserstein, sliced_wasserstein


@pytest.mark.parametrize(("n", "m"), [(50, 50), (30, 47), (1, 5), (6, 4)])
def test_equals_scipy_on_each_direction(n, m):
    x, y = torch.randn(n, 3, dtype=torch.float64), 1 + torch.randn(m, 3, dtype=torch.float64)
    directions = torch.randn(7, 3, dtype=torch.float64)
    expected = np.mean([wasserstein_distance((x @ v).numpy(), (y @ v).numpy()) for v in directions])
    np.testing.assert_allclose(sliced_wasserstein(x, y, directions, p=1).item(), expected, rtol=1e-12)


def test_of_a_shift_is_its_projection():
    x, shift = torch.randn(40, 2, dtype=torch.float64), torch.tensor([3.0, -1.0], dtype=torch.float64)
    directions = torch.randn(90, 2, dtype=torch.float64)
    expected = (directions @ shift).square().mean().sqrt()
    torch.testing.assert_close(sliced_wasserstein(x, x + shift, directions), expected)
    # And in another number of the same points too.
    torch.testing.assert_close(sliced_wasserstein(x, (x + shift).repeat(3, 1), directions), expected)


def test_metric():
    x, y = torch.rand(30, 1, 4, 4), torch.rand(20, 1, 4, 4) ** 2
    found = []
    for a, b, seed in ((x, y, 0), (x.flip(0), y.flip(0), 0), (x, y, 1), (x, x, 0)):
        metric = SlicedWasserstein(num_projections=200, seed=seed)
        metric.update(a[:7], real=True)
        metric.update(a[7:], real=True)
        metric.update(b, real=False)
        found.append(metric.compute().item())
    assert found[0] == found[1] != found[2]
    assert found[2] == pytest.approx(found[0], rel=0.2)
    assert found[3] == 0


def test_gradient():
    x, directions = torch.randn(5, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    y = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda y: sliced_wasserstein(x, y, directions), (y,))


def test_refuses():
    x = torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"expected \[N, d\]"):
        sliced_wasserstein(x, torch.randn(5, 3), torch.randn(1, 2))
    with pytest.raises(ValueError, match="directions"):
        sliced_wasserstein(x, x, torch.randn(0, 2))
    with pytest.raises(ValueError, match="p: expected at least 1"):
        SlicedWasserstein(p=0.5)
    with pytest.raises(ValueError, match="num_projections"):
        SlicedWasserstein(num_projections=0)


def test_precision():
    """Half precision, autocast, and points far from zero."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(40, 6, generator=generator), 0.3 + torch.randn(30, 6, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(20, 6, generator=generator), dim=1)
    for a, b in ((x.bfloat16(), y.bfloat16()), (x + 1e5, y + 1e5), (x, y.half()), (x, y)):
        expected = sliced_wasserstein(a.double(), b.double(), directions.double()).item()
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found = sliced_wasserstein(a, b, directions)
            assert found.dtype == torch.float32 and found.item() == pytest.approx(expected, rel=1e-5)
