"""The interface of the executors of a `Program`: arguments, their checks, and drawing step by step.

An executor keeps the rings of one batch and answers two calls: what the network says at a step, and what was drawn
there. `reference.py` does it in plain Python, `native.py` in C++, `captured.py` in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastgen.sampling.draw import Draw
from fastgen.sampling.program import Node, Program


class Session:
    """Runs `program` for `batch` images at a time.

    Args:
        program: what `schedule` made.
        batch: images drawn together.
        dtype: float64 or float32, of everything but the draw.
        draw: how `run` draws a step; not needed for `teacher_force`, `step` and `feed`.

    Raises:
        ValueError, TypeError: an argument that does not fit the program.
    """

    def __init__(self, program: Program, batch: int, dtype: torch.dtype = torch.float64, draw: Draw | None = None):
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
        self.program, self.batch, self.dtype, self.draw = program, batch, dtype, draw
        self._step = 0
        self._unset = set(program.conditioned)

    @property
    def bytes(self) -> int:
        """Bytes of all rings."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets the image: the next step is step 0."""
        self._step = 0

    def set_constants(self, constants: Mapping[int, Tensor]) -> None:
        """Replaces the data of constant nodes, {node: [1 or batch, rows, cols, channels]}: other labels.

        Only the constants that depend on the condition (`Program.conditioned`) may differ from image to image, and
        they must be set before anything runs.
        """
        for index, data in constants.items():
            node, ring = self.program.nodes[index], self.program.rings[index]
            images = (1, self.batch) if differs_by_image(node) else (1,)
            if node.op != "constant" or data.shape[1:] != (*ring, node.channels) or data.shape[0] not in images:
                expected = f"[{' or '.join(map(str, images))}, {ring[0]}, {ring[1]}, {node.channels}]"
                raise ValueError(
                    f"constants: node {index} ({node.op}) expects {expected}, got shape {tuple(data.shape)}"
                )
            self._set_constant(index, data)
            self._unset.discard(index)

    @torch.no_grad()
    def step(self, step: int) -> Tensor:
        """The network's output [batch, parameters] at the pixel (and colour) of `step`; steps come in order."""
        self._check_step(step)
        self._check_constants()
        return self._evaluate(step)

    @torch.no_grad()
    def feed(self, step: int, values: Tensor) -> None:
        """Makes `values` [batch, channels of a step] known: the numbers drawn at `step`, as the network sees them."""
        self._check_step(step)
        expected = (self.batch, self.program.channels if self.program.colors == 1 else 1)
        if values.shape != expected:
            raise ValueError(f"values: expected {list(expected)}, got shape {tuple(values.shape)}")
        self._feed(step, values)
        self._step += 1

    @torch.no_grad()
    def run(self, noise: Tensor, given: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Draws the images: levels int64 [batch, channels, height, width], on the CPU.

        Args:
            noise: float64 [steps, batch, draw.uniforms] in [0, 1).
            given, mask: a partial image: levels int64 [batch, channels, height, width], and bool [batch, 1 or
                channels, height, width] that is true where the level is known and not drawn. Noise of known pixels is
                not used.

        Raises:
            ValueError: an argument that does not fit, or a step at which the network's output is no distribution (NaN).
        """
        program, draw = self.program, self.draw
        if draw is None:
            raise ValueError("draw: this session was made without one; use step and feed")
        shape = (self.batch, program.channels, program.height, program.width)
        check_draw(program, draw)
        check_noise(noise, (program.steps, self.batch, draw.uniforms))
        check_partial_image(given, mask, shape, draw, program.colors)
        self._check_constants()
        levels = torch.zeros(shape, dtype=torch.int64) if given is None else given.detach().clone().contiguous()
        self.reset()
        return self._run(noise, levels, None if mask is None else mask.expand(shape).contiguous())

    @torch.no_grad()
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
        self.reset()
        grid = self._teacher_force(x).unflatten(-1, (program.height, program.width, program.colors))
        return grid[..., 0] if program.colors == 1 else grid.permute(0, 1, 4, 2, 3)

    def explain(self) -> list[dict[str, object]]:
        """One row per node: grain, ring, weights, multiply-adds of one image, and bytes of its ring per image."""
        size = torch.finfo(self.dtype).bits // 8
        return [
            {**row, "weight_bytes": row["weights"] * size, "ring_bytes": rows * cols * row["channels"] * size}
            for row, (rows, cols) in zip(self.program.explain(), self.program.rings, strict=True)
        ]

    # What an executor does.

    def _set_constant(self, index: int, data: Tensor) -> None:
        raise NotImplementedError

    def _evaluate(self, step: int) -> Tensor:
        """Runs the events of a step; the output that is read there."""
        raise NotImplementedError

    def _feed(self, step: int, values: Tensor) -> None:
        """Writes what was drawn at a step into its input."""
        raise NotImplementedError

    def _run(self, noise: Tensor, levels: Tensor, known: Tensor | None) -> Tensor:
        """Draws what is not known into `levels`."""
        for step in range(self.program.steps):
            place = self._place(step)
            drawn = self.draw(self.step(step), noise[step])
            if known is not None:
                drawn = torch.where(known[place], levels[place], drawn)
            levels[place] = drawn
            self.feed(step, self.draw.table[drawn])
        return levels

    def _teacher_force(self, x: Tensor) -> Tensor:
        """Outputs [batch, parameters, steps]."""
        outputs = []
        for step in range(self.program.steps):
            outputs.append(self.step(step))
            self.feed(step, x[self._place(step)])
        return torch.stack(outputs, -1)

    def _place(self, step: int) -> tuple:
        """Where the values of a step lie in an image [batch, channels, height, width]."""
        row, col, color = self.program.position(step)
        return slice(None), slice(None) if self.program.colors == 1 else slice(color, color + 1), row, col

    def _fixed_constants(self) -> dict[int, Tensor]:
        """The data of the constants that depend on no condition."""
        nodes = enumerate(self.program.nodes)
        return {index: node.data for index, node in nodes if node.op == "constant" and node.recipe is None}

    def _check_step(self, step: int) -> None:
        if step != self._step or step >= self.program.steps:
            raise ValueError(f"step: expected {self._step} of {self.program.steps}, got {step}")

    def _check_constants(self) -> None:
        if self._unset:
            raise ValueError(f"constants: nodes {sorted(self._unset)} depend on the condition and have not been set")


def differs_by_image(node: Node) -> bool:
    """Whether a constant holds data of its own for each image."""
    return node.recipe is not None or (node.data is not None and len(node.data) > 1)


def check_draw(program: Program, draw: Draw) -> None:
    """Raises ValueError where a draw does not fit what the network says at a step."""
    step_channels = program.channels if program.colors == 1 else 1
    if draw.channels != step_channels:
        raise ValueError(f"draw: the program draws {step_channels} values a step, the draw makes {draw.channels}")
    parameters = program.outputs[0].channels
    if parameters != draw.num_parameters:
        raise ValueError(f"draw: expects {draw.num_parameters} parameters a step, the network makes {parameters}")


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
