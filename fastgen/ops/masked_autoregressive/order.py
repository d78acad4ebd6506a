"""The order in which the units of a masked network can be computed, read off its masks.

A feature's level is the length of the longest chain of features it depends on; the degree of a hidden unit is the
highest level among the inputs it can see, -1 where it sees none. A unit of degree d reads units of degree at most d,
and the parameters of a feature of level d read units of degree below d. So in the order of degrees every unit finds
what it reads in a prefix of the layer before it, and one pass over the weights inverts the transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of packed weights start at multiples of a cache line, 16 numbers of float32.
ROW_ALIGNMENT = 16


@dataclass(frozen=True, eq=False)
class DegreeOrder:
    """A masked network's features and hidden units in order of degree, and where its packed weights keep what.

    Attributes:
        features: inputs of the network.
        hidden_features: widths of its hidden layers.
        num_parameters: outputs for each feature.
        residual: whether the layers after the first are blocks of two around which their input is added.
        starts: for the features and then for each hidden layer, how many have a degree below 0, 1, ..., levels.
        feature_order: the features by level, [features].
        unit_order: the hidden units of each layer by degree, layer after layer, [sum of hidden_features].
        context_order: those of them to which the context adds: of the first layer, and of the first one of each block.
        starts_tensor: `starts` as a tensor, [1 + hidden layers, levels + 1].
        source: for each packed number, its place among all weights and biases one after another; the place behind
            them, where `pack` puts a zero, for padding and where the mask is zero.
        visible: which packed numbers lie in a prefix that is read: all others are never touched.
    """

    features: int
    hidden_features: tuple[int, ...]
    num_parameters: int
    residual: bool
    starts: tuple[tuple[int, ...], ...]
    feature_order: Tensor
    unit_order: Tensor
    context_order: Tensor
    starts_tensor: Tensor
    source: Tensor
    visible: Tensor

    @property
    def levels(self) -> int:
        return len(self.starts[0]) - 1

    @property
    def context_layers(self) -> tuple[int, ...]:
        """The hidden layers to which the context adds a term."""
        return (0, *range(1, len(self.hidden_features), 2)) if self.residual else (0,)

    @property
    def context_width(self) -> int:
        return sum(self.hidden_features[layer] for layer in self.context_layers)

    @property
    def packed_size(self) -> int:
        return sum(rows * (_aligned(columns) + 1) for rows, columns in self._shapes())

    @property
    def multiplications(self) -> int:
        """The number of weights that are read for one sample."""
        counts = [[b - a for a, b in pairwise(start)] for start in self.starts]
        total = 0
        for below, count in zip(self.starts, counts[1:], strict=False):
            total += sum(n * prefix for n, prefix in zip(count, below[1:], strict=True))
        return total + self.num_parameters * sum(
            n * prefix for n, prefix in zip(counts[0], self.starts[-1], strict=False)
        )

    def to(self, device: torch.device) -> DegreeOrder:
        names = ("feature_order", "unit_order", "context_order", "starts_tensor", "source", "visible")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def pack(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
        """All weights and biases in one flat tensor, sorted by degree, zero where the mask is; differentiable."""
        numbers = [t.flatten() for pair in zip(weights, biases, strict=True) for t in pair]
        everything = torch.cat([*numbers, numbers[0].new_zeros(1)])
        return everything.index_select(0, self.source)

    def unpack(self, packed: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each layer its weight [out, in] and bias [out], views of the packed tensor."""
        layers, start = [], 0
        for rows, columns in self._shapes():
            weight = packed[start : start + rows * _aligned(columns)].view(rows, _aligned(columns))[:, :columns]
            start += rows * _aligned(columns)
            layers.append((weight, packed[start : start + rows]))
            start += rows
        return layers

    def context_terms(self, context: Tensor | None) -> dict[int, Tensor]:
        """The terms that the context adds to hidden layers, by layer."""
        if context is None:
            return {}
        widths = [self.hidden_features[layer] for layer in self.context_layers]
        return dict(zip(self.context_layers, context.split(widths, 1), strict=True))

    def _shapes(self) -> list[tuple[int, int]]:
        return _shapes(self.features, self.hidden_features, self.num_parameters)


