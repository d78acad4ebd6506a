"""The executor of a `Program` in C++: the methods and the draws of `ReferenceSession`, hundreds of times faster.

A session packs the weights once and owns the rings. One call draws whole images without coming back to Python. The
batch is split among torch's threads; where there are fewer images than threads, they share an image's convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastgen.ops.extensions import cpu_capability, host_module
from fastgen.sampling.draw import Categorical, Draw, LogisticMixture
from fastgen.sampling.program import Node, Program, View
from fastgen.sampling.reference import check_run

__all__ = ["Session", "why_unavailable"]

# Beyond this many threads the barriers of one image cost more than sharing its convolutions saves.
_MAX_TEAM = 4


def why_unavailable() -> str | None:
    """Why sessions in C++ cannot run here, or None where they can."""
    try:
        host_module()
    except ImportError as error:
        return f"fastgen._host does not load: {error}"
    isa = cpu_capability().lower()
    if isa not in host_module().report()["isas"]:
        return f"no kernels for this CPU ({isa})"
    return None


class Session:
    """Runs `program` for `batch` images at a time.

    Args:
        program: what `schedule` made.
        batch: images drawn together.
        dtype: float64 or float32, of everything but the draw.
        draw: how `run` draws a step; not needed for `teacher_force`, `step` and `feed`. `Categorical` and
            `LogisticMixture` run in C++, any other draw step by step.
        threads: threads to use, by default as many as torch uses.

    Raises:
        ValueError, TypeError: an argument that does not fit the program.
        RuntimeError: the C++ executor cannot run here (`why_unavailable`).
    """

    def __init__(
        self,
        program: Program,
        batch: int,
        dtype: torch.dtype = torch.float64,
        draw: Draw | None = None,
        *,
        threads: int | None = None,
    ):
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
        threads = torch.get_num_threads() if threads is None else threads
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        if reason := why_unavailable():
            raise RuntimeError(f"the C++ executor cannot run here: {reason}")
        self.program, self.batch, self.dtype, self.draw = program, batch, dtype, draw
        make = host_module().SessionFloat32 if dtype == torch.float32 else host_module().SessionFloat64
        self._native = make(
            _describe(program),
            _describe_draw(draw),
            batch=batch,
            threads=threads,
            team_size=_team_size(batch, threads),
            isa=cpu_capability().lower(),
        )
        self._unset = set(program.conditioned)
        self.set_constants(
            {i: node.data for i, node in enumerate(program.nodes) if node.op == "constant" and i not in self._unset}
        )
        self._step = 0

    def reset(self) -> None:
        """Forgets the image: the next step is step 0."""
        self._native.reset()
        self._step = 0

    def set_constants(self, constants: Mapping[int, Tensor]) -> None:
        """Replaces the data of constant nodes, {node: [1 or batch, rows, cols, channels]}: other labels.

        Only the constants that depend on the condition (`Program.conditioned`) may differ from image to image, and
        they must be set before anything runs.
        """
        for index, data in constants.items():
            node, ring = self.program.nodes[index], self.program.rings[index]
            images = (1, self.batch) if _differs_by_image(node) else (1,)
            if node.op != "constant" or data.shape[1:] != (*ring, node.channels) or data.shape[0] not in images:
                expected = f"[{' or '.join(map(str, images))}, {ring[0]}, {ring[1]}, {node.channels}]"
                raise ValueError(
                    f"constants: node {index} ({node.op}) expects {expected}, got shape {tuple(data.shape)}"
                )
            self._native.set_constant(index, _array(data))
            self._unset.discard(index)

    def step(self, step: int) -> Tensor:
        """The network's output [batch, parameters] at the pixel (and colour) of `step`; steps come in order."""
        if step != self._step or step >= self.program.steps:
            raise ValueError(f"step: expected {self._step} of {self.program.steps}, got {step}")
        self._check_constants()
        return torch.from_numpy(self._native.evaluate(step))

    def feed(self, step: int, values: Tensor) -> None:
        """Makes `values` [batch, channels of a step] known: the numbers drawn at `step`, as the network sees them."""
        if step != self._step or step >= self.program.steps:
            raise ValueError(f"step: expected {self._step} of {self.program.steps}, got {step}")
        expected = (self.batch, self._channels_drawn)
        if values.shape != expected:
            raise ValueError(f"values: expected {list(expected)}, got shape {tuple(values.shape)}")
        self._native.feed(step, _array(values, self.dtype))
        self._step += 1

    def run(self, noise: Tensor, given: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Draws the images: levels int64 [batch, channels, height, width].

        Args:
            noise: float64 [steps, batch, draw.uniforms] in [0, 1).
            given, mask: a partial image: levels int64 [batch, channels, height, width], and bool [batch, 1 or channels,
                height, width] that is true where the level is known and not drawn. Noise of known pixels is not used.

        Raises:
            ValueError: an argument that does not fit, or a step at which the network's output is no distribution (NaN).
        """
        if self.draw is None:
            raise ValueError("draw: this session was made without one; use step and feed")
        check_run(self.program, self.batch, self.draw, noise, given, mask)
        self._check_constants()
        shape = (self.batch, self.program.channels, self.program.height, self.program.width)
        levels = torch.zeros(shape, dtype=torch.int64) if given is None else given.detach().clone().contiguous()
        known = None if mask is None else mask.expand(shape).contiguous()
        self._step = 0
        if not isinstance(self.draw, (Categorical, LogisticMixture)):
            return self._run_by_steps(noise, levels, known)
        failed = self._native.draw(_array(noise), levels.numpy(), None if known is None else known.numpy())
        if failed >= 0:
            row, col, color = self.program.position(failed)
            raise ValueError(f"parameters: not finite at row {row}, column {col}, colour {color}: nothing to draw from")
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
        self._check_constants()
        outputs = torch.from_numpy(self._native.teacher_force(_array(x, self.dtype)))
        self._step = 0
        grid = outputs.permute(1, 2, 0).unflatten(-1, (program.height, program.width, program.colors))
        return grid[..., 0] if program.colors == 1 else grid.permute(0, 1, 4, 2, 3)

    def explain(self) -> list[dict[str, object]]:
        """One row per node: grain, ring, weights, multiply-adds of one image, and bytes of its ring per image."""
        size = torch.finfo(self.dtype).bits // 8
        return [
            {**row, "weight_bytes": row["weights"] * size, "ring_bytes": rows * cols * row["channels"] * size}
            for row, (rows, cols) in zip(self.program.explain(), self.program.rings, strict=True)
        ]

    @property
    def bytes(self) -> int:
        """Bytes of all rings."""
        return self._native.ring_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._native.weight_bytes

    @property
    def _channels_drawn(self) -> int:
        return self.program.channels if self.program.colors == 1 else 1

    def _check_constants(self) -> None:
        if self._unset:
            raise ValueError(f"constants: nodes {sorted(self._unset)} depend on the condition and have not been set")

    def _run_by_steps(self, noise: Tensor, levels: Tensor, known: Tensor | None) -> Tensor:
        for step in range(self.program.steps):
            row, col, color = self.program.position(step)
            channels = slice(None) if self.program.colors == 1 else slice(color, color + 1)
            drawn = self.draw(self.step(step), noise[step])
            if known is not None:
                drawn = torch.where(known[:, channels, row, col], levels[:, channels, row, col], drawn)
            levels[:, channels, row, col] = drawn
            self.feed(step, self.draw.table[drawn])
        return levels


def _array(tensor: Tensor, dtype: torch.dtype = torch.float64) -> np.ndarray:
    return tensor.detach().to("cpu", dtype).contiguous().numpy()


def _differs_by_image(node: Node) -> bool:
    """Whether a constant holds data of its own for each image."""
    return node.recipe is not None or (node.data is not None and len(node.data) > 1)


def _team_size(batch: int, threads: int) -> int:
    """Threads that share an image: more than one only where the batch leaves threads without an image of their own."""
    return min(max(1, threads // batch), _MAX_TEAM)


def _view(view: View) -> tuple[int, ...]:
    return (view.node, view.row, view.col, *view.rect, view.channel, view.channels)


def _describe(program: Program):
    """The program as the C++ side holds it."""
    native = host_module().Program(program.height, program.width, program.colors, program.channels)
    for index, node in enumerate(program.nodes):
        _add_node(native, node, tuple(program.rings[index]))
    native.set_outputs([_view(view) for view in program.outputs])
    native.set_inputs(list(program.inputs))
    native.set_events(np.ascontiguousarray(program.events, dtype=np.int32))
    return native


def _add_node(native, node: Node, ring: tuple[int, int]) -> None:
    grid = (node.height, node.width)
    if node.op == "input":
        native.add_input(node.channels, grid)
        return
    if node.op == "constant":
        native.add_constant(node.channels, grid, ring, shared_by_images=not _differs_by_image(node))
        return
    place = {"channels": node.channels, "grid": grid, "ring": ring, "operands": [_view(v) for v in node.operands]}
    vectors = {name: None if v is None else _array(v) for name, v in (("scale", node.scale), ("shift", node.shift))}
    if node.op == "conv":
        native.add_conv(
            **place,
            taps=[(tap.operand, tap.row, tap.col, _array(tap.weight)) for tap in node.taps],
            num_tap_operands=node.num_tap_operands,
            stride=tuple(node.stride),
            inverse_stride=tuple(node.inverse_stride),
            bias=None if node.bias is None else _array(node.bias),
        )
    elif node.op == "pointwise":
        native.add_pointwise(**place, function=node.function, scalars=list(node.scalars), **vectors)
    elif node.op == "concat":
        native.add_concat(**place)
    elif node.op == "norm":
        native.add_norm(**place, **vectors, eps=node.eps)
    else:
        raise ValueError(f"program: {node.module or 'a node'} has an op that the executor does not know: {node.op!r}")


def _describe_draw(draw: Draw | None):
    make = host_module().Draw
    if isinstance(draw, Categorical):
        return make("categorical", 0, draw.uniforms, draw.table.tolist())
    if isinstance(draw, LogisticMixture):
        return make("logistic_mixture", draw.num_mixtures, draw.uniforms, draw.table.tolist())
    return make("none", 0, 0, [])
