"""The path length of a generator known in closed form is its closed form."""

import pytest
import torch

from fastgen.metrics import PerceptualPathLength
from fastgen.metrics.perceptual_path_length import slerp


def squared(a, b):
    return (a - b).flatten(1).square().sum(1)


def latents(n=200, d=6):
    return torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)


def test_of_a_linear_generator_is_the_squared_length_of_its_path():
    a, b = latents()
    weights = torch.randn(6, 5, dtype=torch.float64)
    metric = PerceptualPathLength(squared, interpolation="lerp", quantiles=(0, 1))
    metric.update(lambda z: z @ weights, a[:90], b[:90])
    metric.update(lambda z: z @ weights, a[90:], b[90:])
    torch.testing.assert_close(metric.compute(), squared(a @ weights, b @ weights).mean(), rtol=1e-6, atol=0)


def test_on_the_sphere_is_the_squared_angle():
    a, b = latents()
    metric = PerceptualPathLength(squared, quantiles=(0, 1))
    metric.update(lambda z: z, a, b)
    cosine = torch.nn.functional.cosine_similarity(a, b)
    torch.testing.assert_close(metric.compute(), cosine.acos().square().mean(), rtol=1e-5, atol=0)


def test_quantiles_leave_out_the_extremes():
    a, b = torch.zeros(101, 1, dtype=torch.float64), torch.arange(101, dtype=torch.float64)[:, None].sqrt()
    metric = PerceptualPathLength(squared, interpolation="lerp", quantiles=(0.1, 0.9))
    metric.update(lambda z: z, a, b)
    # Squared lengths 0 to 100: those from 10 to 90 remain.
    torch.testing.assert_close(metric.compute(), torch.tensor(50.0, dtype=torch.float64), rtol=1e-6, atol=0)
    metric = PerceptualPathLength(squared, interpolation="lerp", quantiles=(0.1, 0.5))
    metric.update(lambda z: z, a, b)
    torch.testing.assert_close(metric.compute(), torch.tensor(30.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_seed_decides_the_places():
    a, b = latents(20)

    def generate(z):
        return z.exp()

    values = []
    metric = PerceptualPathLength(squared, seed=1)
    for _ in range(2):
        metric.update(generate, a, b)
        values.append(metric.compute())
        metric.reset()
    other = PerceptualPathLength(squared, seed=2)
    other.update(generate, a, b)
    assert values[0] == values[1] != other.compute()


def test_slerp():
    a, b = torch.tensor([[1.0, 0], [1, 0], [1, 0]]), torch.tensor([[0, 3.0], [1, 0], [1, 1e-9]])
    t = torch.tensor([0.5, 0.3, 0.5])
    found = slerp(a.double(), b.double(), t.double())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found[0], torch.tensor([0.5, 0.5], dtype=torch.float64).sqrt())
    torch.testing.assert_close(found[1], torch.tensor([1.0, 0], dtype=torch.float64))


def test_refuses():
    a, b = latents(4)
    with pytest.raises(TypeError, match="distance"):
        PerceptualPathLength(None)
    with pytest.raises(ValueError, match="interpolation"):
        PerceptualPathLength(squared, interpolation="cubic")
    with pytest.raises(ValueError, match="quantiles"):
        PerceptualPathLength(squared, quantiles=(0.9, 0.1))
    with pytest.raises(ValueError, match="epsilon"):
        PerceptualPathLength(squared, epsilon=0)
    metric = PerceptualPathLength(squared)
    with pytest.raises(ValueError, match="one shape"):
        metric.update(lambda z: z, a, b[:2])
    with pytest.raises(ValueError, match="4 of 4 are NaN"):
        metric.update(lambda z: z * torch.nan, a, b)
    with pytest.raises(ValueError, match=r"expected \[4\]"):
        PerceptualPathLength(lambda x, y: x - y).update(lambda z: z, a, b)
