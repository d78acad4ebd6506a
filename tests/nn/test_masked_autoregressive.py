"""The autoregressive transform has nflows' numbers; its inverse in one kernel equals the inverse by passes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgen
from fastgen.nn.masked_autoregressive import MaskedAutoregressive, activation_name
from fastgen.nn.transform import Inverse

NETWORKS = [
    {"hidden_features": 9},
    {"hidden_features": 9, "use_residual_blocks": False, "random_mask": True},
    {"hidden_features": (10, 7), "order": [1, 3, 0, 2]},
]
ELEMENTS = [
    {},
    {"scale_map": "exp"},
    {"scale_map": "tanh", "bound": 1.5},
    {"scale_map": "sigmoid"},
    {"scale_map": "softclip", "bound": 6.9},
    {"transform": "rational_quadratic", "num_bins": 5, "tail_bound": 2.0},
    {"transform": "rational_quadratic", "num_bins": 4, "tails": "circular", "tail_bound": 3.0},
]


def layer_of(network=NETWORKS[0], element=ELEMENTS[0], context_features=None, dtype=torch.float64, **options):
    layer = MaskedAutoregressive(4, context_features=context_features, **network, **element, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.to(dtype)


def draw(batch, context_features, dtype=torch.float64):
    context = None if context_features is None else torch.randn(batch, context_features, dtype=dtype)
    return torch.randn(batch, 4, dtype=dtype), context


@pytest.mark.parametrize("context_features", [None, 3])
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
class TestTransform:
    def test_round_trip(self, network, element, context_features):
        layer = layer_of(network, element, context_features).eval()
        x, context = draw(37, context_features)
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                y, logabsdet = layer(x, context)
                found, inverse_logabsdet = layer.inverse(y, context)
            torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(inverse_logabsdet, -logabsdet, rtol=1e-10, atol=1e-10)

    def test_log_determinant_is_the_jacobians(self, network, element, context_features):
        layer = layer_of(network, element, context_features)
        x, context = draw(1, context_features)
        for direction in (layer, layer.inverse):
            jacobian = torch.autograd.functional.jacobian(lambda x, f=direction: f(x, context)[0], x)
            expected = torch.linalg.slogdet(jacobian.view(4, 4)).logabsdet
            torch.testing.assert_close(direction(x, context)[1][0], expected, rtol=1e-9, atol=1e-9)

    def test_gradients_of_the_inverse_are_those_of_the_passes(self, network, element, context_features):
        layer = layer_of(network, element, context_features)
        y, context = draw(6, context_features)
        leaves = [y.requires_grad_(), *layer.parameters()]
        if context is not None:
            leaves.append(context.requires_grad_())
        found, expected = (
            torch.autograd.grad((x.sin() * torch.arange(1, 5)).sum() + (logabsdet**2).sum(), leaves)
            for x, logabsdet in (layer.inverse(y, context), layer._inverse_by_passes(y, context))
        )
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("element", [ELEMENTS[0], ELEMENTS[5]], ids=str)
def test_gradcheck(direction, element):
    layer = layer_of({"hidden_features": 5, "activation": torch.tanh}, element, 2)
    x, context = (t.requires_grad_() for t in draw(2, 2))
    parameters = dict(layer.named_parameters())

    def call(x, context, *values):
        module = layer if direction == "forward" else Inverse(layer)
        prefix = "" if direction == "forward" else "transform."
        named = {prefix + name: value for name, value in zip(parameters, values, strict=True)}
        return torch.func.functional_call(module, named, (x, context))

    assert torch.autograd.gradcheck(call, (x, context, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("context_features", [None, 3])
@pytest.mark.parametrize("options", [{}, {"use_residual_blocks": False, "random_mask": True}], ids=str)
def test_numbers_of_nflows_affine(options, context_features):
    peers = pytest.importorskip("nflows.transforms.autoregressive")
    peer = peers.MaskedAffineAutoregressiveTransform(4, 9, context_features, **options).double()
    _same_as(peer, MaskedAutoregressive(4, 9, context_features, **options), context_features)


@pytest.mark.parametrize("context_features", [None, 3])
def test_numbers_of_nflows_splines(context_features):
    peers = pytest.importorskip("nflows.transforms.autoregressive")
    peer = peers.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        4, 9, context_features, num_bins=6, tails="linear", tail_bound=2.0, num_blocks=1
    ).double()
    layer = MaskedAutoregressive(
        4, 9, context_features, num_blocks=1, transform="rational_quadratic", num_bins=6, tail_bound=2.0
    )
    _same_as(peer, layer, context_features)


def _same_as(peer, layer, context_features):
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.5)
    layer = layer.double()
    assert list(layer.state_dict()) == list(peer.state_dict())
    layer.load_state_dict(peer.state_dict())
    x, context = draw(50, context_features)
    torch.testing.assert_close(layer(x, context), peer(x, context), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.inverse(x, context), peer.inverse(x, context), rtol=1e-10, atol=1e-10)


def test_sampling_runs_on_the_kernel():
    layer = layer_of(dtype=torch.float32).eval()
    with torch.no_grad():
        choices = fastgen.explain(layer.inverse, torch.randn(3, 4))
    assert [(c.op, c.backend) for c in choices] == [("masked_autoregressive_inverse", "cpp")]


@pytest.mark.parametrize(
    "options",
    [
        {"use_batch_norm": True},
        {"dropout_probability": 0.3},
        {"activation": torch.cos},
        {"activation": nn.LeakyReLU(0.3)},
    ],
)
def test_networks_that_take_passes(options):
    layer = layer_of({"hidden_features": 9}, **options).eval()
    x, _ = draw(12, None)
    y, logabsdet = layer(x)
    torch.testing.assert_close(layer.inverse(y), (x, -logabsdet), rtol=1e-9, atol=1e-9)
    layer.train()
    with torch.no_grad():
        assert [v.shape for v in layer.inverse(y)] == [(12, 4), (12,)]


def test_packed_weights_are_kept_in_eval_mode():
    layer = layer_of().eval()
    x, _ = draw(5, None)
    with torch.no_grad():
        layer.inverse(x)
        packed = layer._kept.last("_packed")
        layer.inverse(x)
        assert packed is not None and layer._kept.last("_packed") is packed
    layer.train()
    assert layer._kept.last("_packed") is None


def test_inverse_follows_the_masks():
    first, second = (layer_of(NETWORKS[1]) for _ in range(2))
    x, _ = draw(5, None)
    with torch.no_grad():
        first.inverse(x)
        # As libraries that average weights write.
        for own, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
            own.data.copy_(other)
        torch.testing.assert_close(first.inverse(x), second.inverse(x))


def test_checkpoint_brings_its_random_masks():
    first, second = (layer_of(NETWORKS[1]) for _ in range(2))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    x, _ = draw(5, None)
    with torch.no_grad():
        torch.testing.assert_close(second.inverse(x), first.inverse(x))


def test_moves_and_copies():
    layer = copy.deepcopy(layer_of())
    x, _ = draw(3, None)
    expected = layer.inverse(x)
    torch.testing.assert_close(layer.float().inverse(x.float())[0].double(), expected[0], rtol=1e-4, atol=1e-4)
    with torch.device("meta"):
        empty = MaskedAutoregressive(4, 9)
    empty = empty.to_empty(device="cpu").double()
    empty.load_state_dict(layer.double().state_dict())
    torch.testing.assert_close(empty.inverse(x), layer.inverse(x))


def test_inverse_swaps_directions():
    layer = layer_of(context_features=2)
    flow = Inverse(layer)
    x, context = draw(5, 2)
    torch.testing.assert_close(flow(x, context), layer.inverse(x, context))
    torch.testing.assert_close(flow.inverse(x, context), layer(x, context))
    assert list(flow.state_dict()) == ["transform." + name for name in layer.state_dict()]
    with pytest.raises(TypeError, match="transform: expected a module with an inverse, got Linear"):
        Inverse(nn.Linear(2, 2))


@pytest.mark.parametrize("element", [ELEMENTS[0], ELEMENTS[5]], ids=str)
def test_compiles_as_one_graph(element):
    layer = layer_of({"hidden_features": (6,)}, element, 2, dtype=torch.float32)
    x, context = draw(3, 2, torch.float32)
    for module in (layer, Inverse(layer)):
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for found, expected in zip(compiled(x, context), module(x, context), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            gradients = [
                torch.autograd.grad(value.sum(), list(layer.parameters()), retain_graph=True, allow_unused=True)
                for value in (found, expected)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_autocast():
    layer = layer_of(context_features=2, dtype=torch.float32).eval()
    x, context = draw(20, 2, torch.float32)
    exact = layer.inverse(x, context)
    with torch.autocast("cpu", torch.bfloat16):
        y, logabsdet = layer(x, context)
        torch.testing.assert_close(layer.inverse(x, context), exact)
        torch.testing.assert_close(layer.inverse(x.bfloat16(), context)[0], exact[0], rtol=0.1, atol=0.1)
    assert logabsdet.dtype == torch.float32
    torch.testing.assert_close(y, layer(x, context)[0], rtol=0.1, atol=0.1)


def test_nan_stays_in_its_row():
    layer = layer_of(dtype=torch.float32).eval()
    x, _ = draw(9, None, torch.float32)
    clean = layer.inverse(x)
    x[4, 0] = torch.nan
    found = layer.inverse(x)
    others = torch.arange(9) != 4
    for value, expected in zip(found, clean, strict=True):
        assert value[4].isnan().all()
        assert torch.equal(value[others], expected[others])


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (nn.ReLU(), "relu"),
        (nn.ELU(), "elu"),
        (F.gelu, "gelu"),
        (nn.LeakyReLU(0.2), None),
        (nn.GELU(approximate="tanh"), None),
        (torch.sin, None),
    ],
)
def test_names_of_activations(activation, name):
    assert activation_name(activation) == name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedAutoregressive(3, 4, transform="cubic"), "transform: expected 'affine' or 'rational_quadratic'"),
        (lambda: MaskedAutoregressive(3, 4, order=[0, 1, 2]), "order: the features of MADE keep their own"),
        (lambda: MaskedAutoregressive(3, (4,), use_batch_norm=True), "hidden_features: random masks, dropout and"),
        (lambda: MaskedAutoregressive(3, 4, scale_map="cube"), "scale_map"),
        (lambda: MaskedAutoregressive(3, 4, transform="rational_quadratic", num_bins=0), "num_bins"),
        (lambda: MaskedAutoregressive(3, 4).inverse(torch.zeros(2, 4)), r"expected \[batch, 3\], got \(2, 4\)"),
        (lambda: MaskedAutoregressive(3, 4, 2).inverse(torch.zeros(2, 3)), "context: expected"),
        (lambda: MaskedAutoregressive(3, 4).inverse(torch.zeros(2, 3), torch.zeros(2, 1)), "context: made without"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
