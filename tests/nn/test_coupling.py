"""Couplings are nflows', invertible, and leave the features that they condition on as they are."""

import pytest
import torch
from torch import nn

from fastgen.nn import (
    MLP,
    AdditiveCoupling,
    AffineCoupling,
    ConvNet,
    MaskedAffineCoupling,
    RationalQuadraticCoupling,
    ResidualNet,
    checkerboard_mask,
)
from tests.nn.transform_properties import PROPERTIES, Case


def residual(context_features=None):
    return lambda i, o: ResidualNet(i, o, 6, context_features, num_blocks=1, activation=torch.tanh)


def conv(context_features=None):
    return lambda i, o: ConvNet(i, o, 4, context_features, activation=torch.tanh)


CASES = [
    Case("affine, halves", lambda: AffineCoupling([0, 0, 1, 1], residual()), (4,)),
    Case("affine, alternating, context", lambda: AffineCoupling([0, 1, 0, 1, 0], residual(2)), (5,), 2),
    Case("affine, tanh", lambda: AffineCoupling([1, 1, 0], residual(), scale_map="tanh", bound=1.5), (3,)),
    Case(
        "affine, exp, MLP",
        lambda: AffineCoupling([1, 0], lambda i, o: MLP(i, o, (4,), activation=torch.tanh), scale_map="exp"),
        (2,),
    ),
    Case("affine, images", lambda: AffineCoupling([0, 1, 1], conv()), (3, 2, 2)),
    Case("additive", lambda: AdditiveCoupling([0, 1, 1, 0], residual(2)), (4,), 2),
    Case("spline", lambda: RationalQuadraticCoupling([0, 1, 1], residual(), num_bins=4, tail_bound=2.0), (3,)),
    Case("spline, context", lambda: RationalQuadraticCoupling([1, 0, 1], residual(2), num_bins=5), (3,), 2),
    Case("spline, circular", lambda: RationalQuadraticCoupling([1, 0], residual(), 4, "circular", 3.0), (2,)),
    Case("spline, images", lambda: RationalQuadraticCoupling([1, 0, 0], conv(), num_bins=3), (3, 2, 2)),
    Case("checkerboard", lambda: MaskedAffineCoupling(checkerboard_mask(2, 2, 3), conv(2)), (2, 2, 3), 2),
]


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_property(case, check):
    check(case)


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module.double().eval()


