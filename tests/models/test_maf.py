"""MAF and IAF have nflows' numbers and are each other's inverse."""

import pytest
import torch

from fastgen.models import IAF, MAF

CONFIG = {"transforms": 3, "hidden_features": 16, "num_blocks": 1}


def nflows_maf():
    flows = pytest.importorskip("nflows.flows")
    theirs = flows.MaskedAutoregressiveFlow(5, 16, num_layers=3, num_blocks_per_layer=1).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return theirs


def test_numbers_are_those_of_nflows():
    theirs = nflows_maf()
    flow = MAF(5, **CONFIG).double().eval()
    flow.transform.load_state_dict(theirs._transform.state_dict())
    x = torch.randn(32, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-10)
        z = theirs.transform_to_noise(x)
        torch.testing.assert_close(flow.decode(z), x, rtol=0, atol=1e-8)
        torch.testing.assert_close(flow.decode(z), theirs._transform.inverse(z)[0], rtol=0, atol=1e-10)


def test_iaf_is_a_maf_backwards():
    maf, iaf = MAF(5, **CONFIG).double().eval(), IAF(5, **CONFIG).double().eval()
    with torch.no_grad():
        for parameter in maf.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    # A MAF reverses the order and transforms, its inverse would transform and reverse: shift the pairs by one reversal.
    layers = [layer for layer in maf.transform if hasattr(layer, "autoregressive_net")]
    inverses = [layer for layer in iaf.transform if hasattr(layer, "transform")]
    for layer, inverse in zip(layers, reversed(inverses), strict=True):
        inverse.transform.load_state_dict(layer.state_dict())
    z = torch.randn(16, 5, dtype=torch.float64)
    with torch.no_grad():
        expected, logabsdet = maf(z.flip(1))
        x, ours = iaf.inverse(z)
        torch.testing.assert_close(x, expected.flip(1))
        torch.testing.assert_close(ours, logabsdet)


def test_iaf_learns_by_drawing():
    """Reverse Kullback-Leibler divergence to a known density: one pass draws and scores, as in inference."""
    target = torch.distributions.MultivariateNormal(torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    flow = IAF(2, transforms=2, hidden_features=16, num_blocks=1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    divergences = []
    for _ in range(150):
        x, log_prob = flow.sample_and_log_prob(128)
        divergence = (log_prob - target.log_prob(x)).mean()
        optimizer.zero_grad()
        divergence.backward()
        optimizer.step()
        divergences.append(divergence.item())
    assert divergences[0] > 1.0
    assert abs(sum(divergences[-20:]) / 20) < 0.05


@pytest.mark.parametrize("kind", [MAF, IAF])
def test_every_feature_depends_on_all_noise(kind):
    """Reversed orders: after two layers nothing is left out, though each layer alone is triangular."""
    flow = kind(4, transforms=2, hidden_features=16, num_blocks=1).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(1, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.encode(v).sum(0), x)[:, 0]
    assert (jacobian.abs() > 1e-12).all()
