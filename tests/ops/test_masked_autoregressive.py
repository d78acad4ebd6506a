"""The autoregressive inverse equals one network evaluation for each feature, for every network, element and mask."""

from itertools import pairwise

import pytest
import torch

import fastgen
from fastgen.ops.masked_autoregressive import (
    masked_autoregressive_inverse,
    masked_autoregressive_inverse_reference,
)
from fastgen.ops.masked_autoregressive.activations import ACTIVATIONS, DERIVATIVES
from fastgen.ops.masked_autoregressive.cases import random_network
from fastgen.ops.masked_autoregressive.elements import SCALE_MAPS, Affine, RationalQuadratic
from fastgen.ops.masked_autoregressive.order import degree_order


def masks_of(*degrees, outputs=2, order=None):
    """Masks of units with these degrees, features in the given places; degree d sees the features of place up to d."""
    place = torch.as_tensor(order)
    layers = [place, *map(torch.as_tensor, degrees)]
    masks = [after[:, None] >= before for before, after in pairwise(layers)]
    return [*masks, (place[:, None] > layers[-1]).repeat_interleave(outputs, 0)]


def dense(masks, *, residual=False, context=False):
    """A plain network with these masks: its weights, and a function of x and of what the context adds."""
    weights = [torch.randn(m.shape, dtype=torch.float64) / m.shape[1] ** 0.5 for m in masks]
    biases = [0.5 * torch.randn(len(m), dtype=torch.float64) for m in masks]

    def network(x, activation, terms=()):
        linear = [lambda h, w=w * m, b=b: h @ w.t() + b for w, m, b in zip(weights, masks, biases, strict=True)]
        terms = dict(terms)
        h = linear[0](x) + terms.get(0, 0)
        if not residual:
            h = activation(h)
            for i in range(1, len(linear) - 1):
                h = activation(linear[i](h) + terms.get(i, 0))
        else:
            for i in range(1, len(linear) - 1, 2):
                h = h + linear[i + 1](activation(linear[i](activation(h)) + terms.get(i, 0)))
        return linear[-1](h)

    return weights, biases, network


