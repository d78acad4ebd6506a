"""The suite of autoencoders on a network small enough for a test."""

import pytest
import torch

from fastgen.bench import autoencoders, suites
from fastgen.bench.suites import Options, RedGate
from fastgen.bench.vae_peers import PlainVAE

QUICK = Options(against=("eager",), quick=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(autoencoders, "SUBJECTS", (autoencoders.Subject(5, 16, 3, 8),))


def test_the_case_has_its_row():
    (row,) = suites.rows(autoencoders, QUICK)
    assert [f"VAE, {row.case}"] == suites.cases(autoencoders, QUICK)
    assert list(row.baselines) == ["eager"] and row.rel_err < 1e-5
    assert 0 < row.metrics["bound_share"] < 1
    assert row.metrics["images_per_s"] == pytest.approx(8 / row.median_s)


def test_a_plain_one_of_other_numbers_is_not_timed(monkeypatch):
    loss = PlainVAE.loss
    monkeypatch.setattr(PlainVAE, "loss", lambda self, x: loss(self, x) * (1 + 1e-4))
    with pytest.raises(RedGate, match="losses differ by"):
        next(suites.rows(autoencoders, QUICK))


def test_the_plain_one_has_the_gradients_of_ours():
    model = autoencoders.SUBJECTS[0].build("cpu")
    plain = PlainVAE(model)
    x = torch.rand(8, *model.shape)
    torch.manual_seed(0)
    seed = int(torch.randint(2**63 - 1, ()))
    plain.noise = lambda like: autoencoders.philox_normal(like.shape, seed=seed, offset=0)
    plain.loss(x).backward()
    torch.manual_seed(0)
    model.loss(x).backward()
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
