"""What a layer gives belongs to the caller, is of use outside of the mode it was made in, and can be traced."""

import io
import warnings

import pytest
import torch

from tests.nn.every_layer import LAYERS, numbers
from tests.ops.test_outputs import MODES, write_to_each

# Halves of what it is given, as torch.chunk.
GIVES_PARTS_OF_ITS_INPUT = {"Split"}


def directions(name, layer):
    return [layer] + ([layer.inverse] if hasattr(layer, "inverse") and name != "Split" else [])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in GIVES_PARTS_OF_ITS_INPUT])
def test_outputs_can_be_written_to(name, training, mode):
    """Of one example too, whose log-determinant a layer might hand out as it keeps it."""
    layer, inputs = LAYERS[name].make().train(training), LAYERS[name].inputs()
    others = [*layer.parameters(), *layer.buffers(), *inputs]
    for run in directions(name, layer):
        for batch in (len(inputs[0]), 1):
            with MODES[mode]():
                write_to_each(tuple(numbers(run(*(x[:batch] for x in inputs)))), others)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_after_a_call_in_inference_mode(name, frozen):
    """Nothing that was made there, and kept, comes into a graph."""
    layer, inputs = LAYERS[name].make().eval().requires_grad_(not frozen), LAYERS[name].inputs()
    for run in directions(name, layer):
        with torch.inference_mode():
            run(*inputs)
        outputs = numbers(run(*(x.clone().requires_grad_(x.is_floating_point()) for x in inputs)))
        for output in (o for o in outputs if o.is_floating_point()):
            weight = torch.ones_like(output, requires_grad=True)
            (output * weight).sum().backward(retain_graph=True)
            assert torch.equal(weight.grad, output.detach())


@pytest.mark.parametrize("record", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_trace_gives_the_same_of_another_batch(name, record):
    layer, inputs = LAYERS[name].make().eval(), LAYERS[name].inputs()
    with torch.set_grad_enabled(record), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(layer, inputs), file := io.BytesIO())
    traced = torch.jit.load(io.BytesIO(file.getvalue()))
    for batch in (inputs, tuple(torch.cat((x, x, x)) for x in inputs)):
        for value, usual in zip(numbers(traced(*batch)), numbers(layer(*batch)), strict=True):
            torch.testing.assert_close(value, usual)
