"""The executor of a `Program` in plain Python: the specification of the C++ one, and the fallback where there is none.

It runs events in the order of the program and keeps nothing but the rings, which start full of NaN: a schedule that
reads a position too early, or after it was overwritten, shows in the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.sampling.draw import Draw
from fastgen.sampling.program import Node, Program, View

__all__ = ["FUNCTIONS", "ReferenceSession", "check_draw", "check_noise", "check_partial_image", "check_run"]

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "clamp": torch.clamp,
    "pow": torch.pow,
    "concat_elu": lambda x: F.elu(torch.cat([x, -x], -1)),
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "gate": lambda a, b: torch.tanh(a) * torch.sigmoid(b),
    "sigmoid_gate": lambda a, b: a * torch.sigmoid(b),
}


class ReferenceSession:
    """Runs `program` for `batch` images at a time.

    Args:
        program: what `schedule` made.
        batch: images drawn together.
        dtype: float64 or float32, of everything but the draw.
        draw: how `run` draws a step; not needed for `teacher_force`, `step` and `feed`.
    """

    def __init__(self, program: Program, batch: int, dtype: torch.dtype = torch.float64, draw: Draw | None = None):
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
        self.program, self.batch, self.dtype, self.draw = program, batch, dtype, draw
        # Weights, biases and constants in the dtype of the session, converted once.
        self._weights = [[tap.weight.to(dtype) for tap in node.taps] for node in program.nodes]
        self._vectors = [
            [None if v is None else v.to(dtype) for v in (node.bias, node.scale, node.shift)] for node in program.nodes
        ]
        self._constants = {
            i: node.data for i, node in enumerate(program.nodes) if node.op == "constant" and node.recipe is None
        }
        self.reset()

    def reset(self) -> None:
        """Forgets the image: the next step is step 0."""
        self._step = 0
        self._event = 0
        self._rings = [
            torch.full((rows, cols, self.batch, node.channels), float("nan"), dtype=self.dtype)
            for node, (rows, cols) in zip(self.program.nodes, self.program.rings, strict=True)
        ]
        self.set_constants(self._constants)

    def set_constants(self, constants: Mapping[int, Tensor]) -> None:
        """Replaces the data of constant nodes, {node: [1 or batch, rows, cols, channels]}: other labels."""
        for index, data in constants.items():
            node, ring = self.program.nodes[index], self.program.rings[index]
            fits = data.shape[1:] == (*ring, node.channels) and data.shape[0] in (1, self.batch)
            if node.op != "constant" or not fits:
                expected = f"[1 or {self.batch}, {ring[0]}, {ring[1]}, {node.channels}]"
                raise ValueError(
                    f"constants: node {index} ({node.op}) expects {expected}, got shape {tuple(data.shape)}"
                )
            self._constants[index] = data
            self._rings[index].copy_(data.permute(1, 2, 0, 3).expand_as(self._rings[index]))

    def step(self, step: int) -> Tensor:
        """The network's output [batch, parameters] at the pixel (and colour) of `step`; steps come in order."""
        if step != self._step or step >= self.program.steps:
            raise ValueError(f"step: expected {self._step} of {self.program.steps}, got {step}")
        events = self.program.events
        while self._event < len(events) and events[self._event, 0] <= step:
            _, index, row, col_begin, col_end = events[self._event].tolist()
            self._run_event(index, row, torch.arange(col_begin, col_end))
            self._event += 1
        row, col, color = self.program.position(step)
        return self._read(self.program.outputs[color], row, torch.tensor([col]))[0]

    def feed(self, step: int, values: Tensor) -> None:
        """Makes `values` [batch, channels of a step] known: the numbers drawn at `step`, as the network sees them."""
        if step != self._step:
            raise ValueError(f"step: expected {self._step}, got {step}")
        row, col, color = self.program.position(step)
        node = self.program.inputs[color]
        expected = (self.batch, self.program.nodes[node].channels)
        if values.shape != expected:
            raise ValueError(f"values: expected {list(expected)}, got shape {tuple(values.shape)}")
        self._rings[node][row, col] = values.to(self.dtype)
        self._step += 1

    def run(self, noise: Tensor, given: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Draws the images: levels int64 [batch, channels, height, width].

        Args:
            noise: float64 [steps, batch, draw.uniforms] in [0, 1).
            given, mask: a partial image: levels int64 [batch, channels, height, width], and bool [batch, 1 or
                channels, height, width] that is true where the level is known and not drawn. Noise of known pixels is
                not used.
        """
        program, draw = self.program, self.draw
        if draw is None:
            raise ValueError("draw: this session was made without one; use step and feed")
        check_run(program, self.batch, draw, noise, given, mask)
        shape = (self.batch, program.channels, program.height, program.width)
        levels = torch.zeros(shape, dtype=torch.int64) if given is None else given.clone()
        known = None if mask is None else mask.expand(shape)
        self.reset()
        for step in range(program.steps):
            row, col, color = program.position(step)
            channels = slice(None) if program.colors == 1 else slice(color, color + 1)
            drawn = draw(self.step(step), noise[step])
            if known is not None:
                drawn = torch.where(known[:, channels, row, col], levels[:, channels, row, col], drawn)
            levels[:, channels, row, col] = drawn
            self.feed(step, draw.table[drawn])
        return levels

    def teacher_force(self, x: Tensor) -> Tensor:
        """The network's output for the known image `x` [batch, channels, height, width], as the network sees it.

        Returns [batch, parameters, height, width], or [batch, parameters, colors, height, width] where colours are
        ordered.
        """
        program = self.program
        expected = (self.batch, program.channels, program.height, program.width)
        if x.shape != expected:
            raise ValueError(f"x: expected {list(expected)}, got shape {tuple(x.shape)}")
        self.reset()
        outputs = []
        for step in range(program.steps):
            row, col, color = program.position(step)
            outputs.append(self.step(step))
            self.feed(step, x[:, :, row, col] if program.colors == 1 else x[:, color : color + 1, row, col])
        grid = torch.stack(outputs, -1).unflatten(-1, (program.height, program.width, program.colors))
        return grid[..., 0] if program.colors == 1 else grid.permute(0, 1, 4, 2, 3)

    def explain(self) -> list[dict[str, object]]:
        """One row per node: grain, ring, weights and multiply-adds of one image."""
        return self.program.explain()

    @property
    def bytes(self) -> int:
        """Bytes of all rings."""
        return sum(ring.numel() * ring.element_size() for ring in self._rings)

    def _read(self, view: View, row: int, cols: Tensor) -> Tensor:
        """[columns, batch, channels] of one row of a view, zero outside its rectangle."""
        row_begin, row_end, col_begin, col_end = view.rect
        result = torch.zeros(len(cols), self.batch, view.channels, dtype=self.dtype)
        inside = (cols >= col_begin) & (cols < col_end)
        if row_begin <= row < row_end:
            ring = self._rings[view.node]
            source = ring[(row + view.row) % ring.shape[0], (cols[inside] + view.col) % ring.shape[1]]
            result[inside] = source[:, :, view.channel : view.channel + view.channels]
        return result

    def _run_event(self, index: int, row: int, cols: Tensor) -> None:
        node = self.program.nodes[index]
        ring = self._rings[index]
        if node.op == "conv":
            value = self._convolve(index, node, row, cols)
        else:
            operands = [self._read(view, row, cols) for view in node.operands]
            if node.op == "concat":
                value = torch.cat(operands, -1)
            elif node.op == "norm":
                _, scale, shift = self._vectors[index]
                value = F.layer_norm(operands[0], (node.channels,), scale, shift, node.eps)
            elif node.function == "affine":
                _, scale, shift = self._vectors[index]
                value = operands[0] * scale + shift
            else:
                value = FUNCTIONS[node.function](*operands, *node.scalars)
        ring[row % ring.shape[0], cols % ring.shape[1]] = value

    def _convolve(self, index: int, node: Node, row: int, cols: Tensor) -> Tensor:
        bias = self._vectors[index][0]
        value = torch.zeros(len(cols), self.batch, node.channels, dtype=self.dtype)
        if bias is not None:
            value += bias
        for view in node.operands[node.num_tap_operands :]:
            value += self._read(view, row, cols)
        for tap, weight in zip(node.taps, self._weights[index], strict=True):
            source_row, row_rest = divmod(row * node.stride[0] + tap.row, node.inverse_stride[0])
            numerator = cols * node.stride[1] + tap.col
            divides = numerator % node.inverse_stride[1] == 0
            if row_rest or not divides.any():
                continue
            source_cols = numerator[divides] // node.inverse_stride[1]
            value[divides] += self._read(node.operands[tap.operand], source_row, source_cols) @ weight
        return value


def check_draw(program: Program, draw: Draw) -> None:
    """Raises ValueError where a draw does not fit what the network says at a step."""
    step_channels = program.channels if program.colors == 1 else 1
    if draw.channels != step_channels:
        raise ValueError(f"draw: the program draws {step_channels} values a step, the draw makes {draw.channels}")
    parameters = program.outputs[0].channels
    if parameters != draw.num_parameters:
        raise ValueError(f"draw: expects {draw.num_parameters} parameters a step, the network makes {parameters}")


def check_run(
    program: Program, batch: int, draw: Draw, noise: Tensor, given: Tensor | None, mask: Tensor | None
) -> None:
    """Raises ValueError where the arguments of `run` do not fit the program; shared by all executors."""
    check_draw(program, draw)
    check_noise(noise, (program.steps, batch, draw.uniforms))
    check_partial_image(given, mask, (batch, program.channels, program.height, program.width), draw, program.colors)


def check_noise(noise: Tensor, expected: tuple[int, int, int]) -> None:
    """Raises ValueError where noise is not float64 [steps, batch, uniforms] in [0, 1)."""
    if noise.dtype != torch.float64 or noise.shape != expected:
        raise ValueError(f"noise: expected float64 {list(expected)}, got {noise.dtype} {tuple(noise.shape)}")
    if not ((noise >= 0) & (noise < 1)).all():
        raise ValueError("noise: expected numbers in [0, 1)")


def check_partial_image(
    given: Tensor | None, mask: Tensor | None, shape: tuple[int, int, int, int], draw: Draw, colors: int
) -> None:
    """Raises ValueError where `given` and `mask` do not describe a partial image of levels."""
    if (given is None) != (mask is None):
        raise ValueError("given, mask: expected both or neither")
    if given is None:
        return
    if given.dtype != torch.int64 or given.shape != shape:
        raise ValueError(f"given: expected int64 {list(shape)}, got {given.dtype} {tuple(given.shape)}")
    batch, channels, height, width = shape
    if mask.dtype != torch.bool or mask.shape not in (shape, (batch, 1, height, width)):
        raise ValueError(
            f"mask: expected bool [{batch}, 1 or {channels}, {height}, {width}], got {mask.dtype} {tuple(mask.shape)}"
        )
    if colors == 1 and not (mask == mask[:, :1]).all():
        raise ValueError("mask: this network draws whole pixels, all channels of a pixel must be known or none")
    known = given[mask.expand(shape)]
    if known.numel() and (known.min() < 0 or known.max() >= len(draw.table)):
        raise ValueError(f"given: expected levels 0..{len(draw.table) - 1} where mask is true")
