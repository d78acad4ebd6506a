"""Models as whole objects: copied, pickled, saved and loaded in another process, made on the meta device."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastgen.nn
from fastgen import models
from tests.models import every_model
from tests.nn.every_layer import LAYERS, numbers


def test_the_cases_are_all_of_them():
    made = {type(make()) for make in every_model.MODELS.values()}
    bases = {models.AdversarialModel, models.AutoregressiveModel, models.Diffusion}
    public = [getattr(models, name) for name in models.__all__]
    named = {value for value in public if isinstance(value, type) and issubclass(value, torch.nn.Module)}
    assert named - bases <= made
    layers = {value for value in vars(fastgen.nn).values() if isinstance(value, type)}
    assert layers <= {type(case.make()) for case in LAYERS.values()}


@pytest.mark.parametrize("name", every_model.MODELS)
def test_copies_say_the_same(name):
    fresh, (used, expected) = every_model.make(name), every_model.known(name)
    for other in (pickled(fresh), copy.deepcopy(used), pickled(used)):
        torch.testing.assert_close(every_model.says(other), expected, rtol=0, atol=0)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def test_saved_whole_and_loaded_in_another_process(tmp_path):
    torch.save({name: every_model.known(name) for name in every_model.MODELS}, tmp_path / "models.pt")
    program = (
        f"import sys, torch; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        f"saved = torch.load({str(tmp_path / 'models.pt')!r}, weights_only=False)\n"
        "from tests.models import every_model\n"
        "for name, (model, expected) in saved.items():\n"
        "    torch.testing.assert_close(every_model.says(model), expected, rtol=1e-5, atol=1e-5, msg=name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def on_meta_and_back(make, state, assign):
    """Made without memory, given memory of any content, or that of the state dict, and loaded."""
    with torch.device("meta"):
        module = make()
    if not assign:
        module.to_empty(device="cpu")
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.fill_(torch.nan if tensor.is_floating_point() else 1)
    module.load_state_dict(copy.deepcopy(state), assign=assign)
    return module.eval()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", every_model.MODELS)
def test_models_come_back_from_the_meta_device(name, assign):
    model, expected = every_model.known(name)
    other = on_meta_and_back(every_model.MODELS[name], model.state_dict(), assign)
    torch.testing.assert_close(every_model.says(other), expected, rtol=0, atol=0)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_come_back_from_the_meta_device(name, assign):
    layer, inputs = LAYERS[name].make().eval(), LAYERS[name].inputs()
    other = on_meta_and_back(LAYERS[name].make, layer.state_dict(), assign)
    assert_same(other(*inputs), layer(*inputs))


@pytest.mark.parametrize("name", LAYERS)
def test_copies_of_layers_say_the_same(name):
    layer, inputs = LAYERS[name].make(), LAYERS[name].inputs()
    for _ in range(2):
        # Fresh, and after training and evaluation.
        for other in (copy.deepcopy(layer), pickled(layer)):
            torch.manual_seed(1)
            found = other(*inputs)
            torch.manual_seed(1)
            assert_same(found, copy.deepcopy(layer)(*inputs))
        layer(*inputs)
        with torch.no_grad():
            layer.eval()(*inputs)


def assert_same(found, expected):
    torch.testing.assert_close(numbers(found), numbers(expected), rtol=0, atol=0)
