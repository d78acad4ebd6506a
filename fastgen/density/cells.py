"""Finding a cell of a grid among those that are occupied, in any number of dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

# Cells farther out are clamped to this: no number in a float64 has cells of its own there.
_FARTHEST = 2.0**52


def cell_numbers(x: Tensor, origin: Tensor, width: Tensor) -> Tensor:
    """Which cell each point is in, int64 [n, d]: how many widths from the origin, rounded down."""
    cells = ((x - origin).double() / width.double()).floor()
    return cells.clamp(-_FARTHEST, _FARTHEST).long()


def count_cells(cells: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones of cells [N, d], [B, d] sorted by row, and how many there are of each, [B]."""
    node = _nodes(cells)[0]
    counts = node.bincount()
    distinct = cells.new_empty(len(counts), cells.shape[1])
    # Any of those that are the same will do.
    distinct[node] = cells
    return distinct, counts


def leaves(cells: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A tree over distinct cells [B, d], sorted by row: for every axis, its values and the keys of the nodes there."""
    return _nodes(cells)[1]


def locate(queries: Tensor, tree: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The row of each cell [M, d] among those of the tree, [M]; -1 where it is none of them."""
    node = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    found = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
    for column, (values, keys) in zip(queries.T, tree, strict=True):
        rank, known = _find(column.contiguous(), values)
        node, present = _find(node * len(values) + rank, keys)
        found &= known & present
    return node.where(found, -1)


def _nodes(cells: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The rank of each cell [N, d] among the distinct ones, and the tree over those.

    A node stands for cells that share their numbers on the axes so far, and goes by its rank among those. Its children
    are keyed `node * (number of values) + rank of the value`, below N^2: no key overflows, whatever d.
    """
    tree = []
    node = torch.zeros(len(cells), dtype=torch.int64, device=cells.device)
    for column in cells.T:
        values, rank = column.unique(return_inverse=True)
        keys, node = (node * len(values) + rank).unique(return_inverse=True)
        tree.append((values, keys))
    return node, tree


def _find(numbers: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each number in a sorted tensor, and whether it is there."""
    place = torch.searchsorted(among, numbers).clamp_(max=len(among) - 1)
    return place, among[place] == numbers
