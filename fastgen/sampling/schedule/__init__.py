"""When each position is computed and how long it is kept.

Deadlines run backwards from the draw: a position must be ready at the first step that reads it. With the ready times of
`causality.py` as the other bound, every node gets the coarsest grain that fits between them: all at once, a row at a
time, or a pixel at a time as late as possible. Nothing is known about stacks or geometry: on Gated PixelCNN it
follows that the vertical stack runs by rows and the horizontal one by pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fastgen.sampling.program import Graph, Node, Program, View, whole, with_taps
from fastgen.sampling.schedule.causality import (
    Read,
    gather,
    output_read,
    output_times,
    prove_causal,
    reads,
    ready_time,
    ready_times,
)

# The deadline of a position that nobody reads, and the last read of one.
NEVER = np.iinfo(np.int64).max
UNREAD = -1


def schedule(graph: Graph, *, split_rows: bool = True) -> Program:
    """Proves a graph causal and gives every position its step and every node its ring.

    Args:
        graph: from the tracer, simplified.
        split_rows: split a convolution that runs by pixels where some of its taps could run by rows.

    Raises:
        NotCausalError: the output of some step depends on that step or a later one.
    """
    times = ready_times(graph)
    prove_causal(graph, times)
    plan = _Plan(graph, times, split_rows)
    plan.assign_steps()
    return plan.program()


class _Plan:
    """Nodes with their ready times, deadlines, steps and grain, numbered as they are made."""

    def __init__(self, graph: Graph, times: list[np.ndarray], split_rows: bool):
        self.graph, self.split_rows = graph, split_rows
        self.nodes = list(graph.nodes)
        self.ready = list(times)
        self.deadline = [np.full((node.height, node.width), NEVER) for node in graph.nodes]
        self.step: list[np.ndarray] = [np.zeros(0)] * len(graph.nodes)
        self.grain = [""] * len(graph.nodes)
        self.order: list[int] = []

    def assign_steps(self) -> None:
        """One pass from the output to the input, so that every reader has its steps before what it reads."""
        for color in range(self.graph.colors):
            _scatter(np.minimum, self.deadline, output_read(self.graph, color), output_times(self.graph, color))
        for index in reversed(range(len(self.graph.nodes))):
            node, deadline = self.nodes[index], self.deadline[index]
            if node.op == "input":
                self._place(index, self.ready[index] - 1, "input")
            elif (deadline == NEVER).all():
                continue
            elif node.op == "constant":
                self._place(index, np.zeros_like(deadline), "constant")
            else:
                self._place_computed(index)
        self.order.reverse()

    def _place(self, index: int, step: np.ndarray, grain: str) -> None:
        self.step[index], self.grain[index] = step, grain
        self.order.append(index)
        for read in reads(self.nodes[index]):
            _scatter(np.minimum, self.deadline, read, step)

    def _place_computed(self, index: int) -> None:
        grain, step = _coarsest(self.ready[index], self.deadline[index])
        early = None
        if grain == "pixel" and self.split_rows and self.nodes[index].op == "conv":
            early = self._split_off_rows(index)
        self._place(index, step, grain)
        if early is not None:
            grain, step = _coarsest(self.ready[early], self.deadline[early])
            self._place(early, step, grain)

    def _split_off_rows(self, index: int) -> int | None:
        """Moves what is ready a row at a time into a convolution of its own, whose result the rest adds."""
        node = self.nodes[index]
        early = self._ready_by_row(index)
        early_taps = {read.tap for read in early if read.tap >= 0}
        late_taps = set(range(len(node.taps))) - early_taps
        early_extras = [node.operands[read.operand] for read in early if read.tap < 0]
        late_extras = [view for view in node.operands[node.num_tap_operands :] if view not in early_extras]
        if not early_taps or (not late_taps and len(late_extras) != 1):
            return None
        rows = with_taps(node, node.operands, [node.taps[number] for number in sorted(early_taps)], early_extras)
        result = whole(self._append(rows), rows)
        if late_taps:
            late = [node.taps[number] for number in sorted(late_taps)]
            self.nodes[index] = with_taps(replace(node, bias=None), node.operands, late, [*late_extras, result])
        else:
            operands = [result, *late_extras]
            self.nodes[index] = Node(
                "pointwise", node.channels, node.height, node.width, operands, node.module, function="add"
            )
        return result.node

    def _ready_by_row(self, index: int) -> list[Read]:
        """The reads of a node that are ready before the first deadline of every row."""
        deadline = self.deadline[index]
        live = deadline != NEVER
        limit = deadline.min(1)
        return [
            read
            for read in reads(self.nodes[index])
            if (np.where(live, gather(self.ready[read.node], read), 0).max(1) <= limit).all()
        ]

    def _append(self, node: Node) -> int:
        self.nodes.append(node)
        self.ready.append(ready_time(node, self.ready, self.graph))
        self.deadline.append(np.full((node.height, node.width), NEVER))
        self.step.append(np.zeros(0))
        self.grain.append("")
        return len(self.nodes) - 1

    def program(self) -> Program:
        """Drops what nobody reads, numbers the nodes anew, and finds rings and events."""
        self._keep_as_zeros()
        number = {old: new for new, old in enumerate(self.order)}
        nodes = [
            replace(self.nodes[old], operands=[_renumber(view, number) for view in self.nodes[old].operands])
            for old in self.order
        ]
        graph = replace(
            self.graph,
            nodes=nodes,
            outputs=[_renumber(view, number) for view in self.graph.outputs],
            inputs=[number[old] for old in self.graph.inputs],
        )
        steps = [self.step[old] for old in self.order]
        grain = [self.grain[old] for old in self.order]
        last_read = _last_reads(graph, steps)
        rings = [_ring(*item) for item in zip(nodes, grain, steps, last_read, strict=True)]
        return Program(**vars(graph), events=_events(grain, steps, last_read), rings=rings, grain=grain)

    def _keep_as_zeros(self) -> None:
        """Replaces by zeros each node that is read only beyond its border, or only for positions that nobody needs."""
        named = {view.node for index in self.order for view in self.nodes[index].operands}
        for index in sorted(named - set(self.order)):
            node = self.nodes[index]
            data = torch.zeros(1, 1, 1, node.channels, dtype=torch.float64)
            self.nodes[index] = Node("constant", node.channels, node.height, node.width, module=node.module, data=data)
            self.step[index], self.grain[index] = np.zeros((node.height, node.width), np.int64), "constant"
            self.order.insert(0, index)


def _coarsest(ready: np.ndarray, deadline: np.ndarray) -> tuple[str, np.ndarray]:
    """The coarsest grain between ready times and deadlines, and the step of every position (NEVER where unread)."""
    live = deadline != NEVER
    ready = np.where(live, ready, 0)
    if ready.max() <= deadline.min():
        return "once", np.where(live, deadline.min(), NEVER)
    by_row = deadline.min(1, keepdims=True)
    if (ready.max(1, keepdims=True) <= by_row).all():
        return "row", np.where(live, by_row, NEVER)
    return "pixel", deadline


def _renumber(view: View, number: dict[int, int]) -> View:
    return replace(view, node=number[view.node])


def _scatter(function: np.ufunc, target: Sequence[np.ndarray], read: Read, values: np.ndarray) -> None:
    """`target[source] = function(target[source], value)` for every position read."""
    rows, cols = np.flatnonzero(read.rows >= 0), np.flatnonzero(read.cols >= 0)
    where = read.rows[rows][:, None], read.cols[cols]
    function.at(target[read.node], where, values[np.ix_(rows, cols)])


def _last_reads(graph: Graph, steps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The last step that reads each position, UNREAD where none does."""
    last = [np.full((node.height, node.width), UNREAD) for node in graph.nodes]
    for node, step in zip(graph.nodes, steps, strict=True):
        for read in reads(node):
            _scatter(np.maximum, last, read, np.where(step == NEVER, UNREAD, step))
    for color in range(graph.colors):
        _scatter(np.maximum, last, output_read(graph, color), output_times(graph, color))
    return last


