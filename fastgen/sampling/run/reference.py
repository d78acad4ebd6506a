"""The executor of a `Program` in plain Python: the specification of the others, and the fallback where there is none.

It runs events in the order of the program and keeps nothing but the rings, which start full of NaN: a schedule that
reads a position too early, or after it was overwritten, shows in the output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.sampling.draw import Draw
from fastgen.sampling.program import POINTWISE, Node, Program, View
from fastgen.sampling.run.session import Session


class ReferenceSession(Session):
    """The session in Python."""

    def __init__(self, program: Program, batch: int, dtype: torch.dtype = torch.float64, draw: Draw | None = None):
        super().__init__(program, batch, dtype, draw)
        # Weights, biases and constants in the dtype of the session, converted once.
        self._weights = [[tap.weight.to(dtype) for tap in node.taps] for node in program.nodes]
        self._vectors = [
            [None if v is None else v.to(dtype) for v in (node.bias, node.scale, node.shift)] for node in program.nodes
        ]
        self._rings = [
            torch.full((rows, cols, batch, node.channels), float("nan"), dtype=dtype)
            for node, (rows, cols) in zip(program.nodes, program.rings, strict=True)
        ]
        self.set_constants(self._fixed_constants())
        self._event = 0

    @property
    def bytes(self) -> int:
        return sum(ring.numel() * ring.element_size() for ring in self._rings)

    def reset(self) -> None:
        super().reset()
        self._event = 0
        for node, ring in zip(self.program.nodes, self._rings, strict=True):
            if node.op != "constant":
                ring.fill_(float("nan"))

    def _set_constant(self, index: int, data: Tensor) -> None:
        self._rings[index].copy_(data.permute(1, 2, 0, 3).expand_as(self._rings[index]))

    def _evaluate(self, step: int) -> Tensor:
        events = self.program.events
        while self._event < len(events) and events[self._event, 0] <= step:
            _, index, row, col_begin, col_end = events[self._event].tolist()
            self._run_event(index, row, torch.arange(col_begin, col_end))
            self._event += 1
        row, col, color = self.program.position(step)
        return self._read(self.program.outputs[color], row, torch.tensor([col]))[0]

    def _feed(self, step: int, values: Tensor) -> None:
        row, col, color = self.program.position(step)
        self._rings[self.program.inputs[color]][row, col] = values.to(self.dtype)

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
            else:
                scalars = self._vectors[index][1:] if node.function == "affine" else node.scalars
                value = POINTWISE[node.function].compute(*operands, *scalars)
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
