"""Every flow refuses data, levels, contexts and arguments that make no sense, by name."""

import math

import pytest
import torch

from fastgen.models import IAF, MAF, Glow, NeuralSplineFlow, RealNVP
from tests.models.flow_cases import EVERY, IMAGES, context_for, data_for, make


@pytest.fixture(params=EVERY)
def flow(request):
    return make(request.param)


@pytest.fixture(params=IMAGES)
def image_flow(request):
    return make(request.param)


def test_refuses_data(flow):
    x, context = data_for(flow, 3), context_for(flow, 3)
    shape = ", ".join(str(size) for size in flow.shape)
    for wrong in (x[0], x[..., :-1], torch.cat((x, x), 1)):
        with pytest.raises(ValueError, match=rf"x: expected \[batch, {shape}\], got \("):
            flow.log_prob(wrong, context)
    with pytest.raises(TypeError, match=r"x: expected torch.float64, as the weights, got torch.float32"):
        flow.log_prob(x.float(), context)
    with pytest.raises(TypeError, match="x: expected a tensor, got ndarray"):
        flow.log_prob(x.numpy(), context)
    with pytest.raises(ValueError, match="x: expected a tensor on cpu, where the model is, got meta"):
        flow.log_prob(x.to("meta"), context)
    with pytest.raises(ValueError, match=rf"z: expected \[batch, {flow.features}\]"):
        flow.decode(x.flatten(1)[:, 1:], context)
    for wrong in (0, 2.0):
        with pytest.raises(ValueError, match="n: expected a positive int"):
            flow.sample(wrong, context)


def test_refuses_an_empty_loss(flow):
    with pytest.raises(ValueError, match="expected at least one"):
        flow.loss(torch.zeros(0, *flow.shape, dtype=torch.int64 if flow.levels else flow.dtype), context_for(flow, 0))


def test_refuses_levels(image_flow):
    flow, context = image_flow, context_for(image_flow, 2)
    images = torch.randint(flow.levels, (2, *flow.shape))
    with pytest.raises(TypeError, match="x: expected dequantised images, levels go to log_prob_bound"):
        flow.log_prob(images, context)
    for score in (flow.loss, flow.log_prob_bound, flow.bits_per_dim):
        with pytest.raises(TypeError, match="images: expected an integer dtype, got"):
            score(images.double(), context)
        with pytest.raises(TypeError, match="images: expected an integer tensor, got list"):
            score([1], context)
        with pytest.raises(ValueError, match=r"images: expected \[batch, "):
            score(images[:, :, 1:], context)
        for wrong in (-1, flow.levels):
            with pytest.raises(ValueError, match=f"images: expected levels 0 to {flow.levels - 1}, got .*{wrong}"):
                score(torch.full_like(images, wrong), context)


def test_vectors_have_no_levels():
    with pytest.raises(TypeError, match="images: this model has no levels"):
        make("nsf").bits_per_dim(torch.zeros(2, 3))


@pytest.mark.parametrize("call", ["log_prob", "sample", "encode"])
def test_refuses_contexts(flow, call):
    def run(context):
        return flow.sample(2, context) if call == "sample" else getattr(flow, call)(data_for(flow, 3), context)

    if flow.context_features is None:
        with pytest.raises(ValueError, match="context: this model is unconditional"):
            run(torch.zeros(3, 1, dtype=flow.dtype))
        return
    context = context_for(flow, 3)
    with pytest.raises(ValueError, match=f"context: this model has {flow.context_features} .*, expected a tensor"):
        run(None)
    for wrong in (context[..., None], context.flatten()[0]):
        with pytest.raises(ValueError, match=r"context: expected \["):
            run(wrong)
    with pytest.raises(TypeError, match="context: expected a tensor, got list"):
        run(context.tolist())
    if call != "sample":
        with pytest.raises(ValueError, match=r"context: expected \[3"):
            run(context[:2])
    if flow.num_classes is None:
        with pytest.raises(TypeError, match=r"context: expected torch.float64, as the weights, got torch.float32"):
            run(context.float())
        return
    with pytest.raises(TypeError, match="context: expected classes in an integer dtype"):
        run(context.double())
    for wrong in (-1, flow.num_classes):
        with pytest.raises(ValueError, match=f"context: expected classes 0 to {flow.num_classes - 1}, got"):
            run(torch.full_like(context, wrong))


