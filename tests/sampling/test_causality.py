"""The proof of causality: ready times, and who is blamed when a network looks ahead."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.sampling import NotCausalError
from fastgen.sampling.schedule.causality import prove_causal, ready_times
from fastgen.sampling.schedule.simplify import simplify
from fastgen.sampling.trace import trace
from tests.sampling.exactness import sampler
from tests.sampling.random_networks import Masked, RandomNetwork, causal_mask

CHANNELS = 4
SHAPE = (1, 5, 6)


def true_ready_times(model, shape):
    """For each output position the last pixel, counted from 1, that its value depends on: by the Jacobian."""
    x = torch.randn(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).sum(1), x)[0, :, :, 0, 0].flatten(2)
    number = torch.arange(1, jacobian.shape[-1] + 1)
    return ((jacobian != 0) * number).amax(2).numpy()


def traced_ready_times(model, shape):
    graph = simplify(trace(model.eval(), shape).graph)
    (view,) = graph.outputs
    return ready_times(graph)[view.node][view.row : view.row + view.height, view.col : view.col + view.width]


@pytest.mark.parametrize("seed", range(8))
def test_ready_times_are_those_of_the_jacobian(seed):
    # The norms couple channels, so that no dependency cancels; ReLUs may switch one off for this image.
    model = RandomNetwork(seed).eval()
    true, proved = true_ready_times(model, SHAPE), traced_ready_times(model, SHAPE)
    assert (true <= proved).all()
    assert (true == proved).mean() > 0.8


def test_ready_times_of_one_masked_convolution():
    graph = trace(Masked("A", 1, 3, 3), (1, 3, 4)).graph
    pixel = np.arange(12).reshape(3, 4)
    # Kind A, 3x3: the pixel before it in the row; in the first column the upper right neighbour.
    expected = pixel.copy()
    expected[1:, 0] = pixel[:-1, 1] + 1
    np.testing.assert_array_equal(ready_times(graph)[graph.outputs[0].node], expected)
    prove_causal(graph, ready_times(graph))


class Residual(nn.Module):
    """Three masked layers with skips."""

    def __init__(self, first="A", hole=None):
        super().__init__()
        self.first = Masked(first, 1, CHANNELS, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ELU(), nn.Conv2d(CHANNELS, CHANNELS, 1).double(), Masked("B", CHANNELS, CHANNELS, 3))
            for _ in range(2)
        )
        self.head = nn.Conv2d(CHANNELS, 5, 1).double()
        if hole is not None:
            self.blocks[1][2].mask[hole] = 1

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def refusal(model, shape=SHAPE, **options):
    with pytest.raises(NotCausalError) as info:
        sampler(model, shape, **options)
    return info.value


def test_a_hole_in_a_mask_names_the_layer_and_its_offset():
    error = refusal(Residual(hole=(1, 2)))
    assert error.module == "blocks.1.2"
    assert "blocks.1.2 looks ahead by (0, 1)" in str(error)
    # The whole path, from the output back to the image.
    assert error.path[0] == ("head", (0, 0))
    assert error.path[-1][0] == "first"
    assert ("blocks.1.2", (0, 1)) in error.path


def test_a_hole_that_looks_down_names_the_layer_and_its_offset():
    error = refusal(Residual(hole=(2, 0)))
    assert error.module == "blocks.1.2"
    assert "looks ahead by (1, -1)" in str(error)


def test_kind_b_in_place_of_the_first_a_is_not_blamed_on_a_layer_that_looks_ahead():
    error = refusal(Residual(first="B"))
    assert error.module == "first"
    assert "no layer on this path excludes the pixel itself; the first masked one is first" in str(error)
    assert "depends on the pixel at (0, 0)" in str(error)


def test_an_unmasked_convolution_is_blamed():
    error = refusal(nn.Sequential(Masked("A", 1, CHANNELS, 3), nn.Conv2d(CHANNELS, 5, 3, padding=1).double()))
    assert error.module == "1"
    assert "1 looks ahead by (1, 1)" in str(error)


class ShiftedStacks(nn.Module):
    """As in PixelCNN++: the wide first layer looks right legally, because it is shifted down afterwards."""

    def __init__(self, crop=1):
        super().__init__()
        self.crop = crop
        self.wide = nn.Conv2d(1, CHANNELS, (2, 3)).double()
        self.left = nn.Conv2d(1, CHANNELS, (1, 2)).double()
        self.down = nn.Conv2d(CHANNELS, CHANNELS, (2, 3), stride=2).double()
        self.up = nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, stride=2, output_padding=(0, 1)).double()
        self.head = nn.Conv2d(CHANNELS, 5, 1).double()

    def forward(self, x):
        u = self.wide(F.pad(x, (1, 1, 1, 0)))
        u = F.pad(u, (0, 0, 1, 0))[:, :, :-1]
        u = self.down(F.pad(u, (1, 1, 1, 0)))
        height, width = x.shape[-2:]
        u = self.up(u)[:, :, self.crop - 1 : self.crop - 1 + height, 1 : 1 + width]
        return self.head(F.elu(u + F.pad(self.left(F.pad(x, (2, 0, 0, 0))), (0, -1))))


def test_a_layer_that_looks_right_and_is_shifted_down_is_causal():
    sampler(ShiftedStacks(), (1, 4, 6))


def test_the_furthest_look_ahead_is_blamed_and_not_the_legal_one():
    # The crop after upsampling is wrong by one row: the up-sampled value is read one row too early.
    error = refusal(ShiftedStacks(crop=2), (1, 4, 6))
    assert error.module != "wide"
    modules = [module for module, _ in error.path]
    assert modules.index("up") < modules.index("down") < modules.index("wide")


def test_a_network_without_layers_is_refused():
    error = refusal(nn.Identity(), draw=None, forward=lambda x: x.repeat(1, 5, 1, 1))
    assert "depends on the pixel at (0, 0)" in str(error)


def test_a_dilated_kernel_looks_ahead_by_its_dilation():
    class Dilated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Masked("A", 1, CHANNELS, 3)
            self.wide = nn.Conv2d(CHANNELS, 5, 3, padding=2, dilation=2).double()
            self.wide.weight.data *= causal_mask("B", 3, 3)
            self.wide.weight.data[:, :, 1, 2] = 1

        def forward(self, x):
            return self.wide(self.first(x))

    assert "wide looks ahead by (0, 2)" in str(refusal(Dilated()))
