"""The executor of a `Program` for GPUs: one captured CUDA graph per kind of step, replayed for every pixel.

On a GPU a step is bound by launches, not by arithmetic, so the whole step (every event, the draw, the write into the
image) is one graph. Positions cannot be baked into a graph that is replayed at every pixel; they are data instead. For
each step the executor precomputes where every operand of every event lies in its ring, with one slot of zeros standing
for whatever is outside, and a device counter selects the row of that table. Steps that run the same nodes over as many
columns with the same taps share a graph.

Where there is no CUDA the same operations run without being captured, on any device: that is how they are proved.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.sampling.draw import Draw
from fastgen.sampling.program import POINTWISE, Node, Program, View
from fastgen.sampling.run.session import Session
from fastgen.sampling.schedule.causality import Read, output_read, reads

# What an instruction does with the positions it is given: it reads and writes rings, [batch, slots + 1, channels].
Instruction = Callable[[Tensor], None]


class CapturedSession(Session):
    """The session on `device`, where that is a CUDA device with its steps captured as graphs."""

    def __init__(
        self,
        program: Program,
        batch: int,
        dtype: torch.dtype = torch.float32,
        draw: Draw | None = None,
        device: torch.device | str = "cuda",
    ):
        super().__init__(program, batch, dtype, draw)
        self.device = torch.device(device)
        self._rings = [self._new_ring(index) for index in range(len(program.nodes))]
        self.set_constants(self._fixed_constants())
        self._plan = _Plan(program)
        self._tables = [torch.from_numpy(table).to(self.device) for table in self._plan.tables]
        self._ordinals = torch.from_numpy(self._plan.ordinals).to(self.device)
        self._instructions = [self._compile(kind) for kind in self._plan.kinds]
        # What the network sees for each level: a graph cannot copy it from the host.
        self._table = None if draw is None else draw.table.to(self.device, dtype)
        # The step that runs, for what is captured.
        self._counter = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._buffers: dict[str, Tensor] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @property
    def bytes(self) -> int:
        return sum(ring.numel() * ring.element_size() for ring in self._rings)

    def reset(self) -> None:
        super().reset()
        self._counter.zero_()
        # Rings start as NaN, so that a read before the write shows.
        for node, ring in zip(self.program.nodes, self._rings, strict=True):
            if node.op != "constant":
                ring[:, :-1] = float("nan")

    def _set_constant(self, index: int, data: Tensor) -> None:
        self._rings[index][:, :-1] = data.flatten(1, 2).to(self.device, self.dtype)

    def _evaluate(self, step: int) -> Tensor:
        kind = int(self._plan.kind_of_step[step])
        return self._output(kind, self._run_events(kind))

    def _feed(self, step: int, values: Tensor) -> None:
        kind = int(self._plan.kind_of_step[step])
        self._write(kind, self._slots(kind), values.to(self.device, self.dtype))

    def _run(self, noise: Tensor, levels: Tensor, known: Tensor | None) -> Tensor:
        known = torch.zeros_like(levels, dtype=torch.bool) if known is None else known
        self._fill("noise", noise)
        self._fill("known", self._by_step(known))
        self._fill("levels", self._by_step(levels))
        self._fill("undrawable", torch.zeros(1, dtype=torch.bool))
        for step in range(self.program.steps):
            self._replay(int(self._plan.kind_of_step[step]))
        if self._buffers["undrawable"].item():
            raise ValueError("parameters: a pixel has no distribution to draw from (NaN, +inf, or all -inf)")
        return self._by_pixel(self._buffers["levels"]).cpu()

    def _new_ring(self, index: int) -> Tensor:
        """[batch, slots + 1, channels]; the last slot stays zero and is what is read outside a view's rectangle."""
        rows, cols = self.program.rings[index]
        shape = (self.batch, rows * cols + 1, self.program.nodes[index].channels)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _by_step(self, image: Tensor) -> Tensor:
        """[steps, batch, values of a step] from [batch, channels, height, width]."""
        by_pixel = image.permute(2, 3, 1, 0).flatten(0, 1)
        if self.program.colors > 1:
            by_pixel = by_pixel.flatten(0, 1)[:, None]
        return by_pixel.transpose(1, 2).contiguous()

    def _by_pixel(self, steps: Tensor) -> Tensor:
        program = self.program
        grid = steps.transpose(1, 2).reshape(program.height, program.width, program.channels, self.batch)
        return grid.permute(3, 2, 0, 1).contiguous()

    def _fill(self, name: str, value: Tensor) -> None:
        # Graphs hold the addresses of these buffers, so they are made once and copied into.
        if name not in self._buffers:
            self._buffers[name] = torch.empty_like(value, device=self.device)
        self._buffers[name].copy_(value)

    def _replay(self, kind: int) -> None:
        if self.device.type != "cuda":
            self._draw_step(kind)
            return
        if kind not in self._graphs:
            self._graphs[kind] = self._capture(kind)
        self._graphs[kind].replay()

    def _capture(self, kind: int) -> torch.cuda.CUDAGraph:
        # A first run outside the capture makes the libraries allocate what they need; the counter is set back after it.
        step = self._counter.clone()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._draw_step(kind)
            self._counter.copy_(step)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._draw_step(kind)
        return graph

    def _draw_step(self, kind: int) -> None:
        """Everything one step does, in operations that never wait for the device."""
        indices = self._run_events(kind)
        parameters = self._output(kind, indices)
        noise, known, levels = (
            self._buffers[name].index_select(0, self._counter)[0] for name in ("noise", "known", "levels")
        )
        drawn, drawable = self.draw.levels(parameters, noise)
        self._buffers["undrawable"].logical_or_(~(drawable | known[:, 0]).all())
        drawn = torch.where(known, levels, drawn)
        self._buffers["levels"].index_copy_(0, self._counter, drawn[None])
        self._write(kind, indices, self._table[drawn])

    def _slots(self, kind: int) -> Tensor:
        """The current step's row of the table of positions."""
        return self._tables[kind].index_select(0, self._ordinals.index_select(0, self._counter))[0]

    def _run_events(self, kind: int) -> Tensor:
        """Runs the events of the current step; returns its row of the table of positions."""
        indices = self._slots(kind)
        for instruction in self._instructions[kind]:
            instruction(indices)
        return indices

    def _output(self, kind: int, indices: Tensor) -> Tensor:
        view = self.program.outputs[self._plan.kinds[kind].color]
        return self._read(view, indices[-2:-1])[:, 0]

    def _write(self, kind: int, indices: Tensor, values: Tensor) -> None:
        ring = self._rings[self.program.inputs[self._plan.kinds[kind].color]]
        ring.index_copy_(1, indices[-1:], values[:, None])
        self._counter.add_(1)

    def _read(self, view: View, slots: Tensor) -> Tensor:
        """[batch, positions, channels of the view]."""
        found = self._rings[view.node].index_select(1, slots)
        return found if view.channels == found.shape[2] else found[:, :, view.channel : view.channel + view.channels]

    def _compile(self, kind: _Kind) -> list[Instruction]:
        return [self._instruction(event) for event in kind.events]

    def _instruction(self, event: _KindOfEvent) -> Instruction:
        node = self.program.nodes[event.node]
        compute = self._convolution(node, event) if node.op == "conv" else self._elementwise(node, event)
        ring, write = self._rings[event.node], event.write

        def instruction(indices: Tensor) -> None:
            ring.index_copy_(1, indices[write], compute(indices))

        return instruction

    def _elementwise(self, node: Node, event: _KindOfEvent) -> Callable[[Tensor], Tensor]:
        reads = list(zip(node.operands, event.reads, strict=True))
        scale, shift = (None if v is None else v.to(self.device, self.dtype) for v in (node.scale, node.shift))

        def compute(indices: Tensor) -> Tensor:
            operands = [self._read(view, indices[where]) for view, where in reads]
            if node.op == "concat":
                return torch.cat(operands, -1)
            if node.op == "norm":
                return F.layer_norm(operands[0], (node.channels,), scale, shift, node.eps)
            scalars = (scale, shift) if node.function == "affine" else node.scalars
            return POINTWISE[node.function].compute(*operands, *scalars)

        return compute

    def _convolution(self, node: Node, event: _KindOfEvent) -> Callable[[Tensor], Tensor]:
        """One matrix product per operand, over all its taps: the ring's layout gathers them side by side."""
        products = []
        for operand, taps, where in zip(event.operands, event.taps, event.reads, strict=False):
            weight = torch.cat([node.taps[t].weight for t in taps]).to(self.device, self.dtype)
            products.append((node.operands[operand], weight, where))
        added = list(zip(node.operands[node.num_tap_operands :], event.reads[len(products) :], strict=True))
        bias = torch.zeros(node.channels) if node.bias is None else node.bias
        bias, positions = bias.to(self.device, self.dtype), event.positions

        def compute(indices: Tensor) -> Tensor:
            value = bias.expand(self.batch * positions, -1)
            for view, where in added:
                value = value + self._read(view, indices[where]).reshape(self.batch * positions, -1)
            for view, weight, where in products:
                gathered = self._read(view, indices[where]).reshape(self.batch * positions, -1)
                value = torch.addmm(value, gathered, weight)
            return value.view(self.batch, positions, -1)

        return compute


