"""Recomputing activations from outputs changes no gradient, bounds the memory, and keeps what would drift."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from fastgen.bench.measure import peak_bytes
from fastgen.nn.actnorm import ActNorm
from fastgen.nn.compose import Compose
from fastgen.nn.conditioner import ConvNet, ResidualNet
from fastgen.nn.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    MaskedAffineCoupling,
    RationalQuadraticCoupling,
    checkerboard_mask,
)
from fastgen.nn.linear import InvertibleConv1x1, LULinear
from fastgen.nn.masked_autoregressive import MaskedAutoregressive
from fastgen.nn.permutation import ReversePermutation
from fastgen.nn.planar import PlanarFlow
from fastgen.nn.squeeze import Squeeze
from fastgen.nn.transform import Inverse
from tests.ranks import run_on_ranks

HALF = torch.tensor([1, 1, 0, 0])


def residual_net(context_features=None, **kwargs):
    """Makes conditioners that are not near the identity."""

    def make(inputs, outputs):
        net = ResidualNet(inputs, outputs, 8, context_features, num_blocks=1, **kwargs)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.4)
        return net

    return make


def conv_net(inputs, outputs):
    net = ConvNet(inputs, outputs, 16)
    nn.init.normal_(net.final_layer.weight, std=0.05)
    return net


def vector_flow(context_features=3, **kwargs):
    """Every kind of transform of vectors."""
    make = residual_net(context_features)
    transforms = [
        ActNorm(4),
        LULinear(4, identity_init=False),
        AffineCoupling(HALF, make),
        ReversePermutation(4),
        Compose([RationalQuadraticCoupling(1 - HALF, make, num_bins=4, tail_bound=3.0), LULinear(4)]),
        Inverse(AdditiveCoupling(torch.tensor([0, 1, 0, 1]), make)),
        Inverse(AffineCoupling(HALF, make, scale_map="tanh")),
        MaskedAutoregressive(4, 8, context_features=context_features),
        PlanarFlow(4, context_features=context_features),
    ]
    return Compose(transforms, **kwargs)


def glow(depth, channels=8, **kwargs):
    mask = (torch.arange(channels) < channels // 2).float()
    steps = [[ActNorm(channels), InvertibleConv1x1(channels), AffineCoupling(mask, conv_net)] for _ in range(depth)]
    return Compose([transform for step in steps for transform in step], **kwargs)


def twins(flow):
    """The same flow twice: the ordinary one and the reversible one."""
    ordinary, other = copy.deepcopy(flow), copy.deepcopy(flow)
    ordinary.reversible, other.reversible = False, True
    return ordinary, other


def gradients(run, flow, *inputs, loss=None):
    """Of a loss of both outputs, in the inputs that need one and in all parameters."""
    inputs = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
    flow.zero_grad()
    outputs = run(*inputs)
    (loss or negative_log_likelihood)(*outputs).backward()
    return [t.grad for t in (*inputs, *flow.parameters())]


def negative_log_likelihood(y, logabsdet):
    return (y.square().flatten(1).sum(1) / 2 - logabsdet).mean()


def relative(found, expected):
    """The relative difference of all gradients together, none of which is missing where another is not."""
    assert [f is None for f in found] == [e is None for e in expected]
    found, expected = (torch.cat([g.flatten().double() for g in side if g is not None]) for side in (found, expected))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("stage", ["first batch", "training", "eval"])
def test_gradients_of_vectors(direction, stage):
    flow = vector_flow().double()
    x, context = torch.randn(9, 4).double().requires_grad_(), torch.randn(9, 3).double().requires_grad_()
    if stage != "first batch":
        flow(torch.randn(50, 4).double(), torch.randn(50, 3).double())
    flow.train(stage != "eval")
    ordinary, rebuilt = twins(flow)
    expected = gradients(getattr(ordinary, direction), ordinary, x, context)
    found = gradients(getattr(rebuilt, direction), rebuilt, x, context)
    assert relative(found, expected) < 1e-12
    for ours, theirs in zip(rebuilt.state_dict().values(), ordinary.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), "initialised once, and as in the ordinary flow"
    assert 0 < rebuilt.drift < 1e-11


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_of_images(direction):
    mask = checkerboard_mask(2, 4, 4)
    transforms = [MaskedAffineCoupling(mask, conv_net), MaskedAffineCoupling(1 - mask, conv_net), Squeeze(), *glow(2)]
    ordinary, rebuilt = twins(Compose(transforms).double())
    x = torch.randn(3, 2, 4, 4) if direction == "forward" else torch.randn(3, 8, 2, 2)
    x = x.double().requires_grad_()
    expected = gradients(getattr(ordinary, direction), ordinary, x)
    assert relative(gradients(getattr(rebuilt, direction), rebuilt, x), expected) < 1e-12


def test_gradients_in_float32_at_depth_64():
    ordinary, rebuilt = twins(glow(64))
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    expected = gradients(ordinary, ordinary, x)
    assert relative(gradients(rebuilt, rebuilt, x), expected) < 1e-4
    assert 0 < rebuilt.drift < 1e-4 and rebuilt.checkpoint_every is None


def activation_bytes(flow, x):
    """The peak of a step whose parameters have their gradients already, so that those are not counted."""

    def step():
        flow.zero_grad(set_to_none=False)
        negative_log_likelihood(*flow(x)).backward()

    step()
    return peak_bytes(step, "cpu")


def test_memory_does_not_grow_with_depth():
    x = torch.randn(4, 8, 8, 8)
    shallow, deep = (activation_bytes(glow(depth, reversible=True), x) for depth in (4, 32))
    assert deep < 1.1 * shallow
    assert activation_bytes(glow(32), x) > 4 * deep


def test_a_conditioner_runs_twice_a_step_in_any_wrapping():
    runs = []

    class Net(nn.Linear):
        def forward(self, x):
            runs.append(torch.is_grad_enabled())
            return super().forward(x)

    couplings = [
        AffineCoupling(HALF, Net),
        Inverse(AdditiveCoupling(HALF, Net)),
        Inverse(Inverse(AffineCoupling(HALF, Net))),
    ]
    flow = Compose([couplings[0], Compose(couplings[1:])], reversible=True)
    for direction in (flow, flow.inverse):
        runs.clear()
        gradients(direction, flow, torch.randn(3, 4))
        assert runs == [False] * 3 + [True] * 3


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_dropout_draws_the_same_numbers_again(direction):
    make = residual_net(dropout_probability=0.5)
    ordinary, rebuilt = twins(Compose([AffineCoupling(HALF, make), AffineCoupling(1 - HALF, make)]).double())

    class Noisy(nn.Module):
        """Draws, and is not a coupling."""

        def forward(self, x, context=None):
            return x * torch.rand(4), torch.zeros(len(x))

        def inverse(self, y, context=None):
            return y / torch.rand(4), torch.zeros(len(y))

    for flow in (ordinary, rebuilt):
        flow.transforms.append(Noisy())
    x, found = torch.randn(5, 4).double().requires_grad_(), []
    for flow in (ordinary, rebuilt):
        torch.manual_seed(1)
        found.append(gradients(getattr(flow, direction), flow, x))
        found[-1].append(torch.rand(3))
    assert relative(found[1][:-1], found[0][:-1]) < 1e-12
    assert torch.equal(found[0][-1], found[1][-1]), "the generator goes on as after the ordinary flow"


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_autocast(backward_inside, dropout):
    dtypes = []

    class Net(ConvNet):
        def forward(self, x, context=None):
            out = F.dropout(super().forward(x, context), dropout)
            dtypes.append(out.dtype)
            return out

    def make(inputs, outputs):
        net = Net(inputs, outputs, 16)
        nn.init.normal_(net.final_layer.weight, std=0.05)
        return net

    couplings = [AffineCoupling(mask, make) for mask in (HALF, 1 - HALF, HALF)]
    ordinary, rebuilt = twins(Compose(couplings))
    x, found = torch.randn(3, 4, 4, 4, requires_grad=True), []
    for flow in (ordinary, rebuilt):
        x.grad = None
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = negative_log_likelihood(*flow(x))
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        found.append([x.grad] + [p.grad for p in flow.parameters()])
    assert set(dtypes) == {torch.bfloat16}
    # The same bfloat16 conditioners, but for values that the drift has rounded to the neighbouring bfloat16.
    assert relative(found[1], found[0]) < 1e-3
    assert rebuilt.drift < 1e-5


def test_autocast_of_backward_alone_does_not_reach_the_replay():
    ordinary, rebuilt = twins(glow(2))
    x, found = torch.randn(3, 8, 4, 4), []
    for flow in (ordinary, rebuilt):
        loss = negative_log_likelihood(*flow(x))
        # What autograd itself computes is in bfloat16 here, in both of them.
        with torch.autocast("cpu", torch.bfloat16):
            loss.backward()
        found.append([p.grad for p in flow.parameters()])
    assert relative(found[1], found[0]) < 1e-5
    assert rebuilt.drift < 1e-5


def test_context_of_any_structure():
    class Scale(nn.Module):
        def forward(self, x, context):
            scale = context["scale"] if context["on"] else 1
            return x * scale, torch.zeros(len(x))

        def inverse(self, y, context):
            return y / context["scale"], torch.zeros(len(y))

    flow, x = Compose([Scale(), Scale()], reversible=True), torch.ones(2, 4)
    scale = torch.tensor(3.0, requires_grad=True)
    flow(x, {"scale": scale, "on": True, "name": "a"})[0].sum().backward()
    assert scale.grad == 2 * 3 * 8


def test_context_of_two_layers_of_a_segment():
    class Shift(nn.Module):
        def forward(self, x, context):
            return x + context.sum(1, keepdim=True), x.new_zeros(len(x))

        def inverse(self, y, context):
            return y - context.sum(1, keepdim=True), y.new_zeros(len(y))

    ordinary, rebuilt = twins(Compose([Shift(), AffineCoupling(HALF, residual_net(3))]).double())
    x, context = torch.randn(5, 4).double(), torch.randn(5, 3).double().requires_grad_()
    assert relative(gradients(rebuilt, rebuilt, x, context), gradients(ordinary, ordinary, x, context)) < 1e-12


@pytest.mark.parametrize("outputs", ["y", "logabsdet"])
@pytest.mark.parametrize("last", [7, 9])
def test_one_output_alone(outputs, last):
    ordinary, rebuilt = twins(vector_flow().double()[:last])
    x, context = torch.randn(5, 4).double().requires_grad_(), torch.randn(5, 3).double().requires_grad_()

    def loss(y, logabsdet):
        return (y if outputs == "y" else logabsdet).square().sum()

    expected = gradients(ordinary, ordinary, x, context, loss=loss)
    found = gradients(rebuilt, rebuilt, x, context, loss=loss)
    # Autograd leaves out what has no part in the loss where a node of several outputs gives zero.
    pairs = [
        (f, torch.zeros_like(f) if e is None else e) for f, e in zip(found, expected, strict=True) if f is not None
    ]
    assert relative(*zip(*pairs, strict=True)) < 1e-12


def test_frozen_parts():
    ordinary, rebuilt = twins(vector_flow(None).double())
    for flow in (ordinary, rebuilt):
        flow.transforms[0].requires_grad_(False)
        flow.transforms[2].requires_grad_(False)
        flow.transforms[4].transforms[0].transform_net.initial_layer.requires_grad_(False)
    x = torch.randn(5, 4).double()
    assert relative(gradients(rebuilt, rebuilt, x), gradients(ordinary, ordinary, x)) < 1e-12


def test_gradient_of_one_parameter_and_backward_twice():
    ordinary, rebuilt = twins(vector_flow(None).double())
    x, found = torch.randn(5, 4).double(), []
    for flow in (ordinary, rebuilt):
        loss, parameters = negative_log_likelihood(*flow(x)), list(flow.transforms[2].parameters())
        found.append(torch.autograd.grad(loss, parameters, retain_graph=True))
        found[-1] += torch.autograd.grad(loss, list(flow.parameters()))
    assert relative(found[1], found[0]) < 1e-12


def test_two_losses_before_one_backward():
    ordinary, rebuilt = twins(vector_flow(None).double())
    x = torch.randn(2, 5, 4).double()
    found = []
    for flow in (ordinary, rebuilt):
        first, second = (negative_log_likelihood(*flow(part)) for part in x)
        (first * second).backward()
        found.append([p.grad for p in flow.parameters()])
    assert relative(found[1], found[0]) < 1e-12


@pytest.mark.parametrize(
    "make", [lambda: LULinear(4, identity_init=False), lambda: AffineCoupling(HALF, residual_net())]
)
def test_one_transform_in_several_places(make):
    shared = make()
    ordinary, rebuilt = twins(Compose([shared, ReversePermutation(4), shared, ReversePermutation(4), shared]).double())
    x = torch.randn(5, 4).double().requires_grad_()
    assert relative(gradients(rebuilt, rebuilt, x), gradients(ordinary, ordinary, x)) < 1e-12


def test_tied_parameters():
    first, second = LULinear(4), LULinear(4)
    second.bias = first.bias
    ordinary, rebuilt = twins(Compose([first, second]).double())
    x = torch.randn(5, 4).double()
    assert relative(gradients(rebuilt, rebuilt, x), gradients(ordinary, ordinary, x)) < 1e-12


def test_hooks_of_parameters_run_once():
    _, flow = twins(Compose([AffineCoupling(HALF, residual_net()), LULinear(4)]))
    calls = []
    for parameter in flow.parameters():
        parameter.register_hook(lambda grad: calls.append(grad) or 2 * grad)
        parameter.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad))
    x = torch.randn(3, 4)
    doubled = gradients(flow, flow, x)
    assert len(calls) == 2 * len(list(flow.parameters()))
    for parameter in flow.parameters():
        parameter._backward_hooks.clear()
    assert relative([g / 2 for g in doubled[1:]], gradients(flow, flow, x)[1:]) < 1e-6


class Offset(nn.Module):
    """`x + offset`: the larger the offset, the fewer digits of `x` survive."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.offset = offset
        # A transform with a network is a segment of its own.
        self.network = nn.Identity()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, context=None):
        return x * self.scale + self.offset, x.new_zeros(len(x)) + x.shape[1] * self.scale.log()

    def inverse(self, y, context=None):
        return (y - self.offset) / self.scale, y.new_zeros(len(y)) - y.shape[1] * self.scale.log()


