"""Records what a network does to an image, as a graph of nodes.

The network runs once, on real tensors, with a dispatch mode that sees every ATen operator. What does not depend on the
image is simply executed, so masks, weight normalisation and positional maps need no convention: only their result
is seen. What does depend on it goes through a rule (`rules`), which makes nodes, or is refused by name. What
depends on the condition (labels) but not on the image is put on a tape, to be computed again for other labels.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.sampling.program import Builder, Graph, UnsupportedModelError, View
from fastgen.sampling.trace.recorder import Condition, Recorder, Tape, condition_tensors, example_condition
from fastgen.sampling.trace.value import BATCH, Value, channel_grid, nchw, order_channels, reshape

# The seed of the images that a network is traced and verified with.
SEED = 0


@dataclass
class Traced:
    """A traced network: its graph, the tape of its condition, and how to run it."""

    graph: Graph
    tape: Tape
    forward: Callable
    model: Any
    dtype: torch.dtype
    device: torch.device

    def run(self, condition: Condition, table: Tensor) -> tuple[Tensor, Tensor]:
        """A random image of entries of `table`, and what the network makes of it.

        Returns:
            The image [2, channels, height, width], and the output in float64, [2, K, height, width] or, where colours
            are ordered, [2, K, colors, height, width].
        """
        graph = self.graph
        size = (BATCH, graph.channels, graph.height, graph.width)
        choice = torch.randint(len(table), size, generator=torch.Generator().manual_seed(SEED))
        x = table[choice].to(self.device, self.dtype)
        with _evaluating(self.model, []), _plain_torch(self.device):
            output = self.forward(x, *condition_tensors(condition)).to("cpu", torch.float64)
        if output.dim() == 4:
            output = output.unflatten(1, (graph.colors, -1)).transpose(1, 2)
        return x, output.squeeze(2) if graph.colors == 1 else output


@contextlib.contextmanager
def _evaluating(model: Any, stack: list[str]) -> Iterator[None]:
    """Puts a model into eval mode, and keeps in `stack` the names of the modules that run in this thread."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    training = [module for module in modules.values() if module.training]
    thread = threading.get_ident()
    hooks = []

    def enter(name: str) -> None:
        if threading.get_ident() == thread:
            stack.append(name)

    def leave() -> None:
        if threading.get_ident() == thread:
            stack.pop()

    try:
        for module in training:
            module.training = False
        for name, module in modules.items():
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            hooks.append(module.register_forward_hook(lambda *_: leave()))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True


def trace(
    model: Callable,
    shape: Sequence[int],
    *,
    colors: int = 1,
    condition: Condition = None,
    forward: Callable | None = None,
) -> Traced:
    """Runs `forward(x)` or `forward(x, *condition)` on two random images and records it.

    Args:
        model: the module, put into eval mode meanwhile.
        shape: (channels, height, width) of an image.
        colors: steps per pixel: 1, or the number of channels where the network orders them.
        condition: example labels or other conditioning, one row per image.
        forward: what to call in place of `model`; its operators are still named after the modules of `model`.

    Returns:
        The graph. Its output is the network's: [B, K, H, W], and with colours [B, K, colors, H, W] or [B, colors * K,
        H, W].

    Raises:
        UnsupportedModelError: an operator has no one-pixel rule, or works in place on memory that is read later.
        ValueError, TypeError: wrong arguments, or an output that is not a tensor of one of these shapes.
    """
    channels, height, width = _check_shape(shape, colors)
    # A compiled module is traced as it was written.
    model = getattr(model, "_orig_mod", model)
    device, dtype = _device_and_dtype(model)
    condition = example_condition(condition)
    stack: list[str] = []
    builder = Builder(lambda: stack[-1] if stack else "")
    # A generator of its own, so that building a sampler does not change the numbers of the caller.
    image = torch.randn(BATCH, channels, height, width, generator=torch.Generator().manual_seed(SEED)).to(device, dtype)
    recorder = Recorder(builder, condition_tensors(condition), dtype)
    recorder.track(image, Value.image(builder.emit("input", channels, height, width)))
    with _evaluating(model, stack), _plain_torch(device), recorder:
        output = (forward or model)(image, *condition_tensors(condition))
    if not isinstance(output, Tensor):
        raise TypeError(f"forward: expected one tensor, got {type(output).__name__}; choose it with forward=")
    value = recorder.value(output)
    if value is None:
        raise UnsupportedModelError("", "the output does not depend on the image")
    outputs = _outputs(builder, value, colors, (height, width))
    graph = Graph(
        height=height, width=width, colors=colors, channels=channels, nodes=builder.nodes, outputs=outputs, inputs=[0]
    )
    return Traced(graph, recorder.tape, forward or model, model, dtype, device)


def _outputs(builder: Builder, value: Value, colors: int, grid: tuple[int, int]) -> list[View]:
    """The view of the output that the draw of each colour reads."""
    shape = value.shape
    if shape[-2:] != grid or len(shape) not in (4, 5) or (len(shape) == 5 and shape[2] != colors):
        expected = f"[B, K, {grid[0]}, {grid[1]}]" if colors == 1 else f"[B, K, {colors}, {grid[0]}, {grid[1]}]"
        raise ValueError(f"forward: expected an output {expected}, got {list(shape)}")
    if len(shape) == 4 and shape[1] % colors:
        raise ValueError(f"forward: {shape[1]} output channels do not divide by {colors} colours")
    if len(shape) == 4:
        value = reshape(builder, value, [shape[0], colors, shape[1] // colors, *grid])
    else:
        value = Value(value.view, (value.dims[0], value.dims[2], value.dims[1], *value.dims[3:]))
    value = order_channels(builder, value)
    per_color = channel_grid(value).reshape(colors, -1)
    flat = reshape(builder, value, [shape[0], per_color.size, *grid])
    view = nchw(builder, flat, "the output")
    return [builder.select_channels(view, index) for index in per_color]


def _check_shape(shape: Sequence[int], colors: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape: expected (channels, height, width), got {tuple(shape)}")
    if colors not in (1, shape[0]):
        raise ValueError(f"colors: expected 1 or the {shape[0]} channels of the image, got {colors}")
    return tuple(shape)


def _device_and_dtype(model: Callable) -> tuple[torch.device, torch.dtype]:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    tensor = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"model: expected float32 or float64 parameters, got {tensor.dtype}")
    return tensor.device, tensor.dtype


@contextlib.contextmanager
def _plain_torch(device: torch.device) -> Iterator[None]:
    """No gradients, no mixed precision, and the library's own operators as the plain PyTorch that has rules."""
    from fastgen.ops import use_backend

    precision = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.no_grad(), precision, use_backend("reference"):
        yield
