"""Conditioners are their formulas or nflows' networks; examples do not mix and contexts reach theirs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.nn import MLP, ConvNet, ResidualNet

NETS = {
    "MLP": (lambda c: MLP(3, 4, (8, 6), context_features=c), (3,), (4,)),
    "ResidualNet": (lambda c: ResidualNet(3, 4, 8, context_features=c), (3,), (4,)),
    "ConvNet": (lambda c: ConvNet(3, 4, 8, context_features=c), (3, 5, 6), (4, 5, 6)),
}


def randomised(net):
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net.double()


@pytest.mark.parametrize("context_features", [None, 2])
@pytest.mark.parametrize("name", NETS)
def test_every_example_is_by_itself_and_the_context_reaches_it(name, context_features):
    make, shape, out = NETS[name]
    net = randomised(make(context_features))
    x = torch.randn(3, *shape, dtype=torch.float64)
    context = None if context_features is None else torch.randn(3, 2, dtype=torch.float64)
    y = net(x, context)
    assert y.shape == (3, *out)
    one = net(x[1:2], None if context is None else context[1:2])
    torch.testing.assert_close(one[0], y[1])
    if context is not None:
        assert not torch.allclose(net(x, context + 1), y)


@pytest.mark.parametrize("name", NETS)
def test_compiles_to_one_graph(name):
    make, shape, _ = NETS[name]
    net = randomised(make(2))
    x, context = torch.randn(3, *shape, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, context), net(x, context))


@pytest.mark.parametrize("use_batch_norm", [False, True])
@pytest.mark.parametrize("context_features", [None, 3])
@pytest.mark.parametrize("training", [False, True])
def test_residual_net_is_nflows(use_batch_norm, context_features, training):
    resnet = pytest.importorskip("nflows.nn.nets.resnet")
    arguments = {
        "context_features": context_features,
        "num_blocks": 3,
        "activation": F.elu,
        "use_batch_norm": use_batch_norm,
    }
    theirs = randomised(resnet.ResidualNet(4, 7, 16, **arguments)).train(training)
    ours = ResidualNet(4, 7, 16, **arguments).double().train(training)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(8, 4, dtype=torch.float64)
    context = None if context_features is None else torch.randn(8, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x, context), theirs(x, context), rtol=1e-12, atol=1e-12)
    if use_batch_norm and training:
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer)


@pytest.mark.parametrize("make", [ResidualNet, ConvNet])
def test_drops_out_in_training_alone(make):
    net = randomised(make(4, 4, 32, dropout_probability=0.5))
    x = torch.randn(8, 4, *([3, 3] if make is ConvNet else []), dtype=torch.float64)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_mlp_is_its_formula():
    net = randomised(MLP(3, 2, (5, 4), context_features=1, activation=torch.tanh))
    x, context = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    h = torch.cat((x, context), 1)
    for layer in net.layers[:-1]:
        h = torch.tanh(h @ layer.weight.T + layer.bias)
    torch.testing.assert_close(net(x, context), h @ net.layers[-1].weight.T + net.layers[-1].bias)
    assert [tuple(layer.weight.shape) for layer in net.layers] == [(5, 4), (4, 5), (2, 4)]
    assert net.hidden_features == 4


def test_conv_net_is_its_formula_and_starts_at_zero():
    x, context = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    assert not ConvNet(3, 4, 8, context_features=2).double()(x, context).any()
    net = randomised(ConvNet(3, 4, 8, context_features=2, activation=torch.tanh))
    h = F.conv2d(x, net.initial_layer.weight, net.initial_layer.bias, padding=1)
    h = torch.tanh(h + (context @ net.context_layer.weight.T)[:, :, None, None])
    h = torch.tanh(F.conv2d(h, net.hidden_layer.weight, net.hidden_layer.bias))
    torch.testing.assert_close(net(x, context), F.conv2d(h, net.final_layer.weight, net.final_layer.bias, padding=1))


@pytest.mark.parametrize("name", NETS)
def test_refuses_other_inputs(name):
    make, shape, _ = NETS[name]
    x = torch.randn(2, *shape)
    with pytest.raises(ValueError, match="context: made without context_features, expected None"):
        make(None)(x, torch.randn(2, 2))
    for context in (None, torch.randn(3, 2), torch.randn(2, 3), torch.randn(2)):
        with pytest.raises(ValueError, match=r"context: expected \[batch, context_features\] = \(2, 2\), got"):
            make(2)(x, context)
    with pytest.raises(ValueError, match=r"x: expected \[batch, 3.*got \(2, 4"):
        make(None)(torch.randn(2, 4, *shape[1:]))
    with pytest.raises(TypeError, match=r"x: expected a floating dtype, got torch\.int64"):
        make(None)(x.long())


def test_refuses_sizes():
    with pytest.raises(ValueError, match=r"hidden_features: expected at least one width, got \(\)"):
        MLP(1, 1, ())
    with pytest.raises(ValueError, match="hidden_features: expected a positive int, got 0"):
        MLP(1, 1, (4, 0))
    with pytest.raises(ValueError, match="num_blocks: expected an int of at least 0, got -1"):
        ResidualNet(1, 1, 4, num_blocks=-1)
    for make in (ResidualNet, ConvNet):
        with pytest.raises(ValueError, match=r"dropout_probability: expected a probability in \[0, 1\), got 1.0"):
            make(1, 1, 4, dropout_probability=1.0)
    with pytest.raises(ValueError, match="in_channels: expected a positive int, got 0"):
        ConvNet(0, 1)
    with pytest.raises(ValueError, match="kernel_size: expected a positive odd int"):
        ConvNet(1, 1, kernel_size=2)
