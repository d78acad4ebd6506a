"""Graphs that leave PyTorch: `torch.export` with a batch of any size, ONNX; and `torch.func.vmap`, of models."""

import io

import pytest
import torch
from torch import nn

from fastgen import models
from fastgen.nn import InvertibleConv1x1, LULinear
from tests.models import every_model

# What is a function of an example, by the kind of model.
FUNCTIONS = {
    models.AutoregressiveModel: ("log_prob", "forward"),
    models.Flow: ("log_prob", "decode"),
    models.AdversarialModel: ("decode", "discriminate"),
    models.UNet: ("forward",),
    models.VAE: ("encode", "decode"),
    models.Autoencoder: ("encode", "decode"),
    models.DenoisingAutoencoder: ("encode", "decode"),
    models.VQVAE: ("log_prob_bound", "decode"),
}
# Of each class one.
NAMES = {type(make()): (name, make()) for name, make in every_model.MODELS.items()}
CASES = [
    (name, function)
    for name, model in NAMES.values()
    for kind, functions in FUNCTIONS.items()
    if isinstance(model, kind)
    for function in functions
    # Its discriminator looks at the deviation within groups of the batch.
    if not (name.startswith("stylegan2") and function == "discriminate")
]


class Function(nn.Module):
    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *args):
        return getattr(self.model, self.name)(*args)


def arguments(model, function, n):
    x, labels = every_model.data_for(model, n)
    if function == "decode":
        x = torch.randn(n, *model.latent_shape).to(model.dtype)
    elif function == "discriminate":
        x = torch.randn(n, *model.shape)
    elif function == "forward" and not isinstance(model, models.UNet):
        x = model.normalize(x)
    elif isinstance(model, models.Flow) and model.levels is not None:
        x = x + 0.5
    return (x,) if labels is None else (x, labels)


@pytest.mark.parametrize(("name", "function"), CASES)
def test_exports_with_a_batch_of_any_size(name, function):
    model = every_model.make(name)
    example = arguments(model, function, 4)
    sizes = tuple({0: torch.export.Dim("batch", min=2, max=100)} for _ in example)
    program = torch.export.export(Function(model, function), example, dynamic_shapes=(sizes,)).module()
    for n in (2, 7):
        given = arguments(model, function, n)
        torch.testing.assert_close(program(*given), getattr(model, function)(*given), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "function"), CASES)
def test_maps_over_examples(name, function):
    model = every_model.make(name)
    given = arguments(model, function, 3)

    def of_one(*example):
        return getattr(model, function)(*(part[None] for part in example))[0]

    expected = getattr(model, function)(*given)
    torch.testing.assert_close(torch.func.vmap(of_one)(*given), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["pixelcnn", "gated", "pixelcnnpp-rgb", "nsf", "realnvp-classes", "glow"])
def test_gradients_of_each_example(name):
    model = every_model.make(name)
    given = arguments(model, "log_prob", 3)
    parameters = {f"model.{name}": parameter for name, parameter in model.named_parameters()}

    def of_one(parameters, *example):
        parts = tuple(part[None] for part in example)
        return torch.func.functional_call(Function(model, "log_prob"), parameters, parts)[0]

    each = torch.func.vmap(torch.func.grad(of_one), (None, *(0 for _ in given)))(parameters, *given)
    model.log_prob(*given).sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-3, atol=1e-3)


class Inverse(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, z):
        return self.module.inverse(z)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: models.NeuralSplineFlow(5, transforms=2, hidden_features=8, linear="lu"), (5,)),
        (lambda: InvertibleConv1x1(5), (5, 2, 3)),
        (lambda: LULinear(1), (1,)),
    ],
)
def test_inverses_of_matrices_go_to_onnx(make, shape):
    module = make().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    z = torch.randn(4, *shape)
    program = torch.export.export(Inverse(module), (z,))
    assert not any("solve" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(z), module.inverse(z)[0], rtol=1e-4, atol=1e-4)
    try:
        torch.onnx.export(Inverse(module), (z,), io.BytesIO(), dynamo=False, opset_version=18)
    except torch.onnx.OnnxExporterError as error:
        # Every operator has been translated when the file is to be written.
        assert "Module onnx is not installed" in str(error)