def degree_order(masks: Sequence[Tensor], *, residual: bool = False) -> DegreeOrder:
    """The order of degrees of a masked network.

    Args:
        masks: of each layer [out, in], non-zero where the weight lives; the last layer has `num_parameters` rows in
            succession for each feature.
        residual: the first layer makes a stream, every further pair of layers a block that adds to it.

    Raises:
        ValueError: masks that do not fit one another, a network that is not autoregressive in any order of the
            features, or a residual block that lets a unit see more than the unit it is added to.
    """
    masks = [mask.detach().cpu() != 0 for mask in masks]
    features, parameters, widths = _checked_sizes(masks, residual)
    reach = _reach(masks, residual)
    depends = reach.pop().view(features, parameters, features).any(1)
    level = _levels(depends)
    levels = int(level.max()) + 1
    degrees = [level, *(torch.where(r, level, -1).amax(1) for r in reach)]
    if residual and any(not torch.equal(degrees[1], degrees[i]) for i in range(3, len(degrees), 2)):
        raise ValueError("masks: a residual block lets a unit see more than the unit it is added to")
    orders = [torch.argsort(degree, stable=True) for degree in degrees]
    starts = tuple(tuple(int((degree < d).sum()) for d in range(levels + 1)) for degree in degrees)
    outputs = (orders[0][:, None] * parameters + torch.arange(parameters)).flatten()
    below = [*degrees[1:], level.repeat_interleave(parameters) - 1]
    source, visible = _packed_indices(masks, [*orders, outputs], [level, *below])
    order = DegreeOrder(
        features,
        widths,
        parameters,
        residual,
        starts,
        feature_order=orders[0],
        unit_order=torch.cat([torch.empty(0, dtype=torch.int64), *orders[1:]]),
        context_order=torch.empty(0, dtype=torch.int64),
        starts_tensor=torch.tensor(starts),
        source=source,
        visible=visible,
    )
    firsts = [0]
    for layer in order.context_layers[:-1]:
        firsts.append(firsts[-1] + widths[layer])
    context = [first + orders[1 + layer] for first, layer in zip(firsts, order.context_layers, strict=True)]
    return replace(order, context_order=torch.cat(context))


def _checked_sizes(masks: list[Tensor], residual: bool) -> tuple[int, int, tuple[int, ...]]:
    if len(masks) < 2 or any(mask.dim() != 2 for mask in masks):
        raise ValueError(f"masks: expected at least two matrices, got shapes {[tuple(m.shape) for m in masks]}")
    if residual and len(masks) % 2:
        raise ValueError(f"masks: a residual network has a first, a last and pairs of layers, got {len(masks)} masks")
    for before, after in pairwise(masks):
        if after.shape[1] != before.shape[0]:
            raise ValueError(
                f"masks: expected [out, {before.shape[0]}] after {tuple(before.shape)}, got {tuple(after.shape)}"
            )
    features, outputs = masks[0].shape[1], masks[-1].shape[0]
    if features == 0 or outputs % features:
        raise ValueError(f"masks: expected a multiple of {features} outputs, one run for each feature, got {outputs}")
    widths = tuple(mask.shape[0] for mask in masks[:-1])
    if residual and len({widths[i] for i in range(0, len(widths), 2)}) > 1:
        raise ValueError(f"masks: residual blocks keep the number of units, got {widths}")
    return features, outputs // features, widths


def _reach(masks: list[Tensor], residual: bool) -> list[Tensor]:
    """Which inputs each unit of each layer can see, the last layer included."""
    reach = [torch.eye(masks[0].shape[1], dtype=torch.bool)]
    for i, mask in enumerate(masks):
        seen = (mask.float() @ reach[-1].float()) > 0
        if residual and i in range(2, len(masks) - 1, 2):
            seen |= reach[-2]
        reach.append(seen)
    return reach[1:]


def _levels(depends: Tensor) -> Tensor:
    """For each feature the length of the longest chain of features it depends on."""
    level = torch.zeros(len(depends), dtype=torch.int64)
    for _ in range(len(depends) + 1):
        raised = torch.where(depends, level + 1, 0).amax(1)
        if torch.equal(raised, level):
            return level
        level = raised
    raise ValueError("masks: the network is not autoregressive: a feature's parameters depend on that feature")


def _packed_indices(masks: list[Tensor], orders: list[Tensor], degrees: list[Tensor]) -> tuple[Tensor, Tensor]:
    sources, visibles, first = [], [], 0
    for i, mask in enumerate(masks):
        rows, columns = mask.shape
        pad = (0, padding(columns))
        place = torch.where(mask, first + torch.arange(rows * columns).view(rows, columns), -1)
        sorted_place = place[orders[i + 1]][:, orders[i]]
        prefix = degrees[i + 1][orders[i + 1]][:, None] >= degrees[i][orders[i]]
        sources += [F.pad(sorted_place, pad, value=-1).flatten(), first + rows * columns + orders[i + 1]]
        visibles += [F.pad(prefix, pad, value=False).flatten(), torch.ones(rows, dtype=torch.bool)]
        first += rows * columns + rows
    source = torch.cat(sources)
    return torch.where(source < 0, first, source), torch.cat(visibles)


def _shapes(features: int, hidden_features: tuple[int, ...], num_parameters: int) -> list[tuple[int, int]]:
    widths = (features, *hidden_features, features * num_parameters)
    return list(zip(widths[1:], widths[:-1], strict=True))


def padding(columns: int) -> int:
    """How many zeros follow the weights of a packed row."""
    return -columns % ROW_ALIGNMENT


def _aligned(columns: int) -> int:
    return columns + padding(columns)
