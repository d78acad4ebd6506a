"""The program of a cached sampler: what to compute, when, and where to keep it.

A `Program` is what tracing and scheduling a causal network leaves behind, and all that an executor needs to draw an
image without ever running the network. `trace.py` makes the nodes, `causality.py` proves that they are causal,
`schedule.py` gives every position its step and every node its ring. Executors only read it: `reference.py` in Python,
`csrc/host` in C++.

**Note to executors.** Three points that are easy to get wrong:

- A node is read at `(r % rows, c % cols)` of its ring, constants too: a `constant` keeps `data` [1 or batch, rows,
  cols, channels] with `rows` in {1, height} and `cols` in {1, width}, so a value that is the same everywhere (a
  label's bias) is stored once per image and never spread over the grid.
- `POINTWISE` below is the whole list of functions. Each operand has as many channels as the node, except that of
  `concat_elu`, which has half of them.
- The taps of one convolution may read operands with different numbers of channels: `weight` is [channels of that
  operand, channels of the node].

Time is counted in *steps*: one per pixel in raster order, or one per colour of a pixel where the network orders the
colours (`Program.colors` > 1). Before step `t` exactly the values of steps `0 .. t-1` are known; at step `t` the
executor runs every event of that step, reads the output at that position, draws, and writes the drawn value into the
input node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["POINTWISE", "Event", "Graph", "Node", "Program", "Tap", "View"]

# Name: (number of operands, names of `Node.scalars`). NaN goes through every one of them.
POINTWISE: dict[str, tuple[int, tuple[str, ...]]] = {
    "neg": (1, ()),
    "abs": (1, ()),
    "exp": (1, ()),
    "expm1": (1, ()),
    "log": (1, ()),
    "log1p": (1, ()),
    "sqrt": (1, ()),
    "rsqrt": (1, ()),
    "square": (1, ()),
    "reciprocal": (1, ()),
    "sin": (1, ()),
    "cos": (1, ()),
    "erf": (1, ()),
    "tanh": (1, ()),
    "sigmoid": (1, ()),
    "relu": (1, ()),
    # elu(x) = x where x > 0, else alpha (e^x - 1)
    "elu": (1, ("alpha",)),
    "leaky_relu": (1, ("negative_slope",)),
    # softplus(x) = log(1 + e^(beta x)) / beta, and x where beta x > threshold
    "softplus": (1, ("beta", "threshold")),
    # gelu(x) = x Phi(x); gelu_tanh is its approximation by tanh
    "gelu": (1, ()),
    "gelu_tanh": (1, ()),
    "silu": (1, ()),
    # clamp(x) = min(max(x, low), high); either may be infinite
    "clamp": (1, ("low", "high")),
    "pow": (1, ("exponent",)),
    # affine(x) = x scale + shift, with `Node.scale` and `Node.shift` one number per channel
    "affine": (1, ()),
    # concat_elu(x) = elu([x, -x]) along the channels, alpha = 1: the node has twice the channels of its operand
    "concat_elu": (1, ()),
    "add": (2, ()),
    "sub": (2, ()),
    "mul": (2, ()),
    "div": (2, ()),
    "maximum": (2, ()),
    "minimum": (2, ()),
    # gate(a, b) = tanh(a) sigmoid(b); sigmoid_gate(a, b) = a sigmoid(b)
    "gate": (2, ()),
    "sigmoid_gate": (2, ()),
}


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


@dataclass(frozen=True)
class Tap:
    """One tap of a convolution: reads `operands[operand]` at `(r * stride + row) / inverse_stride` through `weight`.

    `weight` is [channels of that operand, channels of the node], float64.
    """

    operand: int
    row: int
    col: int
    weight: torch.Tensor


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
    bias: torch.Tensor | None = None
    data: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    eps: float = 0.0
    # How to compute `data` from the condition, for the tracer; None where it is the same for every condition. Where
    # there is one, `data` is only an example, of one image.
    recipe: object = None


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
