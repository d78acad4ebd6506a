"""Autoregressive models learn: every parameter, from a good start, in one compiled graph."""

import pytest
import torch
from torch import nn

from fastgen.models import PixelCNN, PixelCNNPP


def stripes(model, n):
    """Images whose every row repeats one of two levels: a bit to guess in the first column, nothing in the others."""
    levels = 1 + torch.randint(2, (n, 1, model.image_size[0], 1)) * (model.levels // 2)
    return levels.expand(n, *model.shape).contiguous()


def test_learns_stripes(model):
    model = model.float().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    labels = None if model.num_classes is None else torch.zeros(16, dtype=torch.int64)

    def bits():
        return model.eval().bits_per_dim(stripes(model, 16), labels).mean().item()

    before = bits()
    model.train()
    for _ in range(60):
        loss = model.loss(stripes(model, 16), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bits() < 0.7 * before


def test_every_parameter_learns(model, images, labels):
    model.loss(images, labels).backward()
    # What the last vertical stack gates goes nowhere.
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_dead_weights_stay_where_they_are():
    model = PixelCNN(image_size=4, levels=3, channels=4, layers=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.loss(torch.randint(3, (2, 1, 4, 4))).backward()
    optimizer.step()
    dead = model.first.mask == 0
    assert torch.equal(model.first.weight[dead], before["first.weight"][dead])
    assert not torch.equal(model.first.weight[~dead], before["first.weight"][~dead])


def test_dropout_acts_in_training_alone(model, images, labels):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert torch.equal(model.log_prob(images, labels), model.log_prob(images, labels))
    model.train()
    assert not torch.equal(model.log_prob(images, labels), model.log_prob(images, labels))


def test_initialize_gives_every_layer_outputs_of_unit_scale():
    model = PixelCNNPP(image_size=8, image_channels=1, channels=6, resnets=1, dropout=0.0).double()
    images = torch.randint(256, (16, 1, 8, 8))
    before = model.loss(images)
    model.initialize(images)
    outputs = {}
    for name in ("first_u", "halve_ul.0", "double_u.1", "decoder.2.1.ul.output"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    assert model.loss(images) != before
    for name, output in outputs.items():
        std, mean = torch.std_mean(output, (0, 2, 3))
        torch.testing.assert_close(std, torch.full_like(std, 0.1 if name.endswith("output") else 1.0))
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="module: expected convolutions with weight normalisation"):
        PixelCNNPP(image_size=8, channels=4, resnets=1, weight_norm=False).initialize(torch.zeros(1, 3, 8, 8).long())


@pytest.mark.parametrize("model", ["pixelcnn", "gated-rgb", "pixelcnnpp"], indirect=True)
def test_loss_compiles_to_one_graph(model, images, labels):
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, labels), model.loss(images, labels))
