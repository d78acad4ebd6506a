"""A chain of transforms runs in order and back with the Jacobian's determinant, and loads nflows' checkpoints."""

import copy
import pickle

import nflows.transforms as nflows
import pytest
import torch
from torch import nn

from fastgen.nn.compose import Compose
from fastgen.nn.coupling import AdditiveCoupling, AffineCoupling
from fastgen.nn.linear import LULinear
from fastgen.nn.permutation import ReversePermutation


class Net(nn.Module):
    """A conditioner with context."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.context, self.last = nn.Linear(inputs, 8), nn.Linear(3, 8), nn.Linear(8, outputs)

    def forward(self, x, context):
        return self.last(torch.tanh(self.first(x) + self.context(context)))


def flow(**kwargs):
    mask = torch.tensor([1, 0, 1, 0])
    transforms = [LULinear(4, identity_init=False), AffineCoupling(mask, Net), ReversePermutation(4)]
    return Compose([*transforms, Compose([AdditiveCoupling(1 - mask, Net), LULinear(4)])], **kwargs).double()


def test_runs_in_order_and_back():
    compose, x, context = flow(), torch.randn(5, 4).double(), torch.randn(5, 3).double()
    y, logabsdet = compose(x, context)
    expected, total = x, 0
    for transform in (*compose.transforms[:3], *compose.transforms[3].transforms):
        expected, part = transform(expected, context)
        total = total + part
    torch.testing.assert_close((y, logabsdet), (expected, total))
    back, negative = compose.inverse(y, context)
    torch.testing.assert_close((back, negative), (x, -logabsdet))


def test_logabsdet_is_that_of_the_jacobian():
    compose, x, context = flow(), torch.randn(4).double(), torch.randn(1, 3).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: compose(x[None], context)[0][0], x)
    torch.testing.assert_close(compose(x[None], context)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


def test_gradcheck_of_both_directions():
    compose, context = flow(), torch.randn(2, 3, requires_grad=True).double()
    x = torch.randn(2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(compose, (x, context))
    assert torch.autograd.gradcheck(compose.inverse, (x, context))


def test_is_a_sequence():
    compose = flow(reversible=True, max_drift=1e-2)
    assert len(compose) == 4 and list(compose) == list(compose.transforms)
    assert compose[1] is compose.transforms[1] and compose[-1] is compose.transforms[3]
    part = compose[1:3]
    assert isinstance(part, Compose) and list(part) == list(compose.transforms[1:3])
    assert part.reversible and part.max_drift == 1e-2


def test_an_empty_one_is_the_identity():
    x = torch.randn(3, 2, 4, 4, dtype=torch.bfloat16)
    for direction in (Compose([]), Compose([]).inverse):
        y, logabsdet = direction(x)
        assert torch.equal(y, x) and torch.equal(logabsdet, torch.zeros(3))


def test_loads_a_composite_transform_of_nflows():
    theirs = nflows.CompositeTransform(
        [nflows.LULinear(4), nflows.CompositeTransform([nflows.ReversePermutation(4), nflows.LULinear(4)])]
    ).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = Compose([LULinear(4), Compose([ReversePermutation(4), LULinear(4)])]).double()
    state = theirs.state_dict()
    ours.load_state_dict(state)
    assert all(key.startswith("_transforms.") for key in state), "the state dict is the caller's"
    x = torch.randn(5, 4).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    again = Compose([LULinear(4), Compose([ReversePermutation(4), LULinear(4)])]).double()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(x)[0], ours(x)[0])


@pytest.mark.parametrize("reversible", [False, True])
def test_compiles_to_one_graph(reversible):
    compose, x, context = flow(reversible=reversible), torch.randn(5, 4).double(), torch.randn(5, 3).double()

    def loss(module, x):
        y, logabsdet = module(x, context)
        back, _ = module.inverse(y, context)
        return (y.square().sum(1) - logabsdet + back.sum(1)).mean()

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    grads = [torch.autograd.grad(f(compose, x), list(compose.parameters())) for f in (loss, compiled)]
    for eager, graph in zip(*grads, strict=True):
        torch.testing.assert_close(graph, eager)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies(duplicate):
    compose = flow(reversible=True, max_drift=1e-3, checkpoint_every=2)
    x, context = torch.randn(5, 4).double(), torch.randn(5, 3).double()
    compose(x, context)[0].sum().backward()
    twin = duplicate(compose)
    assert (twin.reversible, twin.max_drift, twin.checkpoint_every, twin.drift) == (True, 1e-3, 2, None)
    torch.testing.assert_close(twin(x, context), compose(x, context))


def test_refuses():
    with pytest.raises(TypeError, match=r"transforms\[1\]: expected a module with forward and inverse, got Linear"):
        Compose([LULinear(2), nn.Linear(2, 2)])
    with pytest.raises(TypeError, match=r"transforms\[0\]: expected a module with forward and inverse, got function"):
        Compose([lambda x, context: (x, 0)])
    for limit in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="max_drift: expected a positive number"):
            Compose([LULinear(2)], max_drift=limit)
    for every in (0, 1.5, True):
        with pytest.raises(ValueError, match="checkpoint_every: expected a positive int"):
            Compose([LULinear(2)], checkpoint_every=every)