class _KindOfEvent:
    """An event without its position: the node, how many positions, which taps, and where in the table it reads."""

    def __init__(self, program: Program, node: int, positions: int, phase: tuple[int, ...], begin: int):
        self.node, self.positions, self.phase = node, positions, phase
        described = program.nodes[node]
        operands = range(described.num_tap_operands)
        live = [[t for t in phase if described.taps[t].operand == operand] for operand in operands]
        self.operands = [operand for operand in operands if live[operand]]
        self.taps = [live[operand] for operand in self.operands]
        plain = len(described.operands) - described.num_tap_operands
        lengths = [positions * len(taps) for taps in self.taps] + [positions] * plain
        ends = begin + np.cumsum([0, *lengths, positions])
        slices = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        self.reads, self.write, self.end = slices[:-1], slices[-1], int(ends[-1])


class _Kind:
    """A kind of step: its events, and the colour it draws."""

    def __init__(self, program: Program, color: int, signature: tuple):
        self.color, self.events = color, []
        begin = 0
        for node, positions, phase in signature:
            self.events.append(_KindOfEvent(program, node, positions, phase, begin))
            begin = self.events[-1].end


class _Plan:
    """Sorts the steps of a program into kinds and tabulates, for every step, which slots its events read and write.

    Attributes:
        kinds: the kinds of step.
        kind_of_step: the kind of each step, [steps].
        ordinals: how many steps of its kind came before each step, [steps].
        tables: per kind, int64 [steps of that kind, slots]: for each event its reads, then its writes; last, the slot
            of the output and the slot of the input that the draw fills.
    """

    def __init__(self, program: Program):
        self._program = program
        # The reads of taps come first, in the order of the taps.
        self._reads = [list(reads(node)) for node in program.nodes]
        self._outputs = [output_read(program, color) for color in range(program.colors)]
        by_step: list[list[tuple[int, int, int, int]]] = [[] for _ in range(program.steps)]
        for step, *event in program.events.tolist():
            by_step[step].append(tuple(event))
        signatures: dict[tuple, int] = {}
        rows: list[list[np.ndarray]] = []
        self.kinds: list[_Kind] = []
        self.kind_of_step = np.empty(program.steps, np.int64)
        self.ordinals = np.empty(program.steps, np.int64)
        for step, events in enumerate(by_step):
            color = program.position(step)[2]
            parts = [(node, end - begin, self._phase(node, row, begin, end)) for node, row, begin, end in events]
            signature = (color, tuple(parts))
            kind = signatures.setdefault(signature, len(signatures))
            if kind == len(self.kinds):
                self.kinds.append(_Kind(program, color, signature[1]))
                rows.append([])
            self.kind_of_step[step], self.ordinals[step] = kind, len(rows[kind])
            rows[kind].append(self._row_of_table(self.kinds[kind], events, step))
        self.tables = [np.stack(kind) for kind in rows]

    def _phase(self, index: int, row: int, begin: int, end: int) -> tuple[int, ...]:
        """The taps of a convolution that read anything for these positions: those whose stride divides."""
        node = self._program.nodes[index]
        if node.inverse_stride == (1, 1):
            return tuple(range(len(node.taps)))
        cols = np.arange(begin, end)
        divides = [
            (row * node.stride[0] + tap.row) % node.inverse_stride[0] == 0
            and bool(((cols * node.stride[1] + tap.col) % node.inverse_stride[1] == 0).any())
            for tap in node.taps
        ]
        return tuple(np.flatnonzero(divides).tolist())

    def _row_of_table(self, kind: _Kind, events: list[tuple[int, int, int, int]], step: int) -> np.ndarray:
        program = self._program
        parts: list[np.ndarray] = []
        for described, (index, row, begin, end) in zip(kind.events, events, strict=True):
            reads, cols = self._reads[index], slice(begin, end)
            for taps in described.taps:
                # Positions first, then taps: the gathered taps of a position lie side by side.
                parts.append(np.stack([self._slots(reads[tap], row, cols) for tap in taps], 1).ravel())
            parts += [self._slots(read, row, cols) for read in reads if read.tap < 0]
            parts.append(self._ring_slots(index, row, np.arange(begin, end)))
        row, col, color = program.position(step)
        parts.append(self._slots(self._outputs[color], row, slice(col, col + 1)))
        parts.append(self._ring_slots(program.inputs[color], row, np.array([col])))
        return np.concatenate(parts)

    def _slots(self, read: Read, row: int, cols: slice) -> np.ndarray:
        """The slots of the ring that are read for these positions; where nothing is, the slot of zeros."""
        row, cols = read.rows[row], read.cols[cols]
        ring_rows, ring_cols = self._program.rings[read.node]
        return np.where((row >= 0) & (cols >= 0), self._ring_slots(read.node, row, cols), ring_rows * ring_cols)

    def _ring_slots(self, index: int, row: int, cols: np.ndarray) -> np.ndarray:
        ring_rows, ring_cols = self._program.rings[index]
        return (row % ring_rows) * ring_cols + cols % ring_cols
