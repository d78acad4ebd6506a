"""NumPy's numbers where Python's are taken: by every constructor, and by `sample`."""

import inspect
import json

import numpy as np
import pytest
import torch

from tests.models import every_model
from tests.nn.every_layer import LAYERS, Layer

CONSTRUCTORS = {
    **{name: layer for name, layer in LAYERS.items() if isinstance(layer.kind, type)},
    **{name: Layer(kind, arguments) for name, (kind, arguments) in every_model.CONFIGURED.items()},
    "unet": Layer(every_model.MODELS["unet"].__globals__["models"].UNet, every_model.UNET),
}


def given(layer):
    """Every argument of a constructor, defaults too, by its name."""
    parameters = inspect.signature(layer.kind).parameters.values()
    named = {p.name: p.default for p in parameters if p.default is not p.empty} | layer.arguments
    return {name: value for name, value in named.items() if value is not inspect.Parameter.empty}


def as_numpy(value):
    if type(value) in (int, float):
        return {int: np.int64, float: np.float64}[type(value)](value)
    return type(value)(map(as_numpy, value)) if type(value) in (tuple, list) else value


def numpy_numbers_in(module):
    return [
        (name, part)
        for child in module.modules()
        for name, value in vars(child).items()
        for part in (value if isinstance(value, tuple | list) else [value])
        if isinstance(part, np.generic)
    ]


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors_keep_pythons_numbers(name):
    layer = CONSTRUCTORS[name]
    torch.manual_seed(0)
    usual = layer.make()
    torch.manual_seed(0)
    arguments = {name: value for name, value in given(layer).items() if name not in UNTOUCHED}
    module = layer.make(**{name: as_numpy(value) for name, value in arguments.items()})
    assert numpy_numbers_in(module) == []
    torch.testing.assert_close(module.state_dict(), usual.state_dict(), rtol=0, atol=0)
    if hasattr(usual, "config"):
        assert json.dumps(module.config) == json.dumps(usual.config)


# Taken as any numbers, of a tensor.
UNTOUCHED = {"permutation", "mask"}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors_refuse_truth_for_a_whole_number(name):
    layer = CONSTRUCTORS[name]
    for argument, value in given(layer).items():
        if type(value) is int:
            for truth in (True, np.True_):
                with pytest.raises(ValueError, match=f"{argument}: expected a number, got "):
                    layer.make(**{argument: truth})


@pytest.mark.parametrize("name", [name for name in every_model.MODELS if name != "unet"])
def test_samples_of_a_numpy_number(name):
    model, _ = every_model.known(name)
    _, labels = every_model.data_for(model, 2)
    for n in (np.int64(2), np.uint8(2), np.array([2])[0]):
        torch.manual_seed(1)
        found = every_model.draw(model, n, labels)
        torch.manual_seed(1)
        assert torch.equal(found, every_model.draw(model, 2, labels))
    if labels is not None and not labels.is_floating_point() and not isinstance(model, every_model.models.Flow):
        assert len(every_model.draw(model, 2, np.int64(1))) == 2
    for wrong in (True, np.True_, 2.0, np.float64(2.0)):
        with pytest.raises((ValueError, TypeError), match="n: expected a positive int"):
            every_model.draw(model, wrong, labels)
