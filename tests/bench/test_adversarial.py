"""The suite of discriminators on networks small enough for a test."""

from __future__ import annotations

import pytest
import torch

from fastgen.bench import adversarial, adversarial_plain, suites
from fastgen.bench.suites import Options
from fastgen.models.dcgan import DCGANDiscriminator
from fastgen.models.stylegan2 import StyleDiscriminator

SUBJECTS = (
    adversarial.Subject(
        "StyleGAN2",
        lambda: StyleDiscriminator([(16, 16), (8, 8), (4, 4)], [4, 6, 8], 3),
        adversarial_plain.PlainStyleDiscriminator,
        16,
        3,
        4,
    ),
    adversarial.Subject(
        "DCGAN", lambda: DCGANDiscriminator(3, [4, 8, 8], (2, 2)), adversarial_plain.PlainDCGANDiscriminator, 16, 3, 4
    ),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(adversarial, "SUBJECTS", SUBJECTS)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_plain_networks_compute_what_ours_compute(subject):
    torch.manual_seed(0)
    ours = subject.build().double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, _ = subject.images("cpu", torch.float64)
    torch.testing.assert_close(subject.plain(ours).double()(x), ours(x), rtol=1e-9, atol=1e-9)


def test_every_case_has_its_row():
    rows = list(suites.rows(adversarial, Options(against=("eager",))))
    assert [f"{row.op}, {row.case}" for row in rows] == [
        f"adversarial/{case}" for case in suites.cases(adversarial, Options(against=()))
    ]
    for row in rows:
        assert row.metrics["images_per_s"] == pytest.approx(4 / row.median_s)
        assert list(row.baselines) == ["eager"] and row.rel_err < 1e-5
    assert len(list(suites.rows(adversarial, Options(against=(), quick=True)))) == 1


def test_wrong_gradients_are_not_timed(monkeypatch):
    squared_gradient = adversarial.squared_gradient

    def wrong(network, x):
        squared, outputs = squared_gradient(network, x)
        return squared * (1.001 if isinstance(network, StyleDiscriminator) else 1), outputs

    monkeypatch.setattr(adversarial, "squared_gradient", wrong)
    with pytest.raises(suites.RedGate, match="StyleGAN2: gradients of the R1 step: error"):
        next(suites.rows(adversarial, Options(against=(), quick=True)))
