"""Averages over many steps: they neither decay to nothing nor stand still, in any dtype."""

import pytest
import torch
from torch import nn

from fastgen.gan import Augment
from fastgen.models import StyleGAN2
from fastgen.nn import BatchNormLeakyReLU, VectorQuantizer
from fastgen.nn.module_state import RunningAverages
from fastgen.train.ema import ExponentialMovingAverage

LOW = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW])
@pytest.mark.parametrize("decay", [0.0, 0.8, 0.99])
def test_a_code_that_no_vector_uses_stays_where_it_is(decay, dtype):
    quantizer = VectorQuantizer(2, 4, decay=decay, restart_below=0.0).to(dtype)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0], [100.0]]).expand(2, 4))
        quantizer.average_sums.copy_(quantizer.codebook)
    x = torch.full((3, 4), 0.25, dtype=dtype)
    for _ in range(420):
        quantizer(x)
    assert torch.equal(quantizer.codebook[1], torch.full((4,), 100.0, dtype=dtype))
    # The other has gone to what it stands for, and one that is used again goes there too.
    torch.testing.assert_close(quantizer.codebook[0], x[0], rtol=0.02, atol=0.02 if decay == 0.99 else 0)
    for _ in range(20):
        quantizer(torch.full((3, 4), 90.0, dtype=dtype))
    torch.testing.assert_close(quantizer.codebook[1], torch.full((4,), 90.0, dtype=dtype), rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", LOW)
def test_a_codebook_in_half_precision_reaches_its_means(dtype):
    quantizer = VectorQuantizer(2, 4, decay=0.999, restart_below=0.0).to(dtype)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0], [100.0]]).expand(2, 4))
        quantizer.average_sums.copy_(quantizer.codebook)
    # More vectors than half precision counts.
    x = torch.full((70_000, 4), 2.0, dtype=dtype)
    for _ in range(20):
        quantizer(x)
    torch.testing.assert_close(quantizer.codebook[0], x[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("dtype", LOW)
def test_means_of_styles_and_paths_in_half_precision_reach_what_they_average(dtype):
    model = StyleGAN2(8, 1, 17, channels=4, latent_size=6, style_size=8, mapping_layers=1, style_mixing=0.0).to(dtype)
    mapping = model.generator.mapping.train()
    z = torch.randn(64, 6, dtype=dtype)
    for _ in range(1500):
        w = mapping(z)
    torch.testing.assert_close(mapping.mean, w.float().mean(0), rtol=0.02, atol=0.01)
    lengths = []
    for _ in range(60):
        lengths.append(model.path_length_penalty(8, None)[1].detach().float().mean())
    expected = torch.zeros(())
    for length in lengths:
        expected = 0.99 * expected + 0.01 * length
    torch.testing.assert_close(model.path_mean, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", LOW)
def test_the_probability_of_augmentation_moves_in_half_precision(dtype):
    augment = Augment("brightness", probability=0.5, target=0.0, kimg=500).to(dtype)
    for _ in range(100):
        augment.adapt(torch.ones(64, dtype=dtype))
    assert augment.probability.item() == pytest.approx(0.5 + 100 * 64 / 500_000, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
def test_averaged_weights_reach_the_weights(dtype):
    model = nn.Linear(3, 2).to(dtype)
    ema = ExponentialMovingAverage(model, 0.999)
    nn.init.constant_(model.weight, 1.0)
    for step in range(10_000, 15_000):
        ema.update(model, step)
    torch.testing.assert_close(ema.model.weight, torch.ones(2, 3), rtol=0.01, atol=0)


def test_averaged_weights_copy_what_has_no_average():
    model = nn.Sequential(BatchNormLeakyReLU(3), nn.Linear(3, 2).double())
    model.register_parameter("codes", nn.Parameter(torch.arange(3), requires_grad=False))
    model.register_parameter("phase", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    model.register_buffer("mask", torch.tensor([True, False]))
    ema = ExponentialMovingAverage(model, 0.5)
    with torch.no_grad():
        model.codes += 5
        model.phase += 2j
        model[0].num_batches_tracked += 7
        model.mask.logical_not_()
    ema.update(model, 1000)
    assert ema.model.codes.tolist() == [5, 6, 7] and ema.model[0].num_batches_tracked == 7
    assert ema.model.mask.tolist() == [False, True]
    torch.testing.assert_close(ema.model.phase.data, torch.full((2,), 1j, dtype=torch.complex64))
    assert ema.model[1].weight.dtype == torch.float64


class Mean(RunningAverages):
    averages = ("mean",)

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))


def test_averages_keep_more_than_they_are_cast_to():
    assert Mean().half().mean.dtype == torch.float32 and Mean().double().mean.dtype == torch.float64
