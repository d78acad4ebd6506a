"""The suites on networks small enough for a test."""

from __future__ import annotations

import pytest

from fastgen.bench import sampling, suites, training
from fastgen.bench.models import Subject
from fastgen.bench.suites import Options
from fastgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP

QUICK = Options(against=("eager",), quick=True)
GATED = Subject(GatedPixelCNN, "tiny", {"image_size": 4, "levels": 4, "channels": 8, "layers": 2}, batches=(3, 1))
PLAIN = Subject(PixelCNN, "tiny", {"image_size": 4, "levels": 4, "channels": 8, "layers": 1}, batches=(2,))
PLUS_PLUS = {"image_size": 4, "channels": 8, "resnets": 1, "scales": 2, "num_mixtures": 2, "dropout": 0}
EVERY = (GATED, PLAIN, Subject(PixelCNNPP, "tiny", PLUS_PLUS, batches=(2,)))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(sampling, "SAMPLED", EVERY)
    monkeypatch.setattr(sampling, "_REAL", Subject(GatedPixelCNN, "in full", GATED.config, batches=(2,)))
    monkeypatch.setattr(training, "TRAINED", EVERY)


@pytest.mark.parametrize("suite", [sampling, training])
def test_every_case_has_its_row(suite):
    rows = list(suites.rows(suite, Options(against=("eager",))))
    name = suite.__name__.rsplit(".", 1)[-1]
    assert [f"{row.op}, {row.case}" for row in rows] == [f"{name}/{case}" for case in suites.cases(suite, QUICK)]
    for row in rows:
        batch = int(row.case.rsplit(" ", 1)[1])
        assert row.metrics["images_per_s"] == pytest.approx(batch / row.median_s)
        assert list(row.baselines) == (["naive"] if suite is sampling else ["eager"])
    assert len(list(suites.rows(suite, QUICK))) == 1


def test_naive_sampling_is_one_forward_pass_per_pixel():
    row = next(suites.rows(sampling, QUICK))
    eager_forward = row.median_s / row.metrics["forwards"]
    assert row.baselines["naive"] == pytest.approx(4 * 4 * eager_forward)
    assert row.limit_kind == "gemm" and 0 < row.limit_fraction < 1 and row.rel_err < 5e-6


def test_a_sampler_of_another_network_is_not_timed(monkeypatch):
    make = sampling._sampler

    def of_other_weights(model):
        sampler = make(model)
        model.head[-1].bias.data += 1e-3
        return sampler

    monkeypatch.setattr(sampling, "_sampler", of_other_weights)
    with pytest.raises(suites.RedGate, match="GatedPixelCNN: teacher-forced outputs: error"):
        next(suites.rows(sampling, QUICK))


def test_wrong_gradients_in_a_model_are_not_timed(monkeypatch):
    forced = training.forced

    def another_loss(loss, backend):
        return forced(lambda batch: loss(batch) * 1.001, backend)

    monkeypatch.setattr(training, "forced", another_loss)
    with pytest.raises(suites.RedGate, match="gradients of the loss"):
        next(suites.rows(training, QUICK))
