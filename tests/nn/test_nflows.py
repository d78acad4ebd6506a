"""nflows' arguments, state-dict keys and numbers, where a mask leaves nothing to read or nothing to transform too."""

from functools import partial

import pytest
import torch
from torch import nn

from fastgen.models import IAF, MAF, NeuralSplineFlow, RealNVP
from fastgen.nn import (
    AdditiveCoupling,
    AffineCoupling,
    Compose,
    ConvNet,
    MaskedAutoregressive,
    RationalQuadraticCDF,
    RationalQuadraticCoupling,
    ResidualNet,
)
from tests.nn.transform_properties import PROPERTIES, Case

peers = pytest.importorskip("nflows.transforms")
nets = pytest.importorskip("nflows.nn.nets")

COUPLINGS = {
    "affine": (AffineCoupling, peers.AffineCouplingTransform, {}),
    "additive": (AdditiveCoupling, peers.AdditiveCouplingTransform, {}),
    "spline": (
        RationalQuadraticCoupling,
        peers.PiecewiseRationalQuadraticCouplingTransform,
        {"num_bins": 5, "tails": "linear", "tail_bound": 2.0},
    ),
    "spline of [0, 1]": (
        RationalQuadraticCoupling,
        peers.PiecewiseRationalQuadraticCouplingTransform,
        {"num_bins": 5, "tails": None},
    ),
}
UNCONDITIONAL = {"apply_unconditional_transform": True}