def test_drift_is_measured():
    x = torch.randn(200, 16)
    flow = Compose([Offset(), Offset(), Offset(1e4), Offset()], reversible=True, max_drift=1.0)
    gradients(flow, flow, x)
    true = float((((x + 1e4) - 1e4) - x).norm() / x.norm())
    assert true > 1e-5 and true / 2 < flow.drift < true * 2


def test_inputs_are_kept_where_drift_asks_for_it():
    # No output of the second transform gives its input back.
    transforms = [Offset(), Offset(1e4), Offset(-1e4), Offset(), Offset(), Offset(), Offset()]
    flow, x = Compose(transforms, reversible=True), torch.randn(20, 16, requires_grad=True)
    assert flow.drift is None and flow.checkpoint_every is None
    kept, drifts = [], []
    for _ in range(6):
        gradients(flow, flow, x)
        kept.append(flow.checkpoint_every)
        drifts.append(float(flow.drift))
    # A drift is acted upon in the next forward pass.
    assert kept == [None, 4, 2, 1, 1, 1]
    assert drifts[0] > 1e-4 and drifts[3:] == [0, 0, 0]
    ordinary = twins(flow)[0]
    assert relative(gradients(flow, flow, x), gradients(ordinary, ordinary, x)) == 0


def test_what_drifts_little_keeps_nothing():
    flow, x = glow(4, reversible=True), torch.randn(4, 8, 4, 4)
    for _ in range(3):
        gradients(flow, flow, x)
    assert flow.checkpoint_every is None


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_checkpoints_change_no_gradient(every):
    ordinary, _ = twins(vector_flow(None).double())
    rebuilt = copy.deepcopy(ordinary)
    rebuilt = Compose(rebuilt.transforms, reversible=True, checkpoint_every=every)
    x = torch.randn(5, 4).double().requires_grad_()
    for direction in ("forward", "inverse"):
        expected = gradients(getattr(ordinary, direction), ordinary, x)
        assert relative(gradients(getattr(rebuilt, direction), rebuilt, x), expected) < 1e-12


