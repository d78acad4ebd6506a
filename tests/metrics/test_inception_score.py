"""The inception score equals torchmetrics' on the same logits, whatever the batches."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore

from fastgen.metrics import InceptionScore
from fastgen.metrics.feature_metric import order_of, row_keys


def formula(logits: np.ndarray) -> float:
    """Salimans et al. (2016), section 4, by its letters."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


def logits(n=60, classes=7):
    return torch.randn(n, classes, dtype=torch.float64) * 2


def test_equals_torchmetrics_on_the_same_logits():
    x = logits()
    ours = InceptionScore("given", splits=1)
    ours.update(x)
    theirs = TorchmetricsInceptionScore(nn.Identity(), splits=1, normalize=True)
    theirs.features.append(x)
    with np.errstate(all="ignore"):
        expected = theirs.compute()[0]
    torch.testing.assert_close(ours.compute()[0], expected, rtol=1e-6, atol=0)
    # torchmetrics divides by zero here.
    assert ours.compute()[1] == 0


def test_equals_torchmetrics_on_the_same_parts(monkeypatch):
    x = logits()
    ours = InceptionScore("given", splits=10)
    ours.update(x)
    found = ours.compute()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    theirs = TorchmetricsInceptionScore(nn.Identity(), splits=10, normalize=True)
    theirs.features.append(x[order_of(row_keys(x))][order])
    monkeypatch.setattr(torch, "randperm", torch.arange)
    torch.testing.assert_close(found, theirs.compute(), rtol=1e-9, atol=0)


def test_splits_are_the_formula_on_each_part():
    x = logits(103)
    metric = InceptionScore("given", splits=10, seed=3)
    for part in x.split(17):
        metric.update(part)
    order = torch.randperm(103, generator=torch.Generator().manual_seed(3))
    parts = x[order_of(row_keys(x))][order].numpy()
    scores = [formula(part) for part in np.array_split(parts, 10)]
    mean, deviation = metric.compute()
    np.testing.assert_allclose(mean.item(), np.mean(scores), rtol=1e-12)
    np.testing.assert_allclose(deviation.item(), np.std(scores, ddof=1), rtol=1e-12)


def test_neither_the_order_nor_the_batches_matter():
    x = logits(50)
    found = []
    for rows in (x, x.flip(0)):
        metric = InceptionScore("given", splits=5)
        for part in rows.split(13):
            metric.update(part)
        found.append(torch.stack(metric.compute()))
    torch.testing.assert_close(*found, rtol=1e-14, atol=0)


def test_extremes():
    sure = torch.eye(4, dtype=torch.float64).repeat(5, 1) * 2000
    metric = InceptionScore("given", splits=1)
    metric.update(sure)
    assert metric.compute()[0].item() == pytest.approx(4, rel=1e-12)
    metric.reset()
    metric.update(sure[:1].repeat(3, 1))
    assert metric.compute()[0].item() == pytest.approx(1, rel=1e-12)


def test_refuses():
    with pytest.raises(ValueError, match="'pixels' knows no classes"):
        InceptionScore("pixels")
    with pytest.raises(ValueError, match="splits"):
        InceptionScore("given", splits=0)
    metric = InceptionScore("given", splits=10)
    metric.update(logits(9))
    with pytest.raises(ValueError, match="at least 10 images for 10 splits, got 9"):
        metric.compute()
    x = logits(4)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 4 rows hold NaN"):
        metric.update(x)
