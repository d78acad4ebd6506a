"""Makes the nodes of a graph, one after another, and windows on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from fastgen.sampling.errors import UnsupportedModelError
from fastgen.sampling.program import Node, Tap, View

__all__ = ["Builder", "compose", "crop", "is_whole", "whole"]

# More runs of channels than this are gathered by a matrix of ones and zeros, fewer by a concatenation.
MAX_RUNS = 8


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