def nflows_pair(name, mask, images, **settings):
    """Their layer and ours with its weights, in float64."""
    coupling = pytest.importorskip("nflows.transforms.coupling")
    nets = pytest.importorskip("nflows.nn.nets")
    make_theirs = (
        (lambda i, o: nets.ConvResidualNet(i, o, 8)) if images else (lambda i, o: nets.ResidualNet(i, o, 8, 3))
    )
    theirs = randomised(getattr(coupling, name)(mask, make_theirs, **settings))
    ours = (
        {
            "AffineCouplingTransform": AffineCoupling,
            "AdditiveCouplingTransform": AdditiveCoupling,
            "PiecewiseRationalQuadraticCouplingTransform": RationalQuadraticCoupling,
        }[name](mask, make_theirs if images else lambda i, o: ResidualNet(i, o, 8, 3), **settings)
        .double()
        .eval()
    )
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
@pytest.mark.parametrize("mask", [[0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, -1, -1, -1]], ids=str)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("AffineCouplingTransform", {}),
        ("AdditiveCouplingTransform", {}),
        ("PiecewiseRationalQuadraticCouplingTransform", {"tails": "linear", "tail_bound": 2.0, "num_bins": 6}),
        (
            "PiecewiseRationalQuadraticCouplingTransform",
            {"tails": "linear", "min_bin_width": 0.02, "min_bin_height": 0.03, "min_derivative": 0.1},
        ),
    ],
    ids=["affine", "additive", "spline", "spline, minima"],
)
def test_is_nflows(name, settings, mask, images):
    theirs, ours = nflows_pair(name, mask, images, **settings)
    x = torch.randn(6, 5, 3, 2) if images else torch.randn(40, 5)
    x = x.double()
    context = None if images else torch.randn(40, 3).double()
    for run_ours, run_theirs in ((ours.forward, theirs.forward), (ours.inverse, theirs.inverse)):
        for found, expected in zip(run_ours(x, context), run_theirs(x, context), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_spline_leaves_the_conditioners_output_as_it_is():
    coupling = randomised(RationalQuadraticCoupling([0, 1], residual(), num_bins=3))
    outputs = []
    coupling.transform_net.register_forward_hook(lambda _, __, output: outputs.append((output, output.clone())))
    coupling(torch.randn(4, 2).double())
    assert torch.equal(*outputs[0])


def test_softmax_scale_is_that_of_the_conditioners_width():
    make = RationalQuadraticCoupling
    assert make([0, 1], lambda i, o: ResidualNet(i, o, 16)).softmax_scale == 0.25
    assert make([0, 1], lambda i, o: MLP(i, o, (8, 64))).softmax_scale == 0.125
    assert make([0, 1], lambda i, o: ConvNet(i, o, 16)).softmax_scale == 0.25
    assert make([0, 1], lambda i, o: nn.Linear(i, o)).softmax_scale == 1


def test_halves_are_views():
    coupling = AffineCoupling([1, 1, 0, 0], residual())
    x = torch.randn(3, 4)
    identity, transformed = coupling._split(x)
    assert transformed.data_ptr() == x.data_ptr() and identity._base is x
    assert torch.equal(coupling._merge(identity, transformed), x)


def test_a_conditioner_without_a_context_argument_will_do():
    coupling = AdditiveCoupling([0, 1, 1], lambda i, o: nn.Sequential(nn.Linear(i, 4), nn.Tanh(), nn.Linear(4, o)))
    x = torch.randn(2, 3)
    torch.testing.assert_close(coupling.inverse(coupling(x)[0])[0], x)


def test_a_checkpoint_brings_its_mask():
    saved = randomised(AffineCoupling([0, 1, 0, 1], residual()))
    x = torch.randn(3, 4).double()
    for mask in ([1, 0, 1, 0], [1, 1, 0, 0]):
        loaded = AffineCoupling(mask, residual()).double().eval()
        loaded.load_state_dict(saved.state_dict())
        assert torch.equal(loaded(x)[0], saved(x)[0])
    saved = randomised(MaskedAffineCoupling(checkerboard_mask(1, 2, 2), conv()))
    loaded = MaskedAffineCoupling(checkerboard_mask(1, 2, 2, first=True), conv()).double().eval()
    loaded.load_state_dict(saved.state_dict())
    x = torch.randn(3, 1, 2, 2).double()
    assert torch.equal(loaded(x)[0], saved(x)[0])


def test_is_made_on_the_meta_device_and_loaded():
    saved = randomised(AffineCoupling([0, 1, 0, 1], residual()))
    with torch.device("meta"):
        coupling = AffineCoupling([0, 1, 0, 1], residual()).double().eval()
    coupling.to_empty(device="cpu").load_state_dict(saved.state_dict())
    x = torch.randn(3, 4).double()
    assert torch.equal(coupling(x)[0], saved(x)[0])


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (AffineCoupling, [{"scale_map": "tanh", "bound": bound} for bound in (1.0, 2.0, 3.0)]),
        (RationalQuadraticCoupling, [{"num_bins": 3, "tail_bound": bound} for bound in (1.0, 2.0, 3.0)]),
    ],
    ids=["affine", "spline"],
)
def test_compiles_beside_others_with_other_settings(make, settings):
    """After a second number the compiler takes a setting for a variable."""
    torch.compiler.reset()
    x = torch.randn(3, 2)
    for setting in settings:
        coupling = make([0, 1], residual(), **setting)
        compiled = torch.compile(coupling, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), coupling(x))


def test_checkerboard_mask_alternates():
    assert checkerboard_mask(2, 2, 3).tolist() == [[[0, 1, 0], [1, 0, 1]]] * 2
    assert torch.equal(checkerboard_mask(1, 4, 4) + checkerboard_mask(1, 4, 4, first=True), torch.ones(1, 4, 4))


def test_masked_coupling_is_equation_9():
    mask = checkerboard_mask(2, 3, 4)
    coupling = randomised(MaskedAffineCoupling(mask, conv(), bound=1.5))
    x = torch.randn(5, 2, 3, 4).double()
    shift, raw = coupling.transform_net(x * (1 - mask)).chunk(2, 1)
    log_scale = 1.5 * torch.tanh(raw / 1.5)
    y, logabsdet = coupling(x)
    torch.testing.assert_close(y, (1 - mask) * x + mask * (x * log_scale.exp() + shift))
    torch.testing.assert_close(logabsdet, (mask * log_scale).sum((1, 2, 3)))


def test_a_nan_that_is_transformed_does_not_reach_the_conditioner():
    coupling = randomised(MaskedAffineCoupling(checkerboard_mask(1, 2, 2), conv()))
    x = torch.randn(1, 1, 2, 2).double()
    x[0, 0, 0, 1] = torch.nan
    assert coupling(x)[0].isnan().sum() == 1


