"""The suite of flows on networks small enough for a test."""

from __future__ import annotations

import pytest
import torch

from fastgen.bench import flow_peers, flows, suites
from fastgen.bench.suites import Options
from fastgen.models import MAF, NeuralSplineFlow

QUICK = Options(against=("eager", "peers"), quick=True)


def spline_flow() -> NeuralSplineFlow:
    return NeuralSplineFlow(4, transforms=2, hidden_features=8, num_blocks=1, num_bins=4)


TINY = (
    flows.Subject(
        "NSF", "tiny", spline_flow, (("log_prob", 3), ("sample", 1), ("step", 5)), ("nflows", flow_peers.nflows_peer)
    ),
    flows.Subject(
        "MAF",
        "tiny",
        lambda: MAF(3, transforms=2, hidden_features=8, num_blocks=1),
        (("sample", 2),),
        ("nflows", flow_peers.nflows_peer),
    ),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(flows, "SUBJECTS", TINY)


def test_every_case_has_its_row():
    pytest.importorskip("nflows")
    options = Options(against=("eager", "peers"))
    rows = list(suites.rows(flows, options))
    assert [f"{row.op.removeprefix('flows/')}, {row.case}, {row.pass_}" for row in rows] == suites.cases(flows, options)
    for row in rows:
        assert list(row.baselines) == ["eager", "nflows"]
        assert row.metrics["conditioners"] > 0 and row.limit_kind in ("copy", "gemm")
        assert row.rel_err < 1e-5
    assert len(list(suites.rows(flows, QUICK))) == 1


def test_zuko_has_the_numbers_of_our_masked_networks():
    pytest.importorskip("zuko")
    flow = flows._zuko_maf().double()
    x = torch.randn(3, 64, dtype=torch.float64)
    peer = flow_peers.zuko_peer(flow)
    torch.testing.assert_close(peer.log_prob(x), flow.log_prob(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(peer.decode(x), flow.decode(x), rtol=1e-10, atol=1e-10)


def test_a_peer_with_other_weights_is_not_timed(monkeypatch):
    pytest.importorskip("nflows")

    def of_other_weights(flow):
        peer = flow_peers.nflows_peer(flow)
        next(peer.module.parameters()).data += 1e-3
        return peer

    subject = TINY[0]
    other = flows.Subject(subject.name, subject.size, subject.make, subject.measured, ("nflows", of_other_weights))
    monkeypatch.setattr(flows, "SUBJECTS", (other,))
    with pytest.raises(suites.RedGate, match="the peer with our weights is"):
        next(suites.rows(flows, QUICK))


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch):
    def missing(flow):
        raise ImportError("No module named 'nflows'")

    subject = TINY[0]
    other = flows.Subject(subject.name, subject.size, subject.make, subject.measured, ("nflows", missing))
    monkeypatch.setattr(flows, "SUBJECTS", (other,))
    assert list(next(suites.rows(flows, QUICK)).baselines) == ["eager"]
