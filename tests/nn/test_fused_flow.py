"""A flow in one kernel equals its layers, follows its weights, and steps aside where it may not run."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgen
from fastgen.nn import (
    MLP,
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Compose,
    ConvNet,
    LULinear,
    MaskedAutoregressive,
    RandomPermutation,
    RationalQuadraticCoupling,
    ResidualNet,
    ReversePermutation,
)
from fastgen.nn.fused_flow import FusedFlow, _Graph, fused_flow_refusal

FEATURES = 5


def mask(features: int, i: int) -> torch.Tensor:
    return (torch.arange(features) + i) % 2


def residual(context=None, **kwargs):
    return lambda a, b: ResidualNet(a, b, 16, context_features=context, **kwargs)


def mlp(context=None, **kwargs):
    return lambda a, b: MLP(a, b, (12, 20), context_features=context, **kwargs)


def randomized(transform: nn.Module, scale: float = 0.3) -> nn.Module:
    """Weights away from their initial values, near which a flow is the identity."""
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(scale * torch.randn_like(parameter) / max(1, parameter.shape[-1]) ** 0.5)
    return transform.eval()


def spline_flow(features: int = FEATURES, context: int | None = None, couplings: int = 4, **kwargs) -> Compose:
    splines = {"num_bins": 8, "tail_bound": 3.0}
    layers = [
        RationalQuadraticCoupling(mask(features, i), residual(context, **kwargs), **splines) for i in range(couplings)
    ]
    return randomized(Compose(layers))


def mixed_flow(context: int | None = None) -> Compose:
    """Every layer that can be packed."""
    affine = [
        AffineCoupling(mask(FEATURES, i), mlp(context, activation=activation), scale_map=scale_map)
        for i, (activation, scale_map) in enumerate([(F.relu, "sigmoid"), (nn.SiLU(), "tanh"), (torch.tanh, "exp")])
    ]
    splines = [
        RationalQuadraticCoupling(mask(FEATURES, 0), residual(context), 5, tails="circular", tail_bound=2.0),
        RationalQuadraticCoupling(mask(FEATURES, 1), residual(context, num_blocks=0), 10, tail_bound=3.0),
    ]
    additive = AdditiveCoupling(mask(FEATURES, 1), residual(context, activation=nn.ELU(), dropout_probability=0.5))
    layers = [ActNorm(FEATURES), affine[0], RandomPermutation(FEATURES), affine[1], LULinear(FEATURES), splines[0]]
    layers += [ReversePermutation(FEATURES), Compose([affine[2], splines[1], RandomPermutation(FEATURES)]), additive]
    return randomized(Compose(layers))


def both_ways(transform, x, context=None):
    """z and its logabsdet, then x again and its logabsdet, by the layers."""
    with torch.no_grad():
        z, forward = transform(x, context)
        return z, forward, *transform.inverse(z, context)


def both_ways_fused(fused, transform, x, z, context=None):
    with torch.no_grad():
        return *fused(transform, x, context), *fused(transform, z, context, inverse=True)


def packed(fused):
    return fused._kept.last("packed")


def fuses(transform, x, context=None) -> bool:
    with torch.no_grad():
        return [choice.op for choice in fastgen.explain(FusedFlow(), transform, x, context)] == ["coupling_flow"]


@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("make", [spline_flow, mixed_flow])
@pytest.mark.parametrize("batch", [1, 2, 97, 200])
def test_numbers_are_those_of_the_layers(make, context, batch):
    transform = make(context=context).double()
    x = torch.randn(batch, FEATURES, dtype=torch.float64)
    condition = None if context is None else torch.randn(batch, context, dtype=torch.float64)
    assert fuses(transform, x, condition)
    expected = both_ways(transform, x, condition)
    found = both_ways_fused(FusedFlow(), transform, x, expected[0], condition)
    for value, true in zip(found, expected, strict=True):
        torch.testing.assert_close(value, true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [spline_flow, mixed_flow])
def test_float32_is_as_exact_as_the_layers(make):
    transform = make()
    x = torch.randn(500, FEATURES)
    with torch.no_grad():
        exact = both_ways(copy.deepcopy(transform).double(), x.double())
        z = exact[0].float()
        layers = (*transform(x), *transform.inverse(z))
        exact = (*exact[:2], *copy.deepcopy(transform).double().inverse(z.double()))
    found = both_ways_fused(FusedFlow(), transform, x, z)
    for value, usual, true in zip(found, layers, exact, strict=True):
        assert (value - true).norm() <= 2 * (usual - true).norm() + 1e-7 * true.norm()


def test_one_layer_is_a_flow_too():
    transform = AffineCoupling(mask(FEATURES, 0), mlp()).eval()
    x = torch.randn(3, FEATURES)
    assert fuses(transform, x)
    with torch.no_grad():
        torch.testing.assert_close(FusedFlow()(transform, x), transform(x))


def other_weights(transform):
    torch.optim.SGD(transform.parameters(), lr=0.1)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.1)


def other_data(transform):
    parameter = transform.transforms[1].transform_net.final_layer.bias
    parameter.data = parameter.data + 0.1


def write_through_data(transform):
    transform.transforms[2].transform_net.blocks[0].linear_layers[1].weight.data.mul_(3)


def other_state_dict(transform):
    transform.load_state_dict(spline_flow().state_dict())


def other_parameter(transform):
    layer = transform.transforms[0].transform_net.final_layer
    layer.weight = nn.Parameter(layer.weight.detach() + 0.1)


def other_submodule(transform):
    transform.transforms[3] = spline_flow(couplings=1).transforms[0]


def other_layers(transform):
    transform.transforms.append(ReversePermutation(FEATURES))


def to_float64_and_back(transform):
    transform.double()
    transform.transforms[0].transform_net.final_layer.bias.data.add_(0.1)
    transform.float()


def new_hook(transform):
    transform.transforms[1].transform_net.register_forward_hook(lambda module, args, output: output * 0.9)


CHANGES = [other_weights, other_data, write_through_data, other_state_dict, other_parameter, other_submodule]
CHANGES += [other_layers, to_float64_and_back, new_hook]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_was_packed_follows_the_weights(change):
    transform, fused = spline_flow(), FusedFlow()
    x = torch.randn(9, FEATURES)
    with torch.no_grad():
        before = fused(transform, x)
        change(transform)
        after, expected = fused(transform, x), transform(x)
    assert not torch.allclose(before[0], after[0], rtol=1e-3)
    for value, true in zip(after, expected, strict=True):
        torch.testing.assert_close(value, true, rtol=1e-4, atol=1e-4)


def test_nan_weights_are_packed_once():
    transform, fused = spline_flow(), FusedFlow()
    transform.transforms[0].transform_net.final_layer.weight.data.fill_(float("nan"))
    with torch.no_grad():
        assert fused(transform, torch.randn(2, FEATURES))[1].isnan().all()
        first = packed(fused)
        fused(transform, torch.randn(2, FEATURES))
    assert packed(fused) is first is not None


def test_another_transform_is_another_flow():
    first, second, fused = spline_flow(), spline_flow(), FusedFlow()
    x = torch.randn(4, FEATURES)
    with torch.no_grad():
        for transform in (first, second, first):
            torch.testing.assert_close(fused(transform, x)[0], transform(x)[0], rtol=1e-4, atol=1e-4)


def test_layers_run_where_a_gradient_is_recorded():
    transform, fused = spline_flow(), FusedFlow()
    x = torch.randn(4, FEATURES)
    assert fused(transform, x)[1].requires_grad
    transform.requires_grad_(False)
    assert not fused(transform, x)[1].requires_grad
    assert fused(transform, x.requires_grad_())[0].requires_grad


def test_layers_run_in_training_mode():
    transform = spline_flow(dropout_probability=0.5)
    x = torch.randn(4, FEATURES)
    assert fuses(transform, x)
    assert not fuses(transform.train(), x)
    transform.eval().transforms[2].train()
    assert not fuses(transform, x)


def test_layers_run_under_autocast_and_on_other_backends():
    transform, fused = spline_flow(), FusedFlow()
    x = torch.randn(4, FEATURES)
    fused(transform, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fuses(transform, x)
    with fastgen.use_backend("reference"):
        assert not fuses(transform, x)
    with fastgen.use_backend("cpp"):
        assert fuses(transform, x)


def test_inference_mode_leaves_nothing_behind():
    transform, fused = spline_flow(), FusedFlow()
    x = torch.randn(4, FEATURES)
    with torch.inference_mode():
        first = fused(transform, x)
        graph = _Graph(transform, torch.randn(4, FEATURES), None, inverse=False)
    with torch.no_grad():
        for second in (fused(transform, x), graph(x, None)):
            torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)


def test_a_refused_flow_is_looked_at_again_in_another_dtype():
    transform, fused = spline_flow().bfloat16(), FusedFlow()
    with torch.no_grad():
        fused(transform, torch.zeros(2, FEATURES, dtype=torch.bfloat16))
        assert packed(fused) is None
        fused(transform.float(), torch.zeros(2, FEATURES))
    assert packed(fused) is not None


def test_compiles_as_one_graph():
    transform, fused = spline_flow(couplings=2), FusedFlow()
    x = torch.randn(4, FEATURES)
    compiled = torch.compile(lambda v: fused(transform, v), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for value, expected in zip(compiled(x), transform(x), strict=True):
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_start_empty(copied):
    transform, fused = spline_flow(), FusedFlow()
    fused.freeze(transform)
    with torch.no_grad():
        fused(transform, torch.randn(2, FEATURES))
    assert packed(fused) is not None and packed(copied(fused)) is None and not copied(fused)._kept.is_frozen


def test_nothing_outlives_the_flow():
    transform, fused = spline_flow(), FusedFlow()
    with torch.no_grad():
        fused(transform, torch.randn(2, FEATURES))
    weights, program = (weakref.ref(tensor) for tensor in packed(fused)[:2])
    # Without the garbage collector: a flow on a GPU should free its memory at once.
    del fused, transform
    assert weights() is None and program() is None


def batch_norm():
    return spline_flow(use_batch_norm=True)


def convolution():
    net = lambda a, b: ConvNet(a, b, 8)  # noqa: E731
    return Compose([AffineCoupling(mask(4, 0), net)]).eval()


def hooked():
    transform = spline_flow()
    transform.transforms[0].register_forward_hook(lambda *_: None)
    return transform


def parametrized():
    transform = spline_flow()
    torch.nn.utils.parametrizations.weight_norm(transform.transforms[0].transform_net.final_layer)
    return transform


REFUSED = [
    (batch_norm, "batch norm"),
    (convolution, "ConvNet is not a conditioner"),
    (hooked, "hooks"),
    (parametrized, "not plain nn.Linear"),
    (lambda: Compose([MaskedAutoregressive(FEATURES, 8)]).eval(), "MaskedAutoregressive is not a layer"),
    (lambda: Compose([ReversePermutation(FEATURES)]).eval(), "no coupling"),
    (lambda: spline_flow(activation=lambda h: h.relu()), "an activation"),
    (lambda: spline_flow(activation=nn.LeakyReLU(0.3)), "an activation"),
    (lambda: spline_flow().half(), "parameters in torch.float16"),
    (lambda: Compose([*spline_flow().double(), *spline_flow()]).eval(), "parameters in torch.float32, torch.float64"),
    (lambda: Compose([RationalQuadraticCoupling(mask(4, 0), mlp(), 4, tails=None)]).eval(), "without tails"),
    (lambda: Compose([RationalQuadraticCoupling(mask(4, 0), mlp(), 65)]).eval(), "65 bins"),
    (lambda: Compose([*spline_flow(), *spline_flow(context=2)]).eval(), "contexts of"),
    (lambda: Compose([*spline_flow(), *spline_flow(features=6)]).eval(), "features"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_refusals_say_why(make, reason):
    assert reason in fused_flow_refusal(make())


def test_what_is_refused_runs_layer_by_layer():
    transform, fused = batch_norm(), FusedFlow()
    x = torch.randn(3, FEATURES)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(fused(transform, x)[0], transform(x)[0])


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, FEATURES + 1), torch.zeros(FEATURES), torch.zeros(2, FEATURES, 3, 3, 3)]
)
def test_bad_inputs_get_the_errors_of_the_layers(bad):
    transform, fused = spline_flow(), FusedFlow()
    with torch.no_grad():
        fused(transform, torch.zeros(2, FEATURES))
        with pytest.raises(ValueError, match="x: expected"):
            fused(transform, bad)
        with pytest.raises(ValueError, match="context"):
            fused(transform, torch.zeros(2, FEATURES), torch.zeros(3, 1))


@pytest.mark.parametrize("inverse", [False, True])
def test_graphs_run_the_layers(inverse):
    """What is captured on a GPU, uncaptured."""
    transform = mixed_flow(context=2)
    x, context = torch.randn(4, FEATURES), torch.randn(4, 2)
    graph = _Graph(transform, x, context, inverse)
    run = transform.inverse if inverse else transform
    for _ in range(2):
        x, context = torch.randn(4, FEATURES), torch.randn(4, 2)
        found = graph(x, context)
        with torch.no_grad():
            expected = run(x, context)
        graph(torch.randn(4, FEATURES), context)
        assert all(torch.equal(value, true) for value, true in zip(found, expected, strict=True))
    assert not graph.stale(transform) and graph.stale(spline_flow())
    other_weights(transform)
    assert graph.stale(transform)


def test_graphs_are_made_for_batches_that_come_again():
    transform, fused = mixed_flow(), FusedFlow()
    x = torch.randn(4, FEATURES)
    with torch.no_grad():
        assert fused._on_gpu(transform, x, None, False) is None
        assert torch.equal(fused._on_gpu(transform, x, None, False)[0], transform(x)[0])
        assert fused._on_gpu(transform, x, None, True) is None
        other_weights(transform)
        assert fused._on_gpu(transform, x, None, False) is None
        assert torch.equal(fused._on_gpu(transform, x, None, False)[0], transform(x)[0])
        for batch in range(5, 30):
            assert fused._on_gpu(transform, torch.randn(batch, FEATURES), None, False) is None
        assert len(fused._graphs) <= 16 and fused._on_gpu(transform, x, None, False) is None
        assert fused._on_gpu(transform, torch.randn(0, FEATURES), None, False) is None


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch):
    transform, fused = mixed_flow(), FusedFlow()

    def fails(self, *_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(_Graph, "__init__", fails)
    with torch.no_grad():
        assert [fused._on_gpu(transform, torch.randn(2, FEATURES), None, False) for _ in range(3)] == [None] * 3