@pytest.mark.parametrize("make", [AffineCoupling, AdditiveCoupling, RationalQuadraticCoupling])
def test_refuses(make):
    with pytest.raises(ValueError, match=r"mask: expected a vector, .* got shape \(0,\)"):
        make([], residual())
    with pytest.raises(ValueError, match=r"mask: expected a vector, .* got shape \(2, 2\)"):
        make([[0, 1], [1, 0]], residual())
    coupling = make([0, 1, 1], residual(2))
    for direction in (coupling.forward, coupling.inverse):
        with pytest.raises(ValueError, match=r"x: expected \[batch, 3\] or \[batch, 3, height, width\], got \(2, 4\)"):
            direction(torch.randn(2, 4), torch.randn(2, 2))
        with pytest.raises(ValueError, match=r"x: expected .* got \(2, 3, 4\)"):
            direction(torch.randn(2, 3, 4))
        with pytest.raises(ValueError, match=r"context: expected 2 rows, one for each of x, got \(1, 2\)"):
            direction(torch.randn(2, 3), torch.randn(1, 2))
        with pytest.raises(TypeError, match="context: expected a tensor, got list"):
            direction(torch.randn(2, 3), [[0.0, 0.0]] * 2)
        with pytest.raises(TypeError, match=r"context: expected a floating dtype, got torch\.int64"):
            direction(torch.randn(2, 3), torch.zeros(2, 2, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"context: expected \[batch, context_features\] = \(2, 2\), got None"):
            direction(torch.randn(2, 3))
        with pytest.raises(TypeError, match=r"x: expected a floating dtype, got torch\.int64"):
            direction(torch.zeros(2, 3, dtype=torch.int64))
    wrong = make([0, 1, 1], lambda i, o: nn.Linear(i, o + 1))
    with pytest.raises(ValueError, match=r"transform_net: expected parameters of shape \(2, \d+\), got \(2, \d+\)"):
        wrong(torch.randn(2, 3))


def test_refuses_settings():
    with pytest.raises(ValueError, match="scale_map: expected 'exp', 'tanh' or 'sigmoid', got 'relu'"):
        AffineCoupling([0, 1], residual(), scale_map="relu")
    with pytest.raises(ValueError, match="bound: expected a positive number, got 0"):
        AffineCoupling([0, 1], residual(), bound=0)
    with pytest.raises(ValueError, match="min_scale: expected a number of at least 0, got -1"):
        MaskedAffineCoupling(checkerboard_mask(1, 2, 2), conv(), min_scale=-1)
    with pytest.raises(ValueError, match="num_bins: expected a positive int, got 0"):
        RationalQuadraticCoupling([0, 1], residual(), num_bins=0)
    with pytest.raises(ValueError, match="tails: expected 'linear', 'circular' or None, got 'quadratic'"):
        RationalQuadraticCoupling([0, 1], residual(), tails="quadratic")
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="tail_bound: expected a positive number, got"):
            RationalQuadraticCoupling([0, 1], residual(), tail_bound=wrong)
        with pytest.raises(ValueError, match="min_derivative: expected a number in"):
            RationalQuadraticCoupling([0, 1], residual(), min_derivative=wrong)
    for name in ("min_bin_width", "min_bin_height"):
        with pytest.raises(ValueError, match=rf"{name}: expected a number in \[0, 1 / 4\) for 4 bins, got 0.25"):
            RationalQuadraticCoupling([0, 1], residual(), num_bins=4, **{name: 0.25})
    with pytest.raises(ValueError, match=r"tail_bound: a spline without tails is of \[0, 1\], as nflows', got 2.0"):
        RationalQuadraticCoupling([0, 1], residual(), tails=None, tail_bound=2.0)
    # Arguments in the order of another release.
    with pytest.raises(ValueError, match=r"apply_unconditional_transform: expected True or False, got 0\.001"):
        RationalQuadraticCoupling([0, 1], residual(), 8, "linear", 3.0, 1e-3)
    with pytest.raises(ValueError, match=r"mask: expected \[channels, height, width\], got shape \(4,\)"):
        MaskedAffineCoupling(torch.ones(4), conv())
    with pytest.raises(ValueError, match="mask: expected some numbers above 0"):
        MaskedAffineCoupling(torch.ones(1, 2, 2), conv())
    with pytest.raises(ValueError, match=r"x: expected \[batch, 1, 2, 2\], got \(1, 1, 2, 3\)"):
        MaskedAffineCoupling(checkerboard_mask(1, 2, 2), conv())(torch.randn(1, 1, 2, 3))