def by_passes(y, network, element, outputs):
    """The inverse by definition: the network once for every feature."""
    x = torch.zeros_like(y)
    for _ in range(y.shape[1]):
        x, derivative = element.reference(y, network(x).view(*y.shape, outputs), inverse=True)
    return x, derivative.sum(1)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_equals_one_network_evaluation_for_each_feature(activation, backend):
    masks = masks_of([1, 0, 3, 2, 0, 1], [2, 2, 0, 1], order=[2, 0, 4, 1, 3])
    order = degree_order(masks)
    weights, biases, network = dense(masks)
    y = torch.randn(70, 5, dtype=torch.float64)
    packed = order.pack(weights, biases)
    with fastgen.use_backend(backend):
        x, logabsdet = masked_autoregressive_inverse(y, packed, None, order, element=Affine(), activation=activation)
    expected = by_passes(y, lambda x: network(x, ACTIVATIONS[activation]), Affine(), 2)
    torch.testing.assert_close((x, logabsdet), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_residual_network_with_context(scale_map, backend):
    degrees = [0, 2, 1, 0, 1, 2]
    masks = masks_of(*[degrees] * 5, order=[0, 1, 2, 3])
    order = degree_order(masks, residual=True)
    weights, biases, network = dense(masks, residual=True)
    terms = {i: torch.randn(9, 6, dtype=torch.float64) for i in (0, 1, 3)}
    assert order.context_layers == (0, 1, 3) and order.context_width == 18
    context = torch.cat(list(terms.values()), 1).index_select(1, order.context_order)
    element, y = Affine(scale_map, bound=3.0), torch.randn(9, 4, dtype=torch.float64)
    with fastgen.use_backend(backend):
        found = masked_autoregressive_inverse(y, order.pack(weights, biases), context, order, element=element)
    expected = by_passes(y, lambda x: network(x, torch.relu, terms), element, 2)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    "element",
    [
        RationalQuadratic(8, "linear", 3.0),
        RationalQuadratic(5, "circular", 2.0),
        RationalQuadratic(3, None, 4.0),
        RationalQuadratic(6, "linear", 5.0, parameterization="zuko"),
    ],
    ids=str,
)
def test_splines(element, backend):
    outputs = element.num_parameters
    masks = masks_of([0, 1, 2] * 3, [0, 1, 2] * 2, outputs=outputs, order=[3, 2, 1, 0])
    order = degree_order(masks)
    weights, biases, network = dense(masks)
    y = torch.rand(33, 4, dtype=torch.float64) * 3.8 - 1.9
    with fastgen.use_backend(backend):
        found = masked_autoregressive_inverse(y, order.pack(weights, biases), None, order, element=element)
    expected = by_passes(y, lambda x: network(x, torch.relu), element, outputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_round_trip_through_steep_splines(scale):
    element = RationalQuadratic(8, tail_bound=3.0)
    weights, order = random_network(6, (16, 16), 23, "cpu", torch.float64, scale=scale)
    y = torch.linspace(-4, 4, 600, dtype=torch.float64).view(100, 6)
    x, logabsdet = masked_autoregressive_inverse(y, weights, None, order, element=element)
    assert x.isfinite().all() and logabsdet.isfinite().all()
    # One solution must map back, and be the one that the reference finds.
    expected = masked_autoregressive_inverse_reference(y, weights, None, order, element=element)
    torch.testing.assert_close(x, expected[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("batch", [1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 65, 100, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_number_of_rows(batch, dtype):
    weights, order = random_network(5, (9, 7), 2, "cpu", dtype, shuffled=True)
    y = torch.randn(batch, 5, dtype=dtype)
    alone = [masked_autoregressive_inverse(row[None], weights, None, order, element=Affine()) for row in y]
    found = masked_autoregressive_inverse(y, weights, None, order, element=Affine())
    expected = tuple(torch.cat(parts) for parts in zip(*alone, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=1e-6)


def test_nan_stays_in_its_row():
    weights, order = random_network(5, (9, 7), 2, "cpu", torch.float32)
    y = torch.randn(70, 5)
    clean = masked_autoregressive_inverse(y, weights, None, order, element=Affine())
    y[66, 2] = torch.nan
    x, logabsdet = masked_autoregressive_inverse(y, weights, None, order, element=Affine())
    assert x[66, 2:].isnan().all() and logabsdet[66].isnan()
    # What comes before it in the order does not depend on it.
    assert torch.equal(x[66, :2], clean[0][66, :2])
    others = torch.arange(70) != 66
    assert torch.equal(x[others], clean[0][others]) and torch.equal(logabsdet[others], clean[1][others])


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_derivatives_of_activations(name):
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(ACTIVATIONS[name](x).sum(), x)
    found = DERIVATIVES[name](x.detach())
    assert found.dtype == x.dtype
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale_map", SCALE_MAPS)
@pytest.mark.parametrize("min_scale", [0.0, 1e-3])
def test_slopes_of_affine_elements(scale_map, min_scale):
    element = Affine(scale_map, 2.5, min_scale)
    x = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    parameters = (9 * torch.randn(50, 3, 2, dtype=torch.float64)).requires_grad_()
    y, derivative = element.reference(x, parameters)
    slopes = element.slopes(x.detach(), parameters.detach(), "cpp")
    torch.testing.assert_close(torch.autograd.grad(y.sum(), (x, parameters), retain_graph=True), slopes[:2])
    (l_slopes,) = torch.autograd.grad(derivative.sum(), parameters)
    torch.testing.assert_close(l_slopes, slopes.l_in_parameters)
    assert not slopes.l_in_x.any()


def test_log_determinant_is_the_jacobians():
    weights, order = random_network(4, (8, 8), 2, "cpu", torch.float64, shuffled=True)
    y = torch.randn(4, dtype=torch.float64)

    def solve(y):
        return masked_autoregressive_inverse(y[None], weights, None, order, element=Affine("exp"))[0][0]

    _, logabsdet = masked_autoregressive_inverse(y[None], weights, None, order, element=Affine("exp"))
    jacobian = torch.autograd.functional.jacobian(solve, y)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, logabsdet[0])


def test_saves_nothing_beyond_its_inputs_and_x():
    weights, order = random_network(6, (32, 32), 2, "cpu", torch.float32)
    y, weights = torch.randn(40, 6, requires_grad=True), weights.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        x, _ = masked_autoregressive_inverse(y, weights, None, order, element=Affine())
    assert {t.data_ptr() for t in saved} == {y.data_ptr(), x.data_ptr(), weights.data_ptr()}


class TestDegreeOrder:
    def test_levels_are_the_longest_chains(self):
        # Features 0 and 2 depend on nothing, 1 on 0, and 3 on 1 and 2.
        reads = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]])
        order = degree_order([torch.eye(4), reads])
        assert order.levels == 3
        assert order.starts[0] == (0, 2, 3, 4)
        assert order.feature_order.tolist() == [0, 2, 1, 3]

    def test_packing_keeps_every_live_weight_once(self):
        masks = masks_of([0, 1, 1, 2], [2, 0, 1], order=[1, 0, 3, 2])
        order = degree_order(masks)
        weights = [torch.rand(m.shape) + 1 for m in masks]
        biases = [torch.rand(len(m)) + 1 for m in masks]
        packed = order.pack(weights, biases)
        assert packed.shape == (order.packed_size,)
        live = torch.cat([*(w[m] for w, m in zip(weights, masks, strict=True)), *biases])
        assert torch.equal(packed[packed != 0].sort().values, live.sort().values)
        # No live weight lies outside the prefixes that are read.
        assert not packed[~order.visible].any()

    def test_units_that_see_nothing(self):
        order = degree_order([torch.zeros(3, 2), torch.tensor([[1, 1, 0], [0, 0, 1]])])
        assert order.levels == 1 and order.starts == ((0, 2), (3, 3))
        packed = order.pack([torch.randn(3, 2), torch.randn(2, 3)], [torch.ones(3), torch.zeros(2)])
        with pytest.raises(ValueError, match="1 outputs for a feature, Affine takes 2"):
            masked_autoregressive_inverse(torch.zeros(1, 2), packed, None, order, element=Affine())

    @pytest.mark.parametrize(
        ("masks", "residual", "message"),
        [
            ([torch.ones(3, 2)], False, "at least two matrices"),
            ([torch.ones(3, 2), torch.ones(2, 4)], False, r"expected \[out, 3\] after \(3, 2\), got \(2, 4\)"),
            ([torch.ones(3, 2), torch.ones(3, 3)], False, "a multiple of 2 outputs"),
            ([torch.ones(3, 2), torch.ones(4, 3)], False, "not autoregressive"),
            ([torch.eye(2), torch.eye(2), torch.zeros(2, 2)], True, "pairs of layers"),
            ([torch.zeros(2, 2), torch.ones(3, 2), torch.ones(4, 3), torch.ones(2, 4)], True, "keep the number"),
            (
                [torch.tensor([[1, 0], [0, 0]]), torch.ones(2, 2), torch.ones(2, 2), torch.tensor([[0, 0], [1, 1]])],
                True,
                "see more than the unit it is added to",
            ),
        ],
    )
    def test_bad_masks(self, masks, residual, message):
        with pytest.raises(ValueError, match=message):
            degree_order(masks, residual=residual)


WEIGHTS, ORDER = random_network(3, (4,), 2, "cpu", torch.float32)
Y = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("y", "weights", "context", "options", "error", "message"),
    [
        (Y.long(), WEIGHTS, None, {}, TypeError, "y: expected a floating dtype"),
        (torch.zeros(2, 4), WEIGHTS, None, {}, ValueError, r"y: expected \[batch, 3\], got \(2, 4\)"),
        (Y, WEIGHTS[1:], None, {}, ValueError, r"weights: expected \(\d+,\), what order.pack makes"),
        (Y, WEIGHTS.double(), None, {}, TypeError, "weights: expected torch.float32"),
        (Y, WEIGHTS, torch.zeros(3, 4), {}, ValueError, r"context: expected \(2, 4\), got \(3, 4\)"),
        (Y, WEIGHTS, None, {"activation": "sine"}, ValueError, "activation: expected one of relu"),
        (Y, WEIGHTS, None, {"element": RationalQuadratic(4)}, ValueError, "RationalQuadratic takes 11"),
    ],
)
def test_bad_arguments(y, weights, context, options, error, message):
    with pytest.raises(error, match=message):
        masked_autoregressive_inverse(y, weights, context, ORDER, **{"element": Affine(), **options})


def test_bad_elements():
    with pytest.raises(ValueError, match="scale_map: expected one of exp"):
        Affine("cube")
    with pytest.raises(ValueError, match="bound: expected a positive number"):
        Affine("tanh", bound=0)
    with pytest.raises(ValueError, match="min_scale: expected a number that is not negative"):
        Affine(min_scale=-1)
    with pytest.raises(ValueError, match="tails"):
        RationalQuadratic(tails="cubic")
    with pytest.raises(ValueError, match="num_bins: expected 1 to 64"):
        RationalQuadratic(65)
    with pytest.raises(ValueError, match="min_bin_width"):
        RationalQuadratic(10, min_bin_width=0.1)


def test_input_beyond_a_spline_without_tails():
    element = RationalQuadratic(2, None)
    weights, order = random_network(3, (4,), 7, "cpu", torch.float32)
    with pytest.raises(ValueError, match=r"y: expected values in \[-1.0, 1.0\]"):
        masked_autoregressive_inverse(torch.full((2, 3), 1.5), weights, None, order, element=element)


def test_splines_of_one_bin_have_gradients():
    """The gradient is the spline's kernel, which has two bins or more: the reference takes one."""
    element = RationalQuadratic(1, tail_bound=3.0)
    weights, order = random_network(3, (4,), element.num_parameters, "cpu", torch.float64)
    y = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    found = masked_autoregressive_inverse(y, weights, None, order, element=element)
    expected = masked_autoregressive_inverse_reference(y, weights, None, order, element=element)
    for value, right in zip(found, expected, strict=True):
        torch.testing.assert_close(value, right)
    torch.testing.assert_close(torch.autograd.grad(found[0].sum(), y), torch.autograd.grad(expected[0].sum(), y))
