"""Rewrites a traced graph into one that computes the same with fewer nodes and less copying.

Each pass walks the nodes in order and emits what replaces them; views of replaced nodes are composed on the way. Only
nodes with a single reader are merged into it, so nothing is ever computed twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastgen.sampling.program import Graph, Node, Tap, View, compose, is_whole, whole, with_taps
from fastgen.sampling.schedule.causality import Read, reads


def simplify(graph: Graph) -> Graph:
    """Concatenations become operands, constant factors become weights, sums become operands of convolutions."""
    rules = (
        _push_negation,
        _read_through_concat,
        _merge_concat_elu,
        _push_through_concat,
        _read_through_concat,
        _crop_convs,
        _drop_padding,
        _fold_affine,
        _merge_pairs,
        _remove_duplicates(),
    )
    for rule in rules:
        graph = _remove_dead(_rewrite(graph, rule))
    return graph


class _Pass:
    """The nodes emitted so far, and for every old node the view that replaces it."""

    def __init__(self, graph: Graph):
        self.nodes: list[Node] = []
        self.replacement: list[View] = []
        readers = Counter(index for node in graph.nodes for index in {view.node for view in node.operands})
        readers.update({view.node for view in graph.outputs})
        self._single = [readers[index] == 1 for index in range(len(graph.nodes))]
        # The old node that a new one stands for, None where it stands for several.
        self._old: dict[int, int | None] = {}

    def emit(self, node: Node) -> View:
        """Appends a node; the view of all of it."""
        self.nodes.append(node)
        return whole(len(self.nodes) - 1, node)

    def node(self, view: View) -> Node:
        """The node that a view of the new graph reads."""
        return self.nodes[view.node]

    def owned(self, view: View, op: str, function: str | None = None) -> Node | None:
        """The node that a view is all of, if it is of this kind and has no other reader."""
        node = self.owned_in_part(view, op)
        if node is None or (function is not None and node.function != function) or not is_whole(view, node):
            return None
        return node

    def owned_in_part(self, view: View, op: str) -> Node | None:
        """The node that a view is a window on, if it is of this kind and has no other reader."""
        old = self._old.get(view.node)
        return (
            self.nodes[view.node] if self.nodes[view.node].op == op and old is not None and self._single[old] else None
        )

    def replaced(self, old: int, view: View) -> None:
        """Says which view replaces an old node."""
        self.replacement.append(view)
        self._old[view.node] = None if view.node in self._old else old


# A rule gets the pass and a node whose operands are views of the new graph; it returns what replaces the node.
Rule = Callable[[_Pass, Node], View]


def _rewrite(graph: Graph, rule: Rule) -> Graph:
    state = _Pass(graph)
    for index, node in enumerate(graph.nodes):
        operands = [compose(view, state.replacement[view.node]) for view in node.operands]
        state.replaced(index, rule(state, replace(node, operands=operands)))
    outputs = [compose(view, state.replacement[view.node]) for view in graph.outputs]
    inputs = [state.replacement[index].node for index in graph.inputs]
    return replace(graph, nodes=state.nodes, outputs=outputs, inputs=inputs)


def _remove_dead(graph: Graph) -> Graph:
    """Drops the nodes that no output depends on; inputs stay."""
    live = set(graph.inputs) | {view.node for view in graph.outputs}
    for index in reversed(range(len(graph.nodes))):
        if index in live:
            live.update(view.node for view in graph.nodes[index].operands)
    number = {old: new for new, old in enumerate(sorted(live))}

    def renumber(views: Sequence[View]) -> list[View]:
        return [replace(view, node=number[view.node]) for view in views]

    nodes = [replace(graph.nodes[old], operands=renumber(graph.nodes[old].operands)) for old in number]
    return replace(graph, nodes=nodes, outputs=renumber(graph.outputs), inputs=[number[old] for old in graph.inputs])


def _pieces(state: _Pass, view: View) -> list[View]:
    """The views, in order, that a view of a concatenation reads; the view itself where it is of anything else."""
    node = state.node(view)
    if node.op != "concat":
        return [view]
    pieces, first = [], 0
    for operand in node.operands:
        begin, end = max(view.channel, first), min(view.channel + view.channels, first + operand.channels)
        if begin < end:
            piece = compose(replace(view, channel=begin - first, channels=end - begin), operand)
            pieces.extend(_pieces(state, piece))
        first += operand.channels
    return pieces


def _read_through_concat(state: _Pass, node: Node) -> View:
    """Lets nodes read the operands of a concatenation in place of it."""
    if node.op == "conv":
        conv = _split_operands(state, node) if _reads_concat(state, node) else node
        return state.emit(conv if conv.operands else _constant(conv))
    pieces = [_pieces(state, view) for view in node.operands]
    if node.op == "concat":
        joined = _join([piece for parts in pieces for piece in parts])
        return joined[0] if len(joined) == 1 else state.emit(replace(node, operands=joined))
    operands = [_join(parts) for parts in pieces]
    kept = [parts[0] if len(parts) == 1 else view for view, parts in zip(node.operands, operands, strict=True)]
    return state.emit(replace(node, operands=kept))


def _constant(conv: Node) -> Node:
    """A convolution that reads nothing, because all its weights are zero: its bias."""
    bias = torch.zeros(conv.channels, dtype=torch.float64) if conv.bias is None else conv.bias
    return Node("constant", conv.channels, conv.height, conv.width, module=conv.module, data=bias[None, None, None])


def _join(views: Sequence[View]) -> list[View]:
    """Merges neighbours that are consecutive channels of the same window."""
    joined: list[View] = []
    for view in views:
        last = joined[-1] if joined else None
        if last is not None and replace(last, channel=last.channel + last.channels, channels=view.channels) == view:
            joined[-1] = replace(last, channels=last.channels + view.channels)
        else:
            joined.append(view)
    return joined


def _reads_concat(state: _Pass, node: Node) -> bool:
    return any(state.node(view).op == "concat" for view in node.operands)


def _split_operands(state: _Pass, node: Node) -> Node:
    """A convolution that reads the operands of concatenations, several windows on one node through one operand."""
    taps, operands = [], []
    for number, view in enumerate(node.operands[: node.num_tap_operands]):
        own = [tap for tap in node.taps if tap.operand == number]
        windows: dict[View, list[tuple[View, int]]] = {}
        first = 0
        for piece in _pieces(state, view):
            windows.setdefault(replace(piece, channel=0, channels=0), []).append((piece, first))
            first += piece.channels
        for parts in windows.values():
            channel = min(piece.channel for piece, _ in parts)
            channels = max(piece.channel + piece.channels for piece, _ in parts) - channel
            operands.append(replace(parts[0][0], channel=channel, channels=channels))
            for tap in own:
                weight = torch.zeros(channels, node.channels, dtype=torch.float64)
                for piece, start in parts:
                    place = slice(piece.channel - channel, piece.channel - channel + piece.channels)
                    weight[place] += tap.weight[start : start + piece.channels]
                if bool((weight != 0).any()):
                    taps.append(Tap(len(operands) - 1, tap.row, tap.col, weight))
    extras = node.operands[node.num_tap_operands :]
    return with_taps(node, operands, taps, extras)


def _merge_concat_elu(state: _Pass, node: Node) -> View:
    """`elu([x, -x])` is one function, which reads `x` once."""
    if node.op == "pointwise" and node.function == "elu" and node.scalars == (1.0,):
        concat = state.node(node.operands[0])
        if concat.op == "concat" and is_whole(node.operands[0], concat) and len(concat.operands) % 2 == 0:
            half = len(concat.operands) // 2
            pairs = list(zip(concat.operands[:half], concat.operands[half:], strict=True))
            if all(_is_negated(state, *pair) for pair in pairs):
                return state.emit(_concat_elu(state, node, concat.operands[:half]))
    return state.emit(node)


def _is_negated(state: _Pass, view: View, negated: View) -> bool:
    """Whether `negated` is `-view`."""
    neg = state.node(negated)
    if neg.op != "pointwise" or neg.function != "neg":
        return False
    # -0 is 0, so the padding of either is that of the other.
    return compose(negated, neg.operands[0]) == view


def _concat_elu(state: _Pass, node: Node, views: Sequence[View]) -> Node:
    """concat_elu of views, one after another."""
    if len(views) > 1:
        channels = sum(view.channels for view in views)
        source = state.emit(
            replace(node, op="concat", function="", scalars=(), operands=list(views), channels=channels)
        )
    else:
        source = views[0]
    return replace(node, function="concat_elu", scalars=(), operands=[source])


def _push_negation(state: _Pass, node: Node) -> View:
    """`-[x, y]` is `[-x, -y]`, so that `elu([x, y, -x, -y])` is found."""
    return _push_through_concat(state, node) if node.function == "neg" else state.emit(node)


def _push_through_concat(state: _Pass, node: Node) -> View:
    """A function of a concatenation is computed on its operands, so that whoever reads it can read them."""
    if node.op != "pointwise" or len(node.operands) != 1 or node.scale is not None:
        return state.emit(node)
    (view,) = node.operands
    pieces = _join(_pieces(state, view))
    if len(pieces) == 1:
        return state.emit(replace(node, operands=pieces))
    doubled = node.function == "concat_elu"
    results = [
        state.emit(replace(node, operands=[piece], channels=piece.channels * (2 if doubled else 1))) for piece in pieces
    ]
    if doubled:
        sizes = [piece.channels for piece in pieces]
        positive = [replace(result, channels=size) for result, size in zip(results, sizes, strict=True)]
        negative = [replace(v, channel=size) for v, size in zip(positive, sizes, strict=True)]
        results = [*positive, *negative]
    return state.emit(Node("concat", node.channels, node.height, node.width, results, node.module))


def _crop_convs(state: _Pass, node: Node) -> View:
    """A convolution whose only reader crops it is computed on the cropped grid."""
    operands = []
    for view in node.operands:
        conv = state.owned_in_part(view, "conv")
        if conv is not None and view.rect == (0, view.height, 0, view.width) and view.channels == conv.channels:
            view = state.emit(_cropped(conv, view))
        operands.append(view)
    return state.emit(replace(node, operands=operands))


def _cropped(conv: Node, view: View) -> Node:
    down, right = view.row * conv.stride[0], view.col * conv.stride[1]
    taps = [replace(tap, row=tap.row + down, col=tap.col + right) for tap in conv.taps]
    extras = [compose(replace(view, channels=v.channels), v) for v in conv.operands[conv.num_tap_operands :]]
    operands = [*conv.operands[: conv.num_tap_operands], *extras]
    return replace(conv, height=view.height, width=view.width, taps=taps, operands=operands)


def _drop_padding(state: _Pass, node: Node) -> View:
    """Taps that read only padding, as wide kernels on small images do, go; other such operands become zeros."""
    outside = {(read.operand, read.tap) for read in reads(node) if not _reads_anything(read)}
    if not outside:
        return state.emit(node)
    if node.op != "conv":
        zeros = [
            state.emit(_zeros(view.channels, node)) if (number, -1) in outside else view
            for number, view in enumerate(node.operands)
        ]
        return state.emit(replace(node, operands=zeros))
    taps = [tap for number, tap in enumerate(node.taps) if (tap.operand, number) not in outside]
    plain = range(node.num_tap_operands, len(node.operands))
    extras = [node.operands[number] for number in plain if (number, -1) not in outside]
    conv = with_taps(node, node.operands, taps, extras)
    return state.emit(conv if conv.operands else _constant(conv))


def _reads_anything(read: Read) -> bool:
    return bool((read.rows >= 0).any() and (read.cols >= 0).any())


def _zeros(channels: int, reader: Node) -> Node:
    data = torch.zeros(1, 1, 1, channels, dtype=torch.float64)
    return Node("constant", channels, reader.height, reader.width, module=reader.module, data=data)


def _fold_affine(state: _Pass, node: Node) -> View:
    """A constant factor and shift of a convolution or of another affine map go into that."""
    if node.op != "pointwise" or node.function != "affine":
        return state.emit(node)
    (view,) = node.operands
    conv = state.owned(view, "conv")
    if conv is not None and len(conv.operands) == conv.num_tap_operands:
        taps = [replace(tap, weight=tap.weight * node.scale) for tap in conv.taps]
        bias = node.shift if conv.bias is None else conv.bias * node.scale + node.shift
        return state.emit(replace(conv, taps=taps, bias=bias, module=conv.module))
    inner = state.owned(view, "pointwise", "affine")
    if inner is not None:
        scale, shift = inner.scale * node.scale, inner.shift * node.scale + node.shift
        return state.emit(replace(inner, scale=scale, shift=shift))
    if bool((node.scale == 1).all()) and bool((node.shift == 0).all()):
        return view
    return state.emit(node)


def _merge_pairs(state: _Pass, node: Node) -> View:
    """Gates become one function, and what is added to a convolution becomes its operand."""
    if node.op != "pointwise":
        return state.emit(node)
    if node.function == "mul":
        for a, b in (node.operands, node.operands[::-1]):
            sigmoid = state.owned(b, "pointwise", "sigmoid")
            if sigmoid is not None:
                tanh = state.owned(a, "pointwise", "tanh")
                first = a if tanh is None else tanh.operands[0]
                function = "sigmoid_gate" if tanh is None else "gate"
                return state.emit(replace(node, function=function, operands=[first, sigmoid.operands[0]]))
    if node.function == "add":
        for a, b in (node.operands, node.operands[::-1]):
            conv = state.owned(a, "conv")
            if conv is not None and b.node != a.node:
                return state.emit(_add_to_conv(state, conv, b))
    return state.emit(node)


def _add_to_conv(state: _Pass, conv: Node, view: View) -> Node:
    """A convolution plus a view; where that is a convolution of the same stride, both in one."""
    other = state.owned(view, "conv")
    operands, extras = conv.operands[: conv.num_tap_operands], conv.operands[conv.num_tap_operands :]
    if other is None or (other.stride, other.inverse_stride) != (conv.stride, conv.inverse_stride):
        return replace(conv, operands=[*conv.operands, view])
    shifted = [replace(tap, operand=tap.operand + len(operands)) for tap in other.taps]
    bias = _sum(conv.bias, other.bias)
    merged = replace(conv, bias=bias)
    extras = [*extras, *other.operands[other.num_tap_operands :]]
    return with_taps(merged, [*operands, *other.operands[: other.num_tap_operands]], [*conv.taps, *shifted], extras)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _remove_duplicates() -> Rule:
    """A rule that computes each function of the same operands once."""
    seen: dict[tuple, View] = {}

    def rule(state: _Pass, node: Node) -> View:
        if node.op != "pointwise" or node.scale is not None:
            return state.emit(node)
        key = (node.function, node.scalars, *node.operands)
        if key not in seen:
            seen[key] = state.emit(node)
        return seen[key]

    return rule
