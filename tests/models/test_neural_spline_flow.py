"""The neural spline flow has nflows' numbers and layers."""

import pytest
import torch

from fastgen.models import NeuralSplineFlow
from fastgen.nn import LULinear, MaskedAutoregressive, RationalQuadraticCoupling, ResidualNet

FEATURES, SETTINGS = 5, {"transforms": 4, "hidden_features": 16, "num_bins": 6, "tail_bound": 2.0}


def nflows_transform(name):
    """The layers of `NeuralSplineFlow` out of nflows' own."""
    transforms = pytest.importorskip("nflows.transforms")
    from nflows.nn.nets import ResidualNet
    from nflows.utils import create_alternating_binary_mask

    splines = {"num_bins": 6, "tails": "linear", "tail_bound": 2.0}
    layers = []
    for layer in range(4):
        if name == "lu":
            layers += [transforms.RandomPermutation(FEATURES), transforms.LULinear(FEATURES, identity_init=False)]
        if name == "autoregressive":
            if layer > 0:
                layers.append(transforms.ReversePermutation(FEATURES))
            layers.append(
                transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    FEATURES, 16, context_features=3, num_blocks=2, **splines
                )
            )
            continue
        layers.append(
            transforms.PiecewiseRationalQuadraticCouplingTransform(
                create_alternating_binary_mask(FEATURES, even=layer % 2 == 0),
                lambda i, o: ResidualNet(i, o, hidden_features=16, context_features=3, num_blocks=2),
                **splines,
            )
        )
    return transforms.CompositeTransform(layers)


@pytest.mark.parametrize("name", ["coupling", "lu", "autoregressive"])
def test_numbers_are_those_of_nflows(name):
    flows = pytest.importorskip("nflows.flows")
    from nflows.distributions import StandardNormal

    theirs = flows.Flow(nflows_transform(name), StandardNormal([FEATURES])).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    options = {"coupling": {}, "lu": {"linear": "lu"}, "autoregressive": {"autoregressive": True}}[name]
    flow = NeuralSplineFlow(FEATURES, context_features=3, **SETTINGS, **options).double().eval()
    flow.transform.load_state_dict(theirs._transform.state_dict())
    x = 1.5 * torch.randn(64, FEATURES, dtype=torch.float64)
    context = torch.randn(64, 3, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x, context), theirs.log_prob(x, context), rtol=0, atol=1e-10)
        z = theirs.transform_to_noise(x, context)
        torch.testing.assert_close(flow.encode(x, context), z, rtol=0, atol=1e-10)
        expected, _ = theirs._transform.inverse(z, context)
        torch.testing.assert_close(flow.decode(z, context), expected, rtol=0, atol=1e-10)


def test_the_flow_of_the_speed_targets():
    flow = NeuralSplineFlow(16)
    assert len(flow.transform) == 8
    for layer, coupling in enumerate(flow.transform):
        assert isinstance(coupling, RationalQuadraticCoupling) and coupling.num_bins == 8
        net = coupling.transform_net
        assert isinstance(net, ResidualNet) and net.hidden_features == 128 and len(net.blocks) == 2
        assert coupling.transform_features.tolist() == list(range(layer % 2, 16, 2))


def test_layers():
    def count(kind, **config):
        flow = NeuralSplineFlow(4, transforms=3, hidden_features=8, **config)
        return sum(isinstance(layer, kind) for layer in flow.transform)

    assert count(MaskedAutoregressive, autoregressive=True) == 3
    assert count(LULinear) == 0 and count(LULinear, linear="lu") == 3


def test_standardisation_is_a_change_of_units():
    plain = NeuralSplineFlow(3, transforms=2, hidden_features=8).double()
    mean, std = torch.tensor([1, 2, 3]), torch.tensor([4, 0.5, 2]).numpy()
    scaled = NeuralSplineFlow(3, transforms=2, hidden_features=8, mean=mean, std=std).double()
    assert scaled.config["mean"] == [1.0, 2.0, 3.0] and scaled.config["std"] == [4.0, 0.5, 2.0]
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(7, 3, dtype=torch.float64)
    units = torch.tensor([4, 0.5, 2]).double()
    data = x * units + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(scaled.log_prob(data), plain.log_prob(x) - units.log().sum())
    noise = [torch.Generator().manual_seed(0) for _ in range(2)]
    samples = plain.sample(5, generator=noise[0]) * units + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(scaled.sample(5, generator=noise[1]), samples)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_reversible_gives_the_same_gradients(autoregressive):
    config = {"transforms": 4, "hidden_features": 8, "num_blocks": 1, "autoregressive": autoregressive}
    plain = NeuralSplineFlow(4, **config).double()
    reversible = NeuralSplineFlow(4, reversible=True, **config).double()
    reversible.load_state_dict(plain.state_dict())
    x = torch.randn(6, 4, dtype=torch.float64)
    for flow in (plain, reversible):
        flow.loss(x).backward()
    for ours, theirs in zip(reversible.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)