def test_a_nan_row_is_no_drift_and_stays_a_row():
    ordinary, rebuilt = twins(vector_flow(None).double())
    x = torch.randn(5, 4).double()
    for flow in (ordinary, rebuilt):
        flow(x)
    x[2, 1] = torch.nan
    x.requires_grad_()
    expected, found = gradients(ordinary, ordinary, x)[0], gradients(rebuilt, rebuilt, x)[0]
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[[0, 1, 3, 4]].isfinite().all() and not found[2].isfinite().all()
    assert 0 < rebuilt.drift < 1e-13


def test_an_inverse_that_fails_is_drift():
    class Lost(Offset):
        def inverse(self, y, context=None):
            return y * torch.nan, y.new_zeros(len(y))

    flow, x = Compose([Offset(), Lost(), Offset()], reversible=True), torch.randn(5, 4)
    for _ in range(3):
        gradients(flow, flow, x)
    assert flow.drift == 0 and flow.checkpoint_every == 1
    gradients(flow, flow, x)
    assert all(p.grad.isfinite() for p in flow.parameters())


def test_half_precision_keeps_inputs_from_the_start():
    transforms = [LULinear(4, identity_init=False), AffineCoupling(HALF, residual_net()), LULinear(4), Offset(3.0)]
    flow = Compose(transforms, reversible=True).bfloat16()
    ordinary, _ = twins(flow)
    x = torch.randn(5, 4).bfloat16().requires_grad_()
    assert relative(gradients(flow, flow, x), gradients(ordinary, ordinary, x)) == 0


