"""The executor of a `Program` in C++: the images of `ReferenceSession`, hundreds of times faster.

A session packs the weights once and owns the rings. One call draws whole images without coming back to Python. The
batch is split among torch's threads; where there are fewer images than threads, they share an image's convolutions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgen.ops.extensions import cpu_capability, host_module
from fastgen.sampling.draw import Categorical, Draw, LogisticMixture
from fastgen.sampling.program import Node, Program, View
from fastgen.sampling.run.session import Session, differs_by_image

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


class NativeSession(Session):
    """The session in C++.

    Args:
        draw: `Categorical` and `LogisticMixture` run in C++, any other draw step by step.
        threads: threads to use, by default as many as torch uses.

    Raises:
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
        super().__init__(program, batch, dtype, draw)
        threads = torch.get_num_threads() if threads is None else threads
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        if reason := why_unavailable():
            raise RuntimeError(f"the C++ executor cannot run here: {reason}")
        make = host_module().SessionFloat32 if dtype == torch.float32 else host_module().SessionFloat64
        self._native = make(
            _describe(program),
            _describe_draw(draw),
            batch=batch,
            threads=threads,
            team_size=_team_size(batch, threads),
            isa=cpu_capability().lower(),
        )
        self.set_constants(self._fixed_constants())

    @property
    def bytes(self) -> int:
        return self._native.ring_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._native.weight_bytes

    def reset(self) -> None:
        super().reset()
        self._native.reset()

    def _set_constant(self, index: int, data: Tensor) -> None:
        self._native.set_constant(index, _array(data))

    def _evaluate(self, step: int) -> Tensor:
        return torch.from_numpy(self._native.evaluate(step))

    def _feed(self, step: int, values: Tensor) -> None:
        self._native.feed(step, _array(values, self.dtype))

    def _run(self, noise: Tensor, levels: Tensor, known: Tensor | None) -> Tensor:
        if not isinstance(self.draw, (Categorical, LogisticMixture)):
            return super()._run(noise, levels, known)
        failed = self._native.run(_array(noise), levels.numpy(), None if known is None else known.numpy())
        if failed >= 0:
            row, col, color = self.program.position(failed)
            raise ValueError(f"parameters: not finite at row {row}, column {col}, colour {color}: nothing to draw from")
        return levels

    def _teacher_force(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self._native.teacher_force(_array(x, self.dtype))).permute(1, 2, 0)


def _array(tensor: Tensor, dtype: torch.dtype = torch.float64) -> np.ndarray:
    return tensor.detach().to("cpu", dtype).contiguous().numpy()


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
        native.add_constant(node.channels, grid, ring, shared_by_images=not differs_by_image(node))
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
