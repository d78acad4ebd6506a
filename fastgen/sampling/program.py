"""The program of a cached sampler: what to compute, when, and where to keep it.

Tracing (`trace/`) turns a network into a `Graph` of nodes, scheduling (`schedule/`) proves it causal and gives every
position its step and every node its ring: a `Program`, which is all that an executor (`run/`) needs to draw images
without running the network.

Three points for whoever writes an executor:

- A node is read at `(r % rows, c % cols)` of its ring, constants too: a `constant` keeps `data` [1 or batch, rows,
  cols, channels] with `rows` in {1, height} and `cols` in {1, width}, so a value that is the same everywhere (a
  label's bias) is stored once per image and never spread over the grid.
- Each operand of a pointwise function has as many channels as the node, except that of `concat_elu`, which has half of
  them.
- The taps of one convolution may read operands with different numbers of channels: `weight` is [channels of that
  operand, channels of the node].

Time is counted in *steps*: one per pixel in raster order, or one per colour of a pixel where the network orders the
colours (`Program.colors` > 1). Before step `t` exactly the values of steps `0 .. t-1` are known; at step `t` the
executor runs every event of that step, reads the output at that position, draws, and writes the drawn value into the
input node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Pointwise(NamedTuple):
    """A function of one or two operands, elementwise.

    Attributes:
        compute: the function in PyTorch, of the operands and then of `Node.scalars`.
        operands: how many it takes.
        scalars: names of `Node.scalars`.
    """

    compute: Callable[..., Tensor]
    operands: int = 1
    scalars: tuple[str, ...] = ()


# The pointwise functions of a program. The C++ executor has the same ones, with its formulas, in one table of its own.
# NaN goes through every one of them.
POINTWISE: dict[str, Pointwise] = {
    "neg": Pointwise(torch.neg),
    "abs": Pointwise(torch.abs),
    "exp": Pointwise(torch.exp),
    "expm1": Pointwise(torch.expm1),
    "log": Pointwise(torch.log),
    "log1p": Pointwise(torch.log1p),
    "sqrt": Pointwise(torch.sqrt),
    "rsqrt": Pointwise(torch.rsqrt),
    "square": Pointwise(torch.square),
    "reciprocal": Pointwise(torch.reciprocal),
    "sin": Pointwise(torch.sin),
    "cos": Pointwise(torch.cos),
    "erf": Pointwise(torch.erf),
    "tanh": Pointwise(torch.tanh),
    "sigmoid": Pointwise(torch.sigmoid),
    "relu": Pointwise(torch.relu),
    "elu": Pointwise(F.elu, scalars=("alpha",)),
    "leaky_relu": Pointwise(F.leaky_relu, scalars=("negative_slope",)),
    "softplus": Pointwise(F.softplus, scalars=("beta", "threshold")),
    "gelu": Pointwise(F.gelu),
    "gelu_tanh": Pointwise(lambda x: F.gelu(x, approximate="tanh")),
    "silu": Pointwise(F.silu),
    # Either bound may be infinite.
    "clamp": Pointwise(torch.clamp, scalars=("low", "high")),
    "pow": Pointwise(torch.pow, scalars=("exponent",)),
    # With `Node.scale` and `Node.shift`, one number per channel.
    "affine": Pointwise(lambda x, scale, shift: x * scale + shift),
    # Along the channels: the node has twice the channels of its operand.
    "concat_elu": Pointwise(lambda x: F.elu(torch.cat([x, -x], -1))),
    "add": Pointwise(torch.add, 2),
    "sub": Pointwise(torch.sub, 2),
    "mul": Pointwise(torch.mul, 2),
    "div": Pointwise(torch.div, 2),
    "maximum": Pointwise(torch.maximum, 2),
    "minimum": Pointwise(torch.minimum, 2),
    "gate": Pointwise(lambda a, b: torch.tanh(a) * torch.sigmoid(b), 2),
    "sigmoid_gate": Pointwise(lambda a, b: a * torch.sigmoid(b), 2),
}


class UnsupportedModelError(ValueError):
    """The network does something that has no one-pixel rule: the message names the module and the operator."""

    def __init__(self, module: str, reason: str):
        self.module = module
        super().__init__(f"{module or '(model)'}: {reason}")


@dataclass(frozen=True)
class View:
    """A window on a node: position `(r, c)` reads the node at `(r + row, c + col)`, zero outside `rect`.

    Cropping, padding, shifting and slicing channels are views, so they cost nothing when the program runs.
    `rect` is `(row_begin, row_end, col_begin, col_end)` in the coordinates of the view, which is `height` x `width`.
    Channels `channel .. channel + channels - 1` of the node are read.
    """

    node: int
    row: int
    col: int
    rect: tuple[int, int, int, int]
    channel: int
    channels: int
    height: int
    width: int


def whole(index: int, node: Node) -> View:
    """The view of everything in a node."""
    return View(index, 0, 0, (0, node.height, 0, node.width), 0, node.channels, node.height, node.width)


def is_whole(view: View, node: Node) -> bool:
    """Whether the view is the node itself."""
    return view == whole(view.node, node)


def compose(outer: View, inner: View) -> View:
    """The view `outer` of a node that is itself the view `inner` of another one."""
    row_begin, row_end, col_begin, col_end = inner.rect
    # What is outside either window is zero.
    rect = (
        max(outer.rect[0], row_begin - outer.row),
        min(outer.rect[1], row_end - outer.row),
        max(outer.rect[2], col_begin - outer.col),
        min(outer.rect[3], col_end - outer.col),
    )
    return View(
        inner.node,
        outer.row + inner.row,
        outer.col + inner.col,
        rect,
        outer.channel + inner.channel,
        outer.channels,
        outer.height,
        outer.width,
    )


def crop(view: View, axis: int, before: int, after: int) -> View:
    """Removes `before` and `after` rows (axis 0) or columns (axis 1); negative numbers pad with zeros."""
    row_begin, row_end, col_begin, col_end = view.rect
    if axis == 0:
        height = view.height - before - after
        rect = (max(row_begin - before, 0), min(row_end - before, height), col_begin, col_end)
        return replace(view, row=view.row + before, height=height, rect=rect)
    width = view.width - before - after
    rect = (row_begin, row_end, max(col_begin - before, 0), min(col_end - before, width))
    return replace(view, col=view.col + before, width=width, rect=rect)


@dataclass(frozen=True)
class Tap:
    """One tap of a convolution: reads `operands[operand]` at `(r * stride + row) / inverse_stride` through `weight`.

    `weight` is [channels of that operand, channels of the node], float64.
    """

    operand: int
    row: int
    col: int
    weight: Tensor


@dataclass
class Node:
    """A value on a grid of `height` x `width` positions with `channels` channels.

    op:
        `input`      the image itself; `color` says which colour (all channels at once where `Program.colors` is 1)
        `constant`   `data` [1 or batch, 1 or height, 1 or width, channels], float64; a batch axis where labels decide
        `conv`       `taps` over `operands[:k]`, plus `bias`, plus every operand in `operands[k:]` added as it is (k =
                     `num_tap_operands`); reads at `(r * stride + tap.row) / inverse_stride` and skips where that does
                     not divide, so strides, dilations and transposed convolutions are one formula. Small groups
                     (depthwise) are dense blocks with zeros
        `pointwise`  `function` (of `POINTWISE`) of the operands, elementwise; `scalars` are its constants
        `concat`     the operands one after another along the channels
        `norm`       layer normalisation over the channels: `scale`, `shift`, `eps`
    """

    op: str
    channels: int
    height: int
    width: int
    operands: list[View] = field(default_factory=list)
    module: str = ""
    color: int = 0
    function: str = ""
    scalars: tuple[float, ...] = ()
    taps: list[Tap] = field(default_factory=list)
    num_tap_operands: int = 0
    stride: tuple[int, int] = (1, 1)
    inverse_stride: tuple[int, int] = (1, 1)
    bias: Tensor | None = None
    data: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    eps: float = 0.0
    # How to compute `data` from the condition, for the tracer; None where it is the same for every condition. Where
    # there is one, `data` is only an example, of one image.
    recipe: object = None


def with_taps(node: Node, operands: Sequence[View], taps: Sequence[Tap], extras: Sequence[View]) -> Node:
    """A convolution with these taps, equal operands merged and unread ones dropped."""
    used: dict[View, int] = {}
    for tap in taps:
        used.setdefault(operands[tap.operand], len(used))
    taps = [Tap(used[operands[tap.operand]], tap.row, tap.col, tap.weight) for tap in taps]
    return replace(node, operands=[*used, *extras], taps=taps, num_tap_operands=len(used))


@dataclass(kw_only=True)
class Graph:
    """A traced network: what to compute, not yet when.

    Attributes:
        height, width: the grid of pixels.
        colors: steps per pixel: 1, or the number of colour channels where the network orders them.
        channels: channels of the image.
        nodes: in topological order.
        outputs: one view per colour: what the draw of that colour reads at its pixel.
        inputs: index of the input node of each colour.
    """

    height: int
    width: int
    colors: int
    channels: int
    nodes: list[Node]
    outputs: list[View]
    inputs: list[int]

    @property
    def conditioned(self) -> list[int]:
        """Constants that depend on the condition (labels): an executor is given data for them before it runs."""
        return [index for index, node in enumerate(self.nodes) if node.recipe is not None]

    @property
    def steps(self) -> int:
        return self.height * self.width * self.colors

    def position(self, step: int) -> tuple[int, int, int]:
        """Row, column and colour that step `step` draws."""
        pixel, color = divmod(step, self.colors)
        return *divmod(pixel, self.width), color


# More runs of channels than this are gathered by a matrix of ones and zeros, fewer by a concatenation.
MAX_RUNS = 8


class Builder:
    """A growing list of nodes. `module` tells which module is running, for the names of nodes and in errors."""

    def __init__(self, module: Callable[[], str] = lambda: ""):
        self.nodes: list[Node] = []
        self.module = module

    def refuse(self, reason: str) -> NoReturn:
        """Raises `UnsupportedModelError` in the name of the running module."""
        raise UnsupportedModelError(self.module(), reason)

    def emit(self, op: str, channels: int, height: int, width: int, operands: Sequence[View] = (), **fields) -> View:
        """Appends a node and returns the view of all of it."""
        node = Node(op, channels, height, width, list(operands), self.module(), **fields)
        self.nodes.append(node)
        return whole(len(self.nodes) - 1, node)

    def conv(
        self,
        view: View,
        taps: Sequence[tuple[int, int, Tensor]],
        height: int,
        width: int,
        channels: int,
        *,
        stride: tuple[int, int] = (1, 1),
        inverse_stride: tuple[int, int] = (1, 1),
        bias: Tensor | None = None,
    ) -> View:
        """A convolution of taps (row, column, weight [in, out]); taps that are all zero are dropped."""
        alive = [Tap(0, row, col, weight.contiguous()) for row, col, weight in taps if bool((weight != 0).any())]
        return self.emit(
            "conv",
            channels,
            height,
            width,
            [view] if alive else [],
            taps=alive,
            num_tap_operands=1 if alive else 0,
            stride=stride,
            inverse_stride=inverse_stride,
            bias=bias,
        )

    def pointwise(self, function: str, views: Sequence[View], scalars: Sequence[float] = ()) -> View:
        """`function` of views of the same grid and number of channels."""
        first = views[0]
        scalars = tuple(float(s) for s in scalars)
        return self.emit(
            "pointwise", first.channels, first.height, first.width, views, function=function, scalars=scalars
        )

    def affine(self, view: View, scale: Tensor, shift: Tensor) -> View:
        """`view * scale + shift`, each [channels]."""
        return self.emit(
            "pointwise", view.channels, view.height, view.width, [view], function="affine", scale=scale, shift=shift
        )

    def constant(self, data: Tensor, height: int, width: int, recipe: object = None) -> View:
        """A value that does not depend on the image, [1 or batch, 1 or height, 1 or width, channels]."""
        return self.emit("constant", data.shape[3], height, width, data=data, recipe=recipe)

    def concat(self, views: Sequence[View]) -> View:
        """Views of the same grid one after another along the channels."""
        channels = sum(view.channels for view in views)
        return self.emit("concat", channels, views[0].height, views[0].width, views)

    def select_channels(self, view: View, index: np.ndarray) -> View:
        """Channels `index` of a view, in that order; -1 is a channel of zeros. Free where they are consecutive."""
        starts = np.flatnonzero(np.diff(index, prepend=index[0] - 2) != 1)
        runs = [(int(index[a]), b - a) for a, b in zip(starts, [*starts[1:], len(index)], strict=True)]
        if index.min() >= 0 and len(runs) <= MAX_RUNS:
            pieces = [replace(view, channel=view.channel + first, channels=int(count)) for first, count in runs]
            return pieces[0] if len(pieces) == 1 else self.concat(pieces)
        weight = torch.zeros(view.channels, len(index), dtype=torch.float64)
        live = index >= 0
        weight[torch.from_numpy(index[live]), torch.from_numpy(np.flatnonzero(live))] = 1
        return self.conv(view, [(0, 0, weight)], view.height, view.width, len(index))


class Event(NamedTuple):
    """At `step`, before the draw, compute `node` at row `row`, columns `col_begin` to `col_end`."""

    step: int
    node: int
    row: int
    col_begin: int
    col_end: int


@dataclass(kw_only=True)
class Program(Graph):
    """Nodes in topological order, their schedule and their rings.

    Attributes:
        events: int32 array [number of events, 5], rows as in `Event`, sorted by step, then topologically.
        rings: per node `(rows, cols)`: position `(r, c)` is kept at `(r % rows, c % cols)`; the schedule proves that
            nothing is overwritten before its last read. Inputs are kept whole; a constant's ring is the shape of its
            `data`.
        grain: per node `input`, `constant`, `once`, `row` or `pixel`: how the schedule runs it.
    """

    events: np.ndarray
    rings: list[tuple[int, int]]
    grain: list[str]

    def explain(self) -> list[dict[str, object]]:
        """One row per node: what it is, how it is scheduled, and its cost for one image."""
        positions = np.zeros(len(self.nodes), np.int64)
        np.add.at(positions, self.events[:, 1], self.events[:, 4] - self.events[:, 3])
        rows = []
        for index, node in enumerate(self.nodes):
            weights = sum(tap.weight.numel() for tap in node.taps)
            rows.append(
                {
                    "node": index,
                    "module": node.module,
                    "op": node.function if node.op == "pointwise" else node.op,
                    "channels": node.channels,
                    "grid": (node.height, node.width),
                    "grain": self.grain[index],
                    "ring": self.rings[index],
                    "weights": weights,
                    "multiply_adds": int(positions[index]) * weights,
                }
            )
        return rows
