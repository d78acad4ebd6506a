"""Outputs of MADE depend on the features before them alone; numbers and keys are nflows', masks zuko's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.nn.made import MADE, MaskedMLP


def depends(network, features, outputs, context=None):
    """[features, outputs, features]: which outputs of a feature move with which inputs, by autograd."""
    x = torch.randn(1, features, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, context), x)
    return (jacobian != 0).view(features, outputs, features)


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module.double()


@pytest.mark.parametrize(("residual", "random_mask"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("context_features", [None, 3])
def test_output_depends_on_exactly_the_features_before(residual, random_mask, context_features):
    made = MADE(
        6,
        40,
        context_features,
        output_multiplier=2,
        use_residual_blocks=residual,
        random_mask=random_mask,
        activation=torch.tanh,
    )
    context = None if context_features is None else torch.randn(1, context_features, dtype=torch.float64)
    found = depends(randomise(made), 6, 2, context)
    before = torch.ones(6, 6).tril(-1).bool()[:, None].expand(6, 2, 6)
    assert torch.equal(found, before) if not random_mask else not (found & ~before).any()


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1], [3, 2, 1, 0]])
@pytest.mark.parametrize("context_features", [None, 2])
def test_masked_mlp_follows_any_order(order, context_features):
    network = randomise(MaskedMLP(4, (24, 16), context_features, 3, order, torch.tanh))
    context = None if context_features is None else torch.randn(1, context_features, dtype=torch.float64)
    place = torch.arange(4) if order is None else torch.tensor(order)
    expected = (place[:, None] > place)[:, None].expand(4, 3, 4)
    assert torch.equal(depends(network, 4, 3, context), expected)


OPTIONS = [
    {},
    {"use_residual_blocks": False},
    {"use_residual_blocks": False, "random_mask": True},
    {"num_blocks": 1, "activation": F.elu, "output_multiplier": 3},
    {"use_batch_norm": True},
    {"use_batch_norm": True, "use_residual_blocks": False},
    {"num_blocks": 0},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("context_features", [None, 3])
@pytest.mark.parametrize("features", [1, 5])
def test_numbers_and_keys_of_nflows(options, context_features, features):
    peer = pytest.importorskip("nflows.transforms.made").MADE(features, 7, context_features, **options).double()
    for parameter in peer.parameters():
        nn.init.normal_(parameter)
    made = MADE(features, 7, context_features, **options).double()
    assert list(made.state_dict()) == list(peer.state_dict())
    made.load_state_dict(peer.state_dict())
    x = torch.randn(9, features, dtype=torch.float64)
    context = None if context_features is None else torch.randn(9, context_features, dtype=torch.float64)
    torch.testing.assert_close(made(x, context), peer(x, context), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("context_features", [None, 2])
def test_masks_and_numbers_of_zuko(reverse, context_features):
    flows = pytest.importorskip("zuko.flows")
    order = list(range(5))[:: -1 if reverse else 1]
    peer = flows.autoregressive.MaskedAutoregressiveTransform(
        5, context_features or 0, order=torch.tensor(order), hidden_features=(11, 13)
    ).hyper.double()
    network = MaskedMLP(5, (11, 13), context_features, 2, order).double()
    theirs = [layer for layer in peer if isinstance(layer, nn.Linear)]
    for layer, other in zip(network.layers, theirs, strict=True):
        assert torch.equal(layer.mask.bool(), other.mask)
        layer.weight, layer.bias = other.weight, other.bias
    x = torch.randn(6, 5, dtype=torch.float64)
    context = None if context_features is None else torch.randn(6, context_features, dtype=torch.float64)
    both = x if context is None else torch.cat([x, context], 1)
    torch.testing.assert_close(network(x, context), peer(both), rtol=1e-12, atol=1e-12)


def test_dropout_and_training_say_whether_one_pass_will_do():
    assert MADE(3, 4).one_pass and MaskedMLP(3, (4,)).one_pass
    made = MADE(3, 4, dropout_probability=0.5)
    assert not made.one_pass and made.eval().one_pass
    assert not MADE(3, 4, use_batch_norm=True).eval().one_pass


def test_compiles_as_one_graph():
    for network in (MADE(4, 8, 2, output_multiplier=2), MaskedMLP(4, (8, 8), 2, 2)):
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        x, context = torch.randn(3, 4), torch.randn(3, 2)
        torch.testing.assert_close(compiled(x, context), network(x, context))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MADE(0, 4), "features: expected a positive int"),
        (lambda: MADE(3, 4, 0), "context_features: expected a positive int"),
        (lambda: MADE(3, 4, num_blocks=-1), "num_blocks: expected 0 or more"),
        (lambda: MADE(3, 4, random_mask=True), "random_mask: residual blocks need"),
        (lambda: MaskedMLP(3, ()), "hidden_features: expected at least one"),
        (lambda: MaskedMLP(3, (4, 0)), "hidden_features: expected a positive int"),
        (lambda: MaskedMLP(3, (4,), order=[0, 1, 1]), "order: expected a permutation of 0 to 2"),
        (lambda: MaskedMLP(3, (4,), order=[0, 1]), "order: expected a permutation of 0 to 2"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda c: MADE(3, 4, c), lambda c: MaskedMLP(3, (4,), c)], ids=["MADE", "MaskedMLP"])
def test_bad_inputs(make):
    with pytest.raises(ValueError, match=r"x: expected \[batch, 3\], got \(2, 4\)"):
        make(None)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="context: made without context_features"):
        make(None)(torch.zeros(2, 3), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"context: expected \[batch, context_features\] = \(2, 5\), got None"):
        make(5)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"= \(2, 5\), got \(1, 5\)"):
        make(5)(torch.zeros(2, 3), torch.zeros(1, 5))
    with pytest.raises(TypeError, match="x: expected a floating dtype"):
        make(None)(torch.zeros(2, 3, dtype=torch.int64))
