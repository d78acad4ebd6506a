"""Every autoregressive model: names, configurations, copies, sizes, and what it refuses."""

import copy
import io
import json

import pytest
import torch

from fastgen.models import MODELS, GatedPixelCNN, PixelCNN, PixelCNNPP


def test_names():
    names = {"pixelcnn": PixelCNN, "gated-pixelcnn": GatedPixelCNN, "pixelcnnpp": PixelCNNPP}
    assert {name: MODELS[name] for name in names} == names


def test_config_and_state_dict_make_the_same_model(model, images, labels):
    config = json.loads(json.dumps(model.config))
    other = type(model).from_config(config).double().eval()
    assert other.config == model.config
    assert not torch.equal(other.log_prob(images, labels), model.log_prob(images, labels))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.log_prob(images, labels), model.log_prob(images, labels))


def test_state_dict_holds_parameters_alone(model):
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_copies_are_independent(model, images, labels):
    other = copy.deepcopy(model)
    before = model.log_prob(images, labels)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert torch.equal(model.log_prob(images, labels), before)


def test_the_models_of_the_speed_targets():
    with torch.device("meta"):
        gated = GatedPixelCNN(layers=10, channels=64, image_size=28, levels=256)
        plusplus = PixelCNNPP(channels=160, image_size=32)
    assert gated.shape == (1, 28, 28) and len(gated.layers) == 10
    assert plusplus.shape == (3, 32, 32) and plusplus.head.out_channels == 100


COMMON = [
    ({"image_size": 0}, "image_size: expected an int or a pair of ints, each at least 1, got 0"),
    ({"image_size": (8, 8, 1)}, "image_size: expected an int or a pair of ints"),
    ({"image_size": 7.5}, "image_size: expected an int or a pair of ints, each at least 1, got 7.5"),
    ({"image_size": "28"}, "image_size: expected an int or a pair of ints"),
    ({"image_channels": 2}, "image_channels: expected 1 or 3, got 2"),
    ({"levels": 1}, "levels: expected an int from 2 to 256, got 1"),
    ({"levels": 257}, "levels: expected an int from 2 to 256, got 257"),
    ({"channels": 0}, "channels: expected a positive int, got 0"),
    ({"channels": 8.0}, "channels: expected a positive int, got 8.0"),
    ({"dropout": 1.0}, "dropout: expected a probability"),
    ({"dropout": "0.5"}, "dropout: expected a probability"),
]


@pytest.mark.parametrize(
    ("kind", "config", "match"),
    [(kind, *case) for kind in (PixelCNN, GatedPixelCNN, PixelCNNPP) for case in COMMON]
    + [
        (PixelCNN, {"kernel_size": 4}, "kernel_size: expected a positive odd int.*got 4"),
        (PixelCNN, {"first_kernel_size": 6}, "kernel_size: .*got 6"),
        (PixelCNN, {"layers": 0}, "layers: expected a positive int, got 0"),
        (PixelCNN, {"channels": 7}, "channels: expected a multiple of 2, got 7"),
        (PixelCNN, {"image_channels": 3, "channels": 8}, "channels: expected a multiple of 6, got 8"),
        (
            PixelCNN,
            {"image_channels": 3, "channels": 12, "head_channels": 8},
            "channels: expected a multiple of.*got 8",
        ),
        (GatedPixelCNN, {"kernel_size": 2}, "kernel_size: expected a positive odd int.*got 2"),
        (GatedPixelCNN, {"num_classes": 0}, "num_classes: expected a positive int, got 0"),
        (GatedPixelCNN, {"image_channels": 3, "channels": 8}, "channels: expected a multiple of"),
        (PixelCNNPP, {"image_size": 30}, r"image_size: expected multiples of 2 \*\* \(scales - 1\) = 4, got 30"),
        (PixelCNNPP, {"num_mixtures": 0}, "num_mixtures: expected a positive int, got 0"),
        (PixelCNNPP, {"resnets": 0}, "resnets: expected a positive int, got 0"),
        (PixelCNNPP, {"scales": 0}, "scales: expected a positive int, got 0"),
    ],
)
def test_refuses_arguments(kind, config, match):
    with pytest.raises(ValueError, match=match):
        kind(**config)


@pytest.mark.parametrize("method", ["log_prob", "loss", "bits_per_dim"])
def test_refuses_images(model, images, labels, method):
    score = getattr(model, method)
    channels, height, width = model.shape
    expected = rf"images: expected \[batch, {channels}, {height}, {width}\], at least one image, got "
    with pytest.raises(TypeError, match=r"images: expected an integer dtype, got torch.float32"):
        score(images.float(), labels)
    with pytest.raises(TypeError, match="images: expected an integer tensor, got ndarray"):
        score(images.numpy(), labels)
    for wrong in (images[:0], images[0], images[..., :-1], images.repeat(1, 2, 1, 1)):
        with pytest.raises(ValueError, match=expected):
            score(wrong, labels)
    for level in (-1, model.levels):
        wrong = images.clone()
        wrong[0, 0, 1, 1] = level
        with pytest.raises(ValueError, match=f"images: expected levels 0 to {model.levels - 1}, got .*{level}"):
            score(wrong, labels)
    with pytest.raises(ValueError, match="images: expected a tensor on cpu, where the model is, got meta"):
        score(images.to("meta"), labels)


def test_refuses_levels_for_the_network(model, images, labels):
    with pytest.raises(TypeError, match="x: expected a floating dtype, levels go through normalize first"):
        model(images, labels)
    with pytest.raises(ValueError, match=r"x: expected \[batch"):
        model(model.normalize(images)[:, :, 1:], labels)


def test_refuses_labels(model, images, labels):
    if labels is None:
        with pytest.raises(ValueError, match="labels: this model is unconditional"):
            model.log_prob(images, torch.zeros(3, dtype=torch.int64))
        return
    with pytest.raises(ValueError, match=f"labels: this model has {model.num_classes} classes"):
        model.log_prob(images)
    with pytest.raises(TypeError, match=r"labels: expected an integer dtype, got torch.float32"):
        model.log_prob(images, labels.float())
    for wrong in (labels[:2], labels[:, None]):
        with pytest.raises(ValueError, match=r"labels: expected \[3\], one class per image"):
            model.log_prob(images, wrong)
    for wrong in (-1, model.num_classes):
        with pytest.raises(ValueError, match=f"labels: expected classes 0 to {model.num_classes - 1}, got {wrong} to"):
            model.log_prob(images, torch.full((3,), wrong))
    with pytest.raises(ValueError, match="labels: expected a tensor on cpu"):
        model.log_prob(images, labels.to("meta"))
