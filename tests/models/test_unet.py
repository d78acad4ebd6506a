"""The UNet computes what diffusers' does, in any memory format, and refuses what does not fit."""

import pytest
import torch

from fastgen.models.unet import UNet

SIZES = {"channels": 16, "channel_multipliers": (1, 2, 3), "layers": 2, "attention_levels": (1,), "groups": 8}
CASES = [
    {},
    {"num_classes": 4, "head_channels": 8},
    {"attention_levels": (0, 2), "layers": 1, "middle_attention": False},
    {"channel_multipliers": (1,), "attention_levels": ()},
]


def randomised(unet):
    """Weights that are not zero anywhere."""
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    return unet.eval()


def inputs(unet, batch=3):
    x, time = torch.randn(batch, unet.in_channels, 16, 8), torch.tensor([0.0, 37.0, 999.0])[:batch]
    labels = None if unet.num_classes is None else torch.arange(batch) % (unet.num_classes + 1)
    return x, time, labels


@pytest.mark.parametrize("changed", CASES, ids=str)
def test_equals_diffusers_with_the_same_weights(changed):
    pytest.importorskip("diffusers")
    from fastgen.bench.unet_peers import diffusers_unet, weights_from_diffusers

    sizes = {**SIZES, **changed}
    ours = randomised(UNet(3, 6, **sizes))
    theirs = diffusers_unet(ours, **sizes)
    x, time, labels = inputs(ours)
    with torch.no_grad():
        expected = theirs(x, time, class_labels=labels).sample
        torch.testing.assert_close(ours(x, time, labels), expected, rtol=1e-5, atol=1e-5)
    # And back.
    fresh = UNet(3, 6, **sizes).eval()
    fresh.load_state_dict(weights_from_diffusers(theirs, fresh))
    with torch.no_grad():
        assert torch.equal(fresh(x, time, labels), ours(x, time, labels))


def test_gradients_equal_diffusers():
    pytest.importorskip("diffusers")
    from fastgen.bench.unet_peers import diffusers_unet

    ours = randomised(UNet(3, **SIZES)).double()
    theirs = diffusers_unet(ours, **SIZES).double()
    x, time, _ = inputs(ours)
    mine, other = x.double().requires_grad_(), x.double().requires_grad_()
    ours(mine, time).square().sum().backward()
    theirs(other, time).sample.square().sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.conv_in.weight.grad, theirs.conv_in.weight.grad, rtol=1e-5, atol=1e-3)


def test_channels_last_gives_the_same_numbers_and_format():
    unet = randomised(UNet(3, **SIZES))
    x, time, _ = inputs(unet)
    with torch.no_grad():
        expected = unet(x, time)
        unet.to(memory_format=torch.channels_last)
        got = unet(x.to(memory_format=torch.channels_last), time)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_one_time_for_all_images_is_that_time_for_each():
    unet = randomised(UNet(3, **SIZES))
    x, _, _ = inputs(unet)
    with torch.no_grad():
        expected = unet(x, torch.full((3,), 7.0))
        torch.testing.assert_close(unet(x, 7), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(unet(x, torch.tensor([7])), expected, rtol=1e-5, atol=1e-5)


def test_no_label_is_the_label_of_none():
    unet = randomised(UNet(3, num_classes=4, **SIZES))
    x, time, _ = inputs(unet)
    with torch.no_grad():
        assert torch.equal(unet(x, time), unet(x, time, torch.full((3,), 4)))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"groups": 7}, "groups: expected a divisor of every level's width"),
        ({"attention_levels": (3,)}, "attention_levels: expected 0 to 2"),
        ({"channel_multipliers": ()}, "channel_multipliers"),
        ({"head_channels": 5}, "head_channels: expected a divisor"),
        ({"dropout": 1.0}, "dropout"),
        ({"layers": 0}, "layers"),
    ],
)
def test_sizes_that_do_not_go_together(changed, message):
    with pytest.raises(ValueError, match=message):
        UNet(3, **{**SIZES, **changed})


def test_inputs_that_do_not_fit():
    unet = UNet(3, **SIZES)
    with pytest.raises(ValueError, match=r"x: expected \[batch, 3, height, width\]"):
        unet(torch.zeros(1, 1, 8, 8), 0)
    with pytest.raises(ValueError, match="multiples of 4"):
        unet(torch.zeros(1, 3, 8, 6), 0)
    with pytest.raises(ValueError, match="labels: this network has no classes"):
        unet(torch.zeros(1, 3, 8, 8), 0, torch.tensor([1]))
    with pytest.raises(ValueError, match=r"time: expected a number, \[1\] or \[2\]"):
        unet(torch.zeros(2, 3, 8, 8), torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels: expected \[2\]"):
        UNet(3, num_classes=2, **SIZES)(torch.zeros(2, 3, 8, 8), 0, torch.tensor([1]))
