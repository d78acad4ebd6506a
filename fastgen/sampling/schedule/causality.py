"""The proof that a network is causal: when each position can be computed, and that the output never has to wait.

The ready time `T[r, c]` of a node is the number of steps that must be known before that position can be computed: `t
+ 1` for the input of step `t`, 0 for padding and constants, and the maximum over what it reads for everything else.
The network is causal exactly where the output read at step `t` has `T <= t`. Strides, phases, borders, crops and
dilations need no special case, because times are gathered along the very indices that the executor reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fastgen.sampling.program import Graph, Node, View


class NotCausalError(ValueError):
    """The network lets a pixel see itself or a later one.

    Attributes:
        module: the module to blame.
        path: modules from the output back to the input along which the pixel is seen, with their offsets in pixels.
    """

    def __init__(self, module: str, message: str, path: list[tuple[str, tuple[int, int]]]):
        self.module = module
        self.path = path
        super().__init__(message)


class Read(NamedTuple):
    """One node reading another: for each of its own rows and columns that of the source, or -1 where it reads nothing.

    `operand` numbers the view and `tap` the tap of a convolution that reads it (-1 where it is read as it is).
    """

    node: int
    rows: np.ndarray
    cols: np.ndarray
    operand: int
    tap: int


def reads(node: Node) -> Iterator[Read]:
    """Everything that a node reads."""
    first_plain = 0
    if node.op == "conv":
        first_plain = node.num_tap_operands
        for number, tap in enumerate(node.taps):
            rows = _divide(np.arange(node.height) * node.stride[0] + tap.row, node.inverse_stride[0])
            cols = _divide(np.arange(node.width) * node.stride[1] + tap.col, node.inverse_stride[1])
            yield _read(node.operands[tap.operand], rows, cols, tap.operand, number)
    for operand in range(first_plain, len(node.operands)):
        yield _read(node.operands[operand], np.arange(node.height), np.arange(node.width), operand, -1)


def _divide(positions: np.ndarray, divisor: int) -> np.ndarray:
    # Where the stride does not divide, a position far outside every rectangle.
    return np.where(positions % divisor == 0, positions // divisor, -(1 << 30))


def _read(view: View, rows: np.ndarray, cols: np.ndarray, operand: int, tap: int) -> Read:
    row_begin, row_end, col_begin, col_end = view.rect
    rows = np.where((rows >= row_begin) & (rows < row_end), rows + view.row, -1)
    cols = np.where((cols >= col_begin) & (cols < col_end), cols + view.col, -1)
    return Read(view.node, rows, cols, operand, tap)


def gather(source: np.ndarray, read: Read) -> np.ndarray:
    """`source` at the positions read, 0 where nothing is."""
    inside = (read.rows >= 0)[:, None] & (read.cols >= 0)
    return np.where(inside, source[np.maximum(read.rows, 0)[:, None], np.maximum(read.cols, 0)], 0)


def ready_time(node: Node, times: Sequence[np.ndarray], graph: Graph) -> np.ndarray:
    """The ready times [height, width] of a node from those of the nodes it reads."""
    if node.op == "input":
        pixels = np.arange(graph.height * graph.width).reshape(graph.height, graph.width)
        return pixels * graph.colors + node.color + 1
    result = np.zeros((node.height, node.width), np.int64)
    for read in reads(node):
        np.maximum(result, gather(times[read.node], read), out=result)
    return result


def ready_times(graph: Graph) -> list[np.ndarray]:
    """The ready times of every node."""
    times: list[np.ndarray] = []
    for node in graph.nodes:
        times.append(ready_time(node, times, graph))
    return times


def output_read(graph: Graph, color: int) -> Read:
    """The read of the output that the draw of one colour does."""
    return _read(graph.outputs[color], np.arange(graph.height), np.arange(graph.width), color, -1)


def output_times(graph: Graph, color: int) -> np.ndarray:
    """The step at which the output of one colour is read, [height, width]."""
    return np.arange(graph.height * graph.width).reshape(graph.height, graph.width) * graph.colors + color


def prove_causal(graph: Graph, times: Sequence[np.ndarray]) -> None:
    """Raises `NotCausalError` naming the module that looks ahead if an output waits for its own step or a later one."""
    for color in range(graph.colors):
        read = output_read(graph, color)
        late = gather(times[read.node], read) > output_times(graph, color)
        if late.any():
            row, col = map(int, np.argwhere(late)[0])
            raise _diagnose(graph, times, color, row, col)


class Edge(NamedTuple):
    """A step of the path from an output back to the input: the module and what it reads, in pixels of the image."""

    module: str
    offset: tuple[int, int]
    # A convolution with more than one tap, which is where masks are.
    spatial: bool


def _diagnose(graph: Graph, times: Sequence[np.ndarray], color: int, row: int, col: int) -> NotCausalError:
    read = output_read(graph, color)
    source = int(read.rows[row]), int(read.cols[col])
    step = int(times[read.node][source]) - 1
    seen_row, seen_col, seen_color = graph.position(step)
    path = _critical_path(graph, times, read.node, *source)
    ahead = [edge for edge in path if edge.offset > (0, 0)]
    if ahead:
        # The furthest look-ahead: a smaller one may be made good by a shift elsewhere on the path.
        culprit = max(ahead, key=lambda edge: edge.offset)
        blame = f"{culprit.module} looks ahead by {culprit.offset} (rows, columns)"
    else:
        masked = [edge for edge in path if edge.spatial]
        culprit = (masked or path or [Edge("(model)", (0, 0), False)])[-1]
        blame = f"no layer on this path excludes the {_value(graph)} itself; the first masked one is {culprit.module}"
    names = [(edge.module, edge.offset) for edge in path]
    steps = " <- ".join(f"{module} {offset}" for module, offset in names)
    message = (
        f"not causal: the output at {_place(graph, row, col, color)} depends on the {_value(graph)} at "
        f"{_place(graph, seen_row, seen_col, seen_color)}: {blame}. Path, output first: "
        f"{steps or 'the output is the image'}"
    )
    return NotCausalError(culprit.module, message, names)


def _value(graph: Graph) -> str:
    return "pixel" if graph.colors == 1 else "colour"


def _place(graph: Graph, row: int, col: int, color: int) -> str:
    return f"({row}, {col})" if graph.colors == 1 else f"({row}, {col}) colour {color}"


def _critical_path(graph: Graph, times: Sequence[np.ndarray], index: int, row: int, col: int) -> list[Edge]:
    """Follows what made each node wait back to the input: the convolutions and shifts on the way, output first."""
    scales = _scales(graph)
    path = []
    while graph.nodes[index].op != "input":
        node = graph.nodes[index]
        read = next(
            read
            for read in reads(node)
            if read.rows[row] >= 0
            and read.cols[col] >= 0
            and times[read.node][read.rows[row], read.cols[col]] == times[index][row, col]
        )
        source = int(read.rows[row]), int(read.cols[col])
        offset = tuple(
            round(there * scales[read.node][axis] - here * scales[index][axis])
            for axis, (there, here) in enumerate(zip(source, (row, col), strict=True))
        )
        if read.tap >= 0 or offset != (0, 0):
            path.append(Edge(node.module or "(model)", offset, len({(tap.row, tap.col) for tap in node.taps}) > 1))
        index, (row, col) = read.node, source
    return path


def _scales(graph: Graph) -> list[tuple[float, float]]:
    """How many pixels of the image one row and one column of each node are."""
    scales: list[tuple[float, float]] = []
    for node in graph.nodes:
        sources = [view.node for view in node.operands if graph.nodes[view.node].op != "constant"]
        down, right = scales[sources[0]] if sources else (1.0, 1.0)
        stride, inverse = (node.stride, node.inverse_stride) if node.op == "conv" else ((1, 1), (1, 1))
        scales.append((down * stride[0] / inverse[0], right * stride[1] / inverse[1]))
    return scales