def test_ordinary_without_gradients_and_in_other_recorders():
    _, flow = twins(vector_flow(None).double().eval())
    x = torch.randn(3, 4).double()
    names = lambda y: type(y.grad_fn).__name__  # noqa: E731
    assert names(flow(x)[0]) == "_NodeBackward"
    with torch.no_grad():
        assert flow(x)[0].grad_fn is None
    with torch.inference_mode():
        assert flow(x)[0].is_inference()
    replica = flow._replicate_for_data_parallel()
    replica.transforms = flow.transforms
    assert names(replica(x)[0]) != "_NodeBackward", "its parameters are not what the gradients go to"

    def value(x):
        return negative_log_likelihood(*flow(x))

    tangent = torch.randn_like(x)
    exact = (torch.autograd.grad(value(x.requires_grad_()), x)[0] * tangent).sum()
    torch.testing.assert_close((torch.func.grad(value)(x.detach()) * tangent).sum(), exact)
    torch.testing.assert_close(torch.func.jvp(value, (x.detach(),), (tangent,))[1], exact)
    with forward_ad.dual_level():
        result = value(forward_ad.make_dual(x.detach(), tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(result).tangent, exact)
    flow.requires_grad_(False)
    assert flow(x.detach())[0].grad_fn is None


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_second_derivatives(direction):
    """A gradient penalty, whose gradient goes through inputs, context and parameters that depend on each other."""
    make = residual_net(3)
    shared = LULinear(4, identity_init=False)
    transforms = [ActNorm(4), shared, AffineCoupling(HALF, make), ReversePermutation(4), shared]
    spline = RationalQuadraticCoupling(1 - HALF, make, num_bins=4, tail_bound=3.0)
    flow = Compose([*transforms, spline, Inverse(AffineCoupling(HALF, make, scale_map="tanh"))]).double()
    flow(torch.randn(50, 4).double(), torch.randn(50, 3).double())
    x, context = torch.randn(9, 4).double(), torch.randn(9, 3).double()

    def of_a_penalty(flow):
        leaf = x.clone().requires_grad_()
        given = context * flow.transforms[1].bias[:3] + leaf[:, :1]
        y, logabsdet = getattr(flow, "__call__" if direction == "forward" else "inverse")(leaf.tanh(), given)
        loss = negative_log_likelihood(y, logabsdet)
        first = torch.autograd.grad(loss, [leaf, *flow.parameters()], create_graph=True, allow_unused=True)
        penalty = sum(g.square().sum() for g in first if g is not None)
        second = torch.autograd.grad(penalty + loss, [leaf, *flow.parameters()], allow_unused=True)
        return [*(None if g is None else g.detach() for g in first), *second]

    ordinary, rebuilt = twins(flow)
    assert relative(of_a_penalty(rebuilt), of_a_penalty(ordinary)) < 1e-10


def test_second_derivatives_refuse_an_input_that_was_written_over():
    flow = vector_flow(None, reversible=True).double()
    x = torch.randn(5, 4).double()
    flow(x * 1)
    loss = flow(x)[0].sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        torch.autograd.grad(loss, list(flow.parameters()), create_graph=True, allow_unused=True)


def test_parameters_must_stay_until_backward():
    _, flow = twins(Compose([LULinear(4), LULinear(4)]))
    loss = flow(torch.randn(3, 4))[0].sum()
    with torch.no_grad():
        flow.transforms[0].bias += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = flow(torch.randn(3, 4))[0].sum()
    flow.transforms[0].bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(RuntimeError, match="other parameters than in forward in one of LULinear, LULinear"):
        loss.backward()


def test_parameters_of_a_functional_call_may_be_made_of_each_other():
    ordinary, rebuilt = twins(vector_flow(None).double())
    x = torch.randn(5, 4).double()

    def gradient(flow):
        shared = before = torch.tensor(0.3).double().requires_grad_()
        given = {}
        for name, parameter in flow.named_parameters():
            given[name] = parameter * (1 + before)
            before = before + 0.1 * given[name].mean()
        value = negative_log_likelihood(*torch.func.functional_call(flow, given, (x,)))
        return torch.autograd.grad(value, shared)[0]

    torch.testing.assert_close(gradient(rebuilt), gradient(ordinary))


def test_running_statistics_are_refused_in_training():
    flow = Compose([AffineCoupling(HALF, residual_net(use_batch_norm=True))], reversible=True)
    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match="BatchNorm1d changes its num_batches_tracked"):
        flow(x)
    ordinary, rebuilt = twins(flow.eval())
    assert relative(gradients(rebuilt, rebuilt, x), gradients(ordinary, ordinary, x)) < 1e-5