@pytest.mark.parametrize(
    ("kind", "config", "match"),
    [
        (kind, {"features": 3, **wrong}, match)
        for kind in (NeuralSplineFlow, RealNVP, MAF, IAF)
        for wrong, match in [
            ({"features": 0}, "features: expected a positive int, got 0"),
            ({"features": 2.0}, "features: expected a positive int, got 2.0"),
            ({"transforms": 0}, "transforms: expected a positive int, got 0"),
            ({"hidden_features": 0}, "hidden_features: expected a positive int, got 0"),
            ({"num_blocks": 0}, "num_blocks: expected a positive int, got 0"),
            ({"context_features": 0}, "context_features: expected a positive int, got 0"),
            ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
            ({"dropout": -0.1}, r"dropout: expected a probability in \[0, 1\), got -0.1"),
            ({"dropout": "0.5"}, "dropout: expected a probability"),
            ({"mean": [0, 0, 0]}, "mean, std: expected both, or neither"),
            ({"mean": [0, 0], "std": [1, 1]}, "mean: expected 3 finite numbers"),
            ({"mean": [0, 0, 0], "std": [1, 0, 1]}, "std: expected positive numbers"),
            ({"mean": [0, 0, math.nan], "std": [1, 1, 1]}, "mean: expected 3 finite numbers"),
            ({"mean": [0, 0, 1e39], "std": [1, 1, 1]}, "mean: expected 3 finite numbers"),
            ({"mean": [0, 0, 0], "std": [1, 1e-60, 1]}, "std: expected positive numbers"),
        ]
    ]
    + [
        (NeuralSplineFlow, {"features": 3, "num_bins": 0}, "num_bins: expected a positive int, got 0"),
        (NeuralSplineFlow, {"features": 3, "linear": "qr"}, "linear: expected 'lu', 'permutation' or None, got 'qr'"),
        (NeuralSplineFlow, {"features": 3, "num_bins": 1000}, r"min_bin_width: expected a number in \[0, 1 / 1000\)"),
        (NeuralSplineFlow, {"features": 3, "tail_bound": 0.0}, "tail_bound: expected a positive number"),
        (RealNVP, {"image_size": 8, "dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        (RealNVP, {}, "features, image_size: expected one of them"),
        (RealNVP, {"features": 3, "image_size": 8}, "features, image_size: expected one of them"),
        (RealNVP, {"features": 3, "num_classes": 2, "context_features": 2}, "context_features: expected None"),
        (RealNVP, {"features": 3, "scale_map": "cube"}, "scale_map: expected"),
        (RealNVP, {"image_size": 6, "scales": 3}, "image_size: expected multiples of 4, to be halved 2 times, got 6"),
        (RealNVP, {"image_size": 8, "alpha": 0.5}, r"alpha: expected a number in \(0, 1/2\), got 0.5"),
        (RealNVP, {"image_size": 8, "channels": 0}, "channels: expected a positive int, got 0"),
        (Glow, {"image_size": 0}, "image_size: expected an int or a pair of ints, each at least 1, got 0"),
        (Glow, {"image_size": 12}, "image_size: expected multiples of 8, to be halved 3 times, got 12"),
        (Glow, {"image_channels": 0}, "image_channels: expected a positive int, got 0"),
        (Glow, {"levels": 257}, "levels: expected an int from 2 to 256, got 257"),
        (Glow, {"steps": 0}, "steps: expected a positive int, got 0"),
        (Glow, {"coupling": "cubic"}, "coupling: expected one of affine, additive, rational_quadratic, got 'cubic'"),
        (Glow, {"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        (Glow, {"num_bins": 0}, "num_bins: expected a positive int, got 0"),
        (Glow, {"num_classes": 0}, "num_classes: expected a positive int, got 0"),
    ],
)
def test_refuses_arguments(kind, config, match):
    with pytest.raises(ValueError, match=match):
        kind(**config)
