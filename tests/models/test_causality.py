"""An output of an autoregressive model depends on no later pixel; with two stacks, on all earlier ones."""

import torch

from fastgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP


def test_output_at_a_pixel_ignores_that_pixel_and_all_later_ones(model, images, labels):
    x = model.normalize(images[:1]).requires_grad_()
    output = model(x, None if labels is None else labels[:1])
    channels, height, width = model.shape
    colors = model.likelihood.colors
    # Per pixel and colour drawn: parameters, then time.
    output = output.view(-1, colors, height * width).transpose(1, 2).flatten(1)
    for time in range(output.shape[1]):
        (grad,) = torch.autograd.grad(output[:, time].square().sum(), x, retain_graph=True)
        sees = grad[0].flatten(1).T.flatten() != 0
        seen_from = time * channels // colors
        assert not sees[seen_from:].any()
        # It does see what came just before, in the same row.
        if time // colors % width > 0:
            assert sees[seen_from - channels : seen_from].any()


def seen_by(model, row, column):
    """Which pixels the output at one pixel sees, bool [height, width]."""
    x = model.double().normalize(torch.randint(model.levels, (1, *model.shape))).requires_grad_()
    (grad,) = torch.autograd.grad(model(x)[..., row, column].square().sum(), x)
    return grad[0].abs().sum(0) > 0


def test_two_streams_leave_no_blind_spot():
    row, column = 4, 3
    before = torch.zeros(8, 8, dtype=torch.bool)
    before[:row] = before[row, :column] = True
    sizes = {"image_size": 8, "image_channels": 1, "levels": 4, "channels": 16}
    gated = GatedPixelCNN(**sizes, layers=8, first_kernel_size=3)
    assert torch.equal(seen_by(gated, row, column), before)
    assert torch.equal(seen_by(PixelCNNPP(**sizes, resnets=3, scales=1, dropout=0.0), row, column), before)
    # Masks alone reach only a cone upwards: one column further to the right for every row further up.
    plain = seen_by(PixelCNN(**sizes, layers=8, first_kernel_size=3), row, column)
    assert plain[row - 1, column + 1] and not plain[row - 1, column + 2]
