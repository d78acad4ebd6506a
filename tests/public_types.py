"""What a type checker makes of calls as people write them: `make lint` checks this file, and nothing runs it."""

from typing import assert_type

import numpy as np
import torch
from torch import Tensor, nn

import fastgen
from fastgen import data, density, gan, inverse, metrics, models, ops, sampling, schedulers
from fastgen import nn as layers


def of_ops(x: Tensor, parameters: Tensor) -> None:
    assert_type(ops.gated_activation(x), Tensor)
    assert_type(ops.affine_coupling(x, x, x, inverse=True), tuple[Tensor, Tensor])
    assert_type(ops.rational_quadratic_coupling(x, parameters, num_bins=8), tuple[Tensor, Tensor])
    assert_type(ops.group_norm_silu(x, 8), Tensor)
    assert_type(ops.kde_log_density(x, x, 0.5, leave_one_out=True), Tensor)
    assert_type(ops.knn(x, x, 5), tuple[Tensor, Tensor])
    assert_type(ops.gaussian_reparameterize_kl(x, x, seed=1), tuple[Tensor, Tensor])
    assert_type(ops.upfirdn2d(x, ops.setup_filter([1, 3, 3, 1]), up=2), Tensor)
    with fastgen.use_backend("reference"):
        ops.bias_act(x, None, act="lrelu", clamp=1.0)


def of_layers(x: Tensor, net: nn.Module) -> nn.Module:
    flow = layers.Compose([layers.ActNorm(4), layers.LULinear(4), layers.Permutation(torch.arange(4))])
    assert_type(flow.forward(x), tuple[Tensor, Tensor])
    assert_type(flow.inverse(x, context=None), tuple[Tensor, Tensor])
    assert_type(layers.MaskedConv2d("B", 4, 4, 3, padding=1).forward(x), Tensor)
    return nn.Sequential(layers.CausalConv1d(4, 4, 2), layers.PixelNorm(), layers.GroupNormSiLU(2, 4), net)


def of_models(x: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    flow = models.NeuralSplineFlow(16)
    assert_type(flow.log_prob(x), Tensor)
    assert_type(flow.sample(3, generator=generator), Tensor)
    assert_type(models.GatedPixelCNN(image_size=8, levels=4).sample(2, generator=generator), Tensor)
    assert_type(models.VAE(28, 1, None).loss(x), Tensor)
    assert_type(models.DDPM(32, 3, 256).sample(4, sampler="ddim", steps=50), Tensor)


def of_schedulers(x: Tensor) -> None:
    scheduler = schedulers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    for time in scheduler.timesteps:
        output = scheduler.step(x, time, x)
        assert isinstance(output, schedulers.SchedulerOutput)
        x = assert_type(output.prev_sample, Tensor)


def of_metrics(images: Tensor) -> None:
    metric = metrics.FrechetInceptionDistance("given")
    metric.update(images, real=True)
    assert_type(metric.compute(), Tensor)


def of_densities(x: np.ndarray) -> None:
    estimator = density.KernelDensity(bandwidth=0.5).fit(x)
    assert_type(estimator, density.KernelDensity)
    estimator.sample(10)


def of_the_rest(x: Tensor, network: nn.Module) -> None:
    images = data.load("digits")
    assert_type(images, data.Dataset)
    assert_type(gan.adversarial_loss("hinge").generator(x), Tensor)
    assert_type(gan.squared_gradient(network, x), tuple[Tensor, Tensor])
    draw = sampling.Categorical(torch.linspace(-1, 1, 4))
    assert_type(sampling.CachedSampler(network, (1, 8, 8), draw=draw).sample(2), Tensor)
    inverse.SuperResolution(2)