def test_a_reversible_chain_inside_a_transform():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = Compose([AffineCoupling(HALF, residual_net()), LULinear(4)], reversible=True)

        def forward(self, x, context=None):
            return self.chain(x)

        def inverse(self, y, context=None):
            return self.chain.inverse(y)

    _, rebuilt = twins(Compose([Wrapped(), Wrapped()]).double())
    ordinary = copy.deepcopy(rebuilt)
    for chain in (ordinary, *(wrapped.chain for wrapped in ordinary)):
        chain.reversible = False
    x = torch.randn(5, 4).double()
    assert relative(gradients(rebuilt, rebuilt, x), gradients(ordinary, ordinary, x)) < 1e-12


def test_an_empty_batch():
    _, flow = twins(vector_flow(None).eval())
    x = torch.randn(0, 4, requires_grad=True)
    flow(x)[0].sum().backward()
    assert x.grad.shape == (0, 4) and flow.drift == 0


def test_a_transform_that_returns_its_input():
    class Identity(nn.Module):
        zero = torch.zeros(3)

        def __init__(self):
            super().__init__()
            # A segment of its own.
            self.network = nn.Identity()

        def forward(self, x, context=None):
            return x, self.zero

        inverse = forward

    flow = Compose([Identity(), LULinear(4), Identity(), Identity()], reversible=True)
    x = torch.randn(3, 4, requires_grad=True)
    ordinary, _ = twins(flow)
    assert relative(gradients(flow, flow, x), gradients(ordinary, ordinary, x)) < 1e-6
    assert Identity.zero.grad_fn is None


def test_data_parallel_over_two_processes():
    run_on_ranks(data_parallel_worker)


def data_parallel_worker(rank):
    """Gradients on half of the batch each, averaged by DDP, are those of the whole batch."""
    torch.manual_seed(0)
    flow = Compose(
        [AffineCoupling(HALF, residual_net()), LULinear(4), AffineCoupling(1 - HALF, residual_net())]
    ).double()
    ordinary, rebuilt = twins(flow)
    x = torch.randn(8, 4).double()
    expected = gradients(ordinary, ordinary, x)
    # Several buckets, so that some are on their way while backward goes on.
    parallel = nn.parallel.DistributedDataParallel(rebuilt, bucket_cap_mb=1e-4)
    for _ in range(3):
        found = gradients(parallel, rebuilt, x[4 * rank :][:4])
        assert relative(found, expected) < 1e-12
    # A process group that goes before what was registered with it aborts the process.
    del parallel, rebuilt
    gc.collect()
