"""Splits the nodes of a network that orders its colours, red before green before blue: a step computes one colour.

Channels of one node may be ready at different steps: with masks over colours some see the red of their own pixel,
others nothing of it. Channels that are ready at the same times become a node of their own, usually one per colour,
and the image becomes one node per colour. Which channel belongs to which colour is read off the weights that are not
zero; no convention on their order is assumed. After that every node is ready as a whole, and nothing else needs to
know about colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fastgen.sampling.program import Builder, Graph, Node, Tap, View
from fastgen.sampling.schedule.causality import gather, reads, ready_time


def split_colors(graph: Graph) -> Graph:
    """The same graph with one input per colour and nodes of channels that are ready at the same times."""
    return graph if graph.colors == 1 else _Split(graph).graph()


class _Split:
    """The new nodes, and where each channel of each old node went."""

    def __init__(self, graph: Graph):
        self.old = graph
        self._module = ""
        self.builder = Builder(lambda: self._module)
        self.times: list[np.ndarray] = []
        # For each old node an array [channels, 2]: new node and channel.
        self.places: list[np.ndarray] = []
        self.inputs: list[int] = []

    def graph(self) -> Graph:
        """Splits every node in turn."""
        for node in self.old.nodes:
            self._module = node.module
            self.places.append(np.zeros((node.channels, 2), np.int64))
            if node.op == "input":
                self._split_input(node)
            else:
                for channels in self._groups(node):
                    self._emit_group(node, channels)
        outputs = [self._gather(view, np.arange(view.channels)) for view in self.old.outputs]
        return replace(self.old, nodes=self.builder.nodes, outputs=outputs, inputs=self.inputs)

    def _split_input(self, node: Node) -> None:
        for color in range(self.old.colors):
            self._add(replace(node, channels=1, color=color), np.array([color]))
            self.inputs.append(len(self.builder.nodes) - 1)

    def _add(self, node: Node, channels: np.ndarray) -> None:
        """Appends the new node that holds `channels` of the old node that is being split."""
        self.builder.nodes.append(node)
        self._update_times()
        self.places[-1][channels, 0] = len(self.builder.nodes) - 1
        self.places[-1][channels, 1] = np.arange(len(channels))

    def _update_times(self) -> None:
        # Gathering channels may have made nodes of its own.
        for node in self.builder.nodes[len(self.times) :]:
            self.times.append(ready_time(node, self.times, self.old))

    def _sources(self, view: View) -> np.ndarray:
        """[channels, 2]: where the channels that an old view reads are now."""
        return self.places[view.node][view.channel : view.channel + view.channels]

    def _groups(self, node: Node) -> list[np.ndarray]:
        """Channels of a node that are ready at the same times; all together where one channel needs all of them."""
        if node.op in ("constant", "norm"):
            return [np.arange(node.channels)]
        pairs, needs = self._needs(node)
        patterns, pattern_of = np.unique(needs, axis=1, return_inverse=True)
        groups: dict[bytes, list[int]] = {}
        for number, pattern in enumerate(patterns.T):
            ready = np.zeros((node.height, node.width), np.int64)
            for pair in np.flatnonzero(pattern):
                np.maximum(ready, pairs[pair], out=ready)
            groups.setdefault(ready.tobytes(), []).append(number)
        return [np.flatnonzero(np.isin(pattern_of.reshape(-1), numbers)) for numbers in groups.values()]

    def _needs(self, node: Node) -> tuple[list[np.ndarray], np.ndarray]:
        """Ready times of what the node reads, one new node and tap at a time, and which of its channels need each.

        Returns:
            One array of ready times for each read, and bool [reads, channels].
        """
        times, needs = [], []
        for read in reads(node):
            sources = self._sources(node.operands[read.operand])[:, 0]
            for source in np.unique(sources):
                times.append(gather(self.times[source], read))
                mine = sources == source
                if read.tap >= 0:
                    weight = node.taps[read.tap].weight.numpy()
                    needs.append((weight[mine] != 0).any(0))
                elif node.op == "concat":
                    before = sum(view.channels for view in node.operands[: read.operand])
                    after = node.channels - before - len(mine)
                    needs.append(np.pad(mine, (before, after)))
                else:
                    needs.append(mine)
        if not needs:
            return times, np.zeros((0, node.channels), bool)
        return times, np.stack(needs)

    def _emit_group(self, node: Node, channels: np.ndarray) -> None:
        if node.op == "conv":
            self._add(self._conv_group(node, channels), channels)
            return
        if node.op == "concat":
            parts, before = [], 0
            for view in node.operands:
                inside = channels[(channels >= before) & (channels < before + view.channels)]
                if len(inside):
                    parts.append(self._gather(view, inside - before))
                before += view.channels
            operands = parts
        else:
            operands = [self._gather(view, channels) for view in node.operands]
        vectors = {
            name: None if vector is None else vector[torch.from_numpy(channels)]
            for name, vector in (("scale", node.scale), ("shift", node.shift))
        }
        self._add(replace(node, channels=len(channels), operands=operands, **vectors), channels)

    def _conv_group(self, node: Node, channels: np.ndarray) -> Node:
        """The outputs `channels` of a convolution, which reads each new node that it has weights for."""
        chosen = torch.from_numpy(channels)
        operands: list[View] = []
        taps: list[Tap] = []
        for number, view in enumerate(node.operands):
            sources = self._sources(view)
            for source in np.unique(sources[:, 0]):
                mine = np.flatnonzero(sources[:, 0] == source)
                first, last = sources[mine, 1].min(), sources[mine, 1].max()
                window = replace(view, node=int(source), channel=int(first), channels=int(last - first + 1))
                for tap in node.taps:
                    if tap.operand != number:
                        continue
                    weight = torch.zeros(window.channels, len(channels), dtype=torch.float64)
                    weight[torch.from_numpy(sources[mine, 1] - first)] = tap.weight[torch.from_numpy(mine)][:, chosen]
                    if bool((weight != 0).any()):
                        if window not in operands:
                            operands.append(window)
                        taps.append(Tap(operands.index(window), tap.row, tap.col, weight))
        bias = None if node.bias is None else node.bias[chosen]
        return replace(
            node, channels=len(channels), operands=operands, taps=taps, num_tap_operands=len(operands), bias=bias
        )

    def _gather(self, view: View, channels: Sequence[int]) -> View:
        """A view of the new graph of `channels` of an old view."""
        sources = self._sources(view)[channels]
        if (sources[:, 0] == sources[0, 0]).all():
            window = replace(view, node=int(sources[0, 0]), channel=0, channels=self._channels_of(sources[0, 0]))
            result = self.builder.select_channels(window, sources[:, 1])
        else:
            starts = np.flatnonzero(np.diff(sources[:, 0], prepend=-1))
            runs = np.split(sources, starts[1:])
            pieces = [
                replace(view, node=int(run[0, 0]), channel=0, channels=self._channels_of(run[0, 0])) for run in runs
            ]
            parts = [self.builder.select_channels(piece, run[:, 1]) for piece, run in zip(pieces, runs, strict=True)]
            result = self.builder.concat(parts)
        self._update_times()
        return result

    def _channels_of(self, index: int) -> int:
        return self.builder.nodes[index].channels