def same(ours, theirs, shape, context_features=None, batch=20):
    """Whether both have the same keys, and with the same weights the same numbers, both ways."""
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.7)
    theirs = theirs.double().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours = ours.double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(batch, *shape).double()
    context = None if context_features is None else torch.randn(batch, context_features).double()
    for direction in ("forward", "inverse"):
        found, expected = (getattr(layer, direction)(x, context) for layer in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("context_features", [None, 3])
@pytest.mark.parametrize("mask", [[1, 0, 1], [1], [1, 1, 1], [0, 0], [-1, 1, 0]], ids=str)
@pytest.mark.parametrize("unconditional", [False, True])
@pytest.mark.parametrize("kind", COUPLINGS)
def test_couplings(kind, unconditional, mask, context_features):
    ours, theirs, settings = COUPLINGS[kind]
    reads, transforms = any(mark <= 0 for mark in mask), any(mark > 0 for mark in mask)
    if "spline" in kind and not (transforms and (reads or not unconditional)):
        pytest.skip("theirs raises for splines of nothing")
    settings = dict(settings)
    if unconditional and "spline" in kind:
        settings |= UNCONDITIONAL
    elif unconditional:
        settings["unconditional_transform"] = lambda features: peers.PiecewiseRationalQuadraticCDF(
            features, 4, tails="linear"
        )
    ours, theirs = (
        make(mask, partial(net, hidden_features=6, context_features=context_features, num_blocks=1), **settings)
        for make, net in ((ours, ResidualNet), (theirs, nets.ResidualNet))
    )
    same(ours, theirs, (len(mask),), context_features)


@pytest.mark.parametrize("options", [{}, UNCONDITIONAL | {"img_shape": [2, 3]}, {"img_shape": [2, 3]}], ids=str)
def test_couplings_of_images(options):
    settings = {"num_bins": 4, "tails": "linear", "tail_bound": 1.5} | options
    make = partial(nets.ConvResidualNet, hidden_channels=5, num_blocks=1)
    theirs = peers.PiecewiseRationalQuadraticCouplingTransform([1, 0, 0], make, **settings)
    same(RationalQuadraticCoupling([1, 0, 0], make, **settings), theirs, (3, 2, 3))


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("settings", [{"tails": "linear", "tail_bound": 2.0}, {"tails": None}], ids=str)
def test_autoregressive_splines(settings, features):
    theirs = peers.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        features, 6, 3, num_bins=4, num_blocks=1, **settings
    )
    ours = MaskedAutoregressive(features, 6, 3, num_blocks=1, transform="rational_quadratic", num_bins=4, **settings)
    same(ours, theirs, (features,), 3)
    # In one pass also without gradients, and with a network whose features come first without a context.
    plain = MaskedAutoregressive(features, (6,), transform="rational_quadratic", num_bins=4, **settings).double()
    x = torch.rand(9, features).double()
    with torch.no_grad():
        torch.testing.assert_close(plain.eval().inverse(plain(x)[0])[0], x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("features", [1, 3])
def test_autoregressive_affine(features):
    theirs = peers.MaskedAffineAutoregressiveTransform(features, 6, 3, num_blocks=1)
    same(MaskedAutoregressive(features, 6, 3, num_blocks=1), theirs, (features,), 3)


@pytest.mark.parametrize("shape", [3, (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("identity_init", [False, True])
@pytest.mark.parametrize("settings", [{"tails": "linear", "tail_bound": 2.0}, {}], ids=str)
def test_unconditional_splines(settings, identity_init, shape):
    theirs = peers.PiecewiseRationalQuadraticCDF(shape, 5, identity_init=identity_init, **settings)
    ours = RationalQuadraticCDF(shape, 5, identity_init=identity_init, **settings)
    shape = (shape,) if isinstance(shape, int) else shape
    if identity_init:
        x = torch.rand(7, *shape)
        torch.testing.assert_close(ours(x), (x, torch.zeros(7)), rtol=1e-5, atol=1e-5)
    same(ours, theirs, shape)


@pytest.mark.parametrize(
    "options",
    [{"num_bins": 8, "tails": "linear", "tail_bound": 3.0}, {"num_bins": 10}, {"tails": "linear"}, {"tails": None},
     {"tail_bound": 1.0}, {"min_bin_width": 1e-3}, {"min_derivative": 1e-3}, {"parameterization": "nflows"}],
    ids=str,
)  # fmt: skip
def test_an_affine_layer_refuses_what_asks_for_splines(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name}: an option of transform='rational_quadratic', and this is 'affine'"):
        MaskedAutoregressive(3, 8, **options)


def test_splines_refuse_what_asks_for_affine_layers_and_what_no_one_knows():
    with pytest.raises(
        ValueError, match="scale_map: an option of transform='affine', and this is 'rational_quadratic'"
    ):
        MaskedAutoregressive(3, 8, transform="rational_quadratic", scale_map="exp")
    with pytest.raises(TypeError, match="num_bin: expected options of 'rational_quadratic', min_bin_height, "):
        MaskedAutoregressive(3, 8, transform="rational_quadratic", num_bin=3)
    with pytest.raises(ValueError, match="use_residual_blocks: expected True or False, got 'linear'"):
        # The order of nflows' splines.
        MaskedAutoregressive(3, 8, None, 8, "linear", 3.0)


def CDF(features):
    return RationalQuadraticCDF(features, 3, "linear", 2.0)


NET = partial(ResidualNet, hidden_features=6, num_blocks=1, activation=torch.tanh)
CASES = [
    Case("one feature", lambda: RationalQuadraticCoupling([1], partial(NET, context_features=2), 4), (1,), 2),
    Case("reads nothing", lambda: AffineCoupling([1, 1], NET), (2,)),
    Case("unconditional", lambda: AffineCoupling([0, 1, 0], NET, CDF), (3,)),
    Case(
        "unconditional, images",
        lambda: RationalQuadraticCoupling(
            [1, 0], partial(ConvNet, hidden_channels=4, activation=torch.tanh), 3, "linear", 2.0, True, (2, 2)
        ),
        (2, 2, 2),
    ),
    Case("splines of their own", lambda: CDF((2,)), (2,)),
]


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_property(case, check):
    if check.__name__ == "compiles_to_one_graph" and case.name not in ("one feature", "unconditional"):
        pytest.skip("compiled like the others")
    check(case)


@pytest.mark.parametrize("settings", [{"tails": "linear"}, {"tails": None}, UNCONDITIONAL], ids=str)
def test_splines_of_nothing_are_the_identity_or_what_is_unconditional(settings):
    coupling = RationalQuadraticCoupling([0, 0], NET, 3, **settings).double()
    x = torch.rand(4, 2).double()
    expected = coupling.unconditional_transform(x) if settings == UNCONDITIONAL else (x, torch.zeros(4).double())
    torch.testing.assert_close(coupling(x), expected)
    torch.testing.assert_close(coupling.inverse(expected[0])[0], x)


@pytest.mark.parametrize("inverse", [False, True])
def test_unconditional_transforms_in_a_reversible_chain(inverse):
    layers = [AffineCoupling([0, 1, 0], NET, CDF), RationalQuadraticCoupling([1, 0, 1], NET, 3, "linear", 2.0, True)]
    ordinary, reversible = Compose(layers).double(), Compose(layers, reversible=True).double()
    x = torch.randn(4, 3).double()
    found = []
    for flow in (ordinary, reversible):
        leaf = x.clone().requires_grad_()
        y, logabsdet = (flow.inverse if inverse else flow)(leaf)
        loss = y.sin().sum() + logabsdet.square().sum()
        found.append((loss, torch.autograd.grad(loss, [leaf, *flow.parameters()])))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


FLOWS = [
    (NeuralSplineFlow, {}),
    (NeuralSplineFlow, {"linear": "lu"}),
    (NeuralSplineFlow, {"autoregressive": True}),
    (RealNVP, {}),
    (MAF, {}),
    (IAF, {}),
]


@pytest.mark.parametrize("context_features", [None, 2])
@pytest.mark.parametrize(("kind", "options"), FLOWS)
def test_flows_of_one_feature(kind, options, context_features):
    flow = kind(1, transforms=3, hidden_features=8, context_features=context_features, **options).double()
    assert kind.from_config(flow.config).features == 1
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    grid = torch.linspace(-30, 30, 20001, dtype=torch.float64)[:, None]
    for network in (flow.train(), flow.eval()):
        context = None if context_features is None else torch.ones(len(grid), context_features).double()
        density = network.log_prob(grid, context).exp()
        torch.testing.assert_close(torch.trapezoid(density, grid[:, 0]), torch.ones(()).double(), rtol=1e-3, atol=1e-3)
    context = None if context_features is None else torch.ones(1, context_features).double()
    drawn = flow.sample(4000, context).flatten()
    assert drawn.mean().item() == pytest.approx(torch.trapezoid(density * grid[:, 0], grid[:, 0]).item(), abs=0.5)
    # What there is to learn is learnt: of a normal density far away, all but the entropy.
    x = 2 + 0.3 * torch.randn(200, 1).double()
    context = None if context_features is None else torch.ones(200, context_features).double()
    optimizer = torch.optim.Adam(flow.train().parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        loss = flow.loss(x, context)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