def _ring(node: Node, grain: str, step: np.ndarray, last_read: np.ndarray) -> tuple[int, int]:
    """The fewest rows, and for a single row of pixels the fewest columns, in which nothing is overwritten too early."""
    if grain == "constant":
        return tuple(node.data.shape[1:3])
    if grain in ("input", "once"):
        return node.height, node.width
    live = np.argwhere(last_read != UNREAD)
    step, last_read = step[tuple(live.T)], last_read[tuple(live.T)]

    def fits(rows: int, cols: int) -> bool:
        slot = live[:, 0] % rows * cols + live[:, 1] % cols
        order = np.lexsort((step, slot))
        slot, first, last = slot[order], step[order], last_read[order]
        # Strictly before the next write, because the order within a step is not looked at.
        return bool(((slot[1:] != slot[:-1]) | (last[:-1] < first[1:])).all())

    rows = next(rows for rows in range(1, node.height + 1) if fits(rows, node.width))
    if rows > 1 or grain == "row":
        return rows, node.width
    return 1, next(cols for cols in range(1, node.width + 1) if fits(1, cols))


def _events(grain: Sequence[str], steps: Sequence[np.ndarray], last_read: Sequence[np.ndarray]) -> np.ndarray:
    """Rows (step, node, row, first column, end column), one for every run of columns computed at the same step."""
    events = [np.zeros((0, 5), np.int64)]
    for index, (kind, step, last) in enumerate(zip(grain, steps, last_read, strict=True)):
        if kind in ("input", "constant"):
            continue
        # A border of other steps around every row, so that runs begin and end where neighbours differ.
        padded = np.pad(np.where(last != UNREAD, step, NEVER), ((0, 0), (1, 1)), constant_values=-1)
        changes = np.diff(padded, axis=1) != 0
        row, begin = np.nonzero(changes[:, :-1])
        end = np.nonzero(changes[:, 1:])[1] + 1
        run = np.stack([step[row, begin], np.full_like(row, index), row, begin, end], 1)
        events.append(run[padded[row, begin + 1] != NEVER])
    table = np.concatenate(events)
    return table[np.lexsort((table[:, 3], table[:, 2], table[:, 1], table[:, 0]))].astype(np.int32)
