"""Outliers are the points of least density, as many as were asked for."""

import math

import numpy as np
import pytest
import torch

from fastgen.density import Gaussian, KernelDensity, outliers
from tests.density.estimator_cases import ESTIMATORS, two_hills


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if not name.startswith(("histogram-", "series"))])
def test_finds_points_far_away(name):
    x = two_hills(190, 2)
    strange = np.stack((np.linspace(7, 9, 10), np.linspace(-6, -9, 10)), 1)
    found = outliers(ESTIMATORS[name]().fit(x), np.concatenate((x, strange)), 0.05)
    assert found.dtype == bool and found.shape == (200,) and found.sum() == 10
    assert found[-10:].all()


def test_same_kind_out_and_the_number_asked_for():
    x = torch.from_numpy(two_hills(101, 2)).requires_grad_()
    model = Gaussian().fit(x.detach())
    for contamination, number in ((0.5, 50), (0.1, 10), (1e-6, 0)):
        found = outliers(model, x, contamination)
        assert isinstance(found, torch.Tensor) and found.dtype == torch.bool and found.sum() == number
        assert not number or model.score_samples(x)[found].max() < model.score_samples(x)[~found].min()
    # All the same density: as many all the same.
    assert outliers(KernelDensity(1.0).fit(np.zeros((1, 1))), np.ones((20, 1))).sum() == 2
    assert outliers(model, np.zeros((0, 2))).shape == (0,)


def test_refuses():
    x = two_hills(50, 2)
    model = Gaussian().fit(x)
    for wrong in (0, 0.6, -1, math.nan, "0.1", True):
        with pytest.raises(ValueError, match=r"contamination: expected a number in \(0, 0.5\], got"):
            outliers(model, x, wrong)
    with pytest.raises(TypeError, match="model: expected a density estimator, got int"):
        outliers(3, x)
    x[[2, 5], 1] = math.nan
    with pytest.raises(ValueError, match="X: expected numbers, 2 of 50 rows hold NaN"):
        outliers(model, x)
    with pytest.raises(ValueError, match="Gaussian is not fitted yet"):
        outliers(Gaussian(), x)
