"""The diffusion suite on a network small enough for a test."""

from __future__ import annotations

import time

import pytest
import torch

from fastgen.bench import diffusion, suites
from fastgen.bench.diffusion_peers import ScipyLikelihood
from fastgen.bench.measure import Timing
from fastgen.bench.suites import Options
from fastgen.models.score_sde import ScoreSDE

OPTIONS = Options(against=("eager", "peers"), quick=True)
SMALL = {"channels": 8, "channel_multipliers": (1, 2), "layers": 1, "attention_levels": (1,), "groups": 4}


def timed_once(methods, device, **_):
    """A solution of an equation takes seconds: no warm-up, one round."""
    found = {}
    for name, (call, *_) in methods.items():
        start = time.perf_counter()
        call()
        found[name] = Timing(*[time.perf_counter() - start] * 3, rounds=1)
    return found


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    pytest.importorskip("diffusers")
    for name, value in {
        "SIZES": SMALL,
        "SAMPLED": 3,
        "SAMPLING_STEPS": 4,
        "TRAINED": 3,
        "SCORED": 2,
        "_LESSONS": 2,
        "_TIGHT": 1e-5,
    }.items():
        monkeypatch.setattr(diffusion, name, value)
    monkeypatch.setattr(suites, "interleave", timed_once)


def test_every_case_has_its_row_and_its_peers():
    measured = {
        (subject, pass_): next(measure(f"diffusion/{subject}", case, pass_, OPTIONS))
        for subject, case, pass_, measure in diffusion._MEASURED
    }
    assert {name: set(row.baselines) for name, row in measured.items()} == {
        ("sampling", "sample"): {"network", "diffusers"},
        ("training", "step"): {"network", "eager", "diffusers"},
        ("UNet", "forward"): {"eager", "diffusers", "diffusers_channels_last"},
        ("UNet", "forward_backward"): {"eager", "diffusers", "diffusers_channels_last"},
        ("likelihood", "log_prob"): {"scipy", "score_sde"},
    }
    sampling = measured["sampling", "sample"]
    assert sampling.metrics["over_network"] == pytest.approx(sampling.median_s / sampling.baselines["network"])
    likelihood = measured["likelihood", "log_prob"].metrics
    assert likelihood["error_bits_per_dim"] < 1e-3 and likelihood["scipy_error_bits_per_dim"] < 1e-2


def test_another_network_is_not_timed(monkeypatch):
    make = diffusion.diffusers_unet

    def of_other_weights(ours, **sizes):
        peer = make(ours, **sizes)
        peer.conv_out.bias.data += 0.1
        return peer

    monkeypatch.setattr(diffusion, "diffusers_unet", of_other_weights)
    with pytest.raises(suites.RedGate, match="the network's outputs are"):
        next(diffusion._unet("diffusion/UNet", "tiny", "forward", OPTIONS))


def test_scipys_likelihood_of_a_gaussian_is_exact():
    """Where the data are standard normal, so is everything along the way: the noise is `sigma x`."""

    class Known(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, time, labels=None):
            # The network is told log(sigma / alpha), and alpha^2 + sigma^2 is 1.
            return (2 * time).sigmoid().sqrt().view(-1, 1, 1, 1) * x

    model = ScoreSDE(4, 1, None, sde="vp", network=Known())
    x = torch.randn(3, 1, 4, 4)
    expected = torch.distributions.Normal(0, 1).log_prob(x.double()).flatten(1).sum(1)
    found = ScipyLikelihood(model)(x, torch.randn_like(x).sign())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
