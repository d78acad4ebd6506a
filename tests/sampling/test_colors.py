"""Networks that order their colours: one step per colour, whatever the order of channels in the layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.sampling import LogisticMixture, NotCausalError
from tests.sampling.exactness import assert_draws_as_naive, assert_same_outputs, sampler
from tests.sampling.random_networks import causal_mask

LEVELS = 5
SHAPE = (3, 4, 5)


def blocks(channels):
    """Red channels, then green, then blue."""
    return torch.arange(channels) * 3 // channels


def interleaved(channels):
    """Red, green, blue, red, green, blue."""
    return torch.arange(channels) % 3


class ColorMasked(nn.Conv2d):
    """Kind A sees earlier colours of the pixel itself, kind B also its own."""

    def __init__(self, kind, in_channels, out_channels, kernel_size, color_of):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, dtype=torch.float64)
        mask = causal_mask("A", kernel_size, kernel_size).expand_as(self.weight).clone()
        own, other = color_of(out_channels)[:, None], color_of(in_channels)[None]
        mask[:, :, kernel_size // 2, kernel_size // 2] = (other < own if kind == "A" else other <= own).double()
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class ColorNetwork(nn.Module):
    """[B, 3, H, W] to [B, 3 * levels, H, W] with all logits of red first, or to [B, levels, 3, H, W]."""

    def __init__(self, color_of, five=False, first="A", levels=LEVELS):
        super().__init__()
        self.five, self.levels = five, levels
        # Of the image and of the logits the order is fixed: colour first, or level first.
        self.first = ColorMasked(first, 3, 12, 5, lambda n: blocks(n) if n == 3 else color_of(n))
        self.gates = ColorMasked("B", 12, 24, 3, lambda n: color_of(n) if n == 12 else color_of(12).repeat(2))
        self.mix = ColorMasked("B", 12, 12, 1, color_of)
        self.head = ColorMasked(
            "B", 12, 3 * levels, 1, lambda n: color_of(n) if n == 12 else (interleaved if five else blocks)(n)
        )

    def forward(self, x):
        h = self.first(x)
        a, b = self.gates(F.relu(h)).chunk(2, 1)
        h = h + self.mix(torch.tanh(a) * torch.sigmoid(b))
        y = self.head(F.elu(h))
        return y.unflatten(1, (self.levels, 3)) if self.five else y


@pytest.mark.parametrize("color_of", [blocks, interleaved])
@pytest.mark.parametrize("five", [False, True])
def test_ordered_colors_are_exact(color_of, five):
    model = ColorNetwork(color_of, five)
    cached = sampler(model, SHAPE, colors=3)
    assert cached.steps == 3 * 4 * 5
    assert_same_outputs(cached.program, model)
    assert_draws_as_naive(cached, model)


@pytest.mark.parametrize("color_of", [blocks, interleaved])
def test_a_step_computes_one_color(color_of):
    program = sampler(ColorNetwork(color_of), SHAPE, colors=3).program
    assert [program.nodes[index].color for index in program.inputs] == [0, 1, 2]
    dense = sum(weight.numel() for name, weight in ColorNetwork(color_of).named_parameters() if "weight" in name)
    split = sum(tap.weight.numel() for node in program.nodes for tap in node.taps)
    live = sum(int(module.mask.sum()) for module in ColorNetwork(color_of).modules() if isinstance(module, ColorMasked))
    # Only the blocks of weights that are alive are kept, each once.
    assert split == live < dense
    convolutions = [node for node in program.nodes if node.module == "head"]
    assert [node.channels for node in convolutions] == [LEVELS] * 3


def test_partial_images_may_know_some_colors_of_a_pixel():
    model = ColorNetwork(blocks)
    cached = sampler(model, SHAPE, colors=3)
    given = torch.randint(LEVELS, (3, *SHAPE))
    mask = torch.rand(3, *SHAPE) < 0.5
    images = assert_draws_as_naive(cached, model, given=given, mask=mask)
    assert torch.equal(images[mask], given[mask])


def test_a_network_that_lets_a_color_see_itself_is_refused():
    with pytest.raises(NotCausalError, match=r"depends on the colour at \(0, 0\) colour 0.*masked one is first"):
        sampler(ColorNetwork(blocks, first="B"), SHAPE, colors=3)


def test_a_network_that_orders_colors_is_refused_where_pixels_are_drawn_whole():
    with pytest.raises(NotCausalError, match=r"output at \(0, 0\) depends on the pixel at \(0, 0\)"):
        sampler(ColorNetwork(blocks), SHAPE, colors=1)


def test_a_network_that_does_not_order_colors_draws_pixels_whole():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = ColorMasked("A", 3, 6, 5, lambda n: torch.zeros(n))
            self.head = nn.Conv2d(6, 20, 1, dtype=torch.float64)

        def forward(self, x):
            return self.head(F.elu(self.first(x)))

    model = Whole()
    cached = sampler(model, SHAPE, draw=LogisticMixture(3, 2, levels=16))
    assert_draws_as_naive(cached, model)
    given, mask = torch.randint(16, (2, *SHAPE)), (torch.rand(2, 1, 4, 5) < 0.4)
    assert_draws_as_naive(cached, model, n=2, given=given, mask=mask)
    with pytest.raises(ValueError, match="mask: this network draws whole pixels"):
        cached.sample(2, given=given, mask=torch.rand(2, *SHAPE) < 0.5)
