"""The condition of a network (labels, usually), and what leads from it to constants of the program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastgen.sampling.align import constant_data
from fastgen.sampling.program import Graph
from fastgen.sampling.value import BATCH

__all__ = ["Condition", "Tape", "condition_tensors", "example_condition"]

Condition = Tensor | Sequence[Tensor] | None


def condition_tensors(condition: Condition) -> list[Tensor]:
    """The tensors of a condition: none, one, or a sequence."""
    if condition is None:
        return []
    tensors = [condition] if isinstance(condition, Tensor) else list(condition)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TypeError("condition: expected a tensor or a sequence of tensors, each with one row per image")
    return tensors


def example_condition(condition: Condition) -> Condition:
    """The first rows of a condition, repeated if need be to the traced batch of two."""

    def rows(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or len(tensor) == 0:
            raise ValueError(f"condition: expected one row per image, got shape {tuple(tensor.shape)}")
        return tensor[torch.arange(BATCH) % len(tensor)].clone()

    tensors = [rows(tensor) for tensor in condition_tensors(condition)]
    return None if condition is None else tensors[0] if isinstance(condition, Tensor) else tuple(tensors)


class Tape:
    """The operators that lead from the condition to constants of the program, to be run again for other conditions."""

    def __init__(self, inputs: Sequence[Tensor]):
        self._keys: dict[int, int] = {}
        self._kept: list[Tensor] = []
        self._calls: list[tuple[Callable, Any, Any, list[int]]] = []
        self._inputs = [self._add(tensor) for tensor in inputs]

    def _add(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        self._keys[id(tensor)] = len(self._kept) - 1
        return len(self._kept) - 1

    def key(self, tensor: Any) -> int | None:
        """The number of a tensor on the tape, None for any other."""
        return self._keys.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def run(self, function: Callable, args: Any, kwargs: Any) -> Any:
        """Runs a call and appends it to the tape.

        Tensors that are not on the tape are copied, so that training on does not change them.
        """
        leaves, spec = tree_flatten((args, kwargs))
        slots = []
        for leaf in leaves:
            key = self.key(leaf)
            slots.append((key, leaf.detach().clone() if key is None and isinstance(leaf, Tensor) else leaf))
        results = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_flatten(results)[0] if isinstance(leaf, Tensor)]
        known = [self.key(output) for output in outputs]
        keys = [self._add(output) if key is None else key for key, output in zip(known, outputs, strict=True)]
        self._calls.append((function, slots, spec, keys))
        return results

    @torch.inference_mode(False)
    @torch.no_grad()
    def replay(self, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """All tensors of the tape for another condition of the traced batch size."""
        tensors = dict(zip(self._inputs, inputs, strict=True))
        for function, slots, spec, keys in self._calls:
            # A constant may be written in place; the tape keeps it as it was.
            constants = [leaf.clone() if isinstance(leaf, Tensor) else leaf for _, leaf in slots]
            leaves = [leaf if key is None else tensors[key] for (key, _), leaf in zip(slots, constants, strict=True)]
            args, kwargs = tree_unflatten(leaves, spec)
            results = function(*args, **kwargs)
            outputs = [leaf for leaf in tree_flatten(results)[0] if isinstance(leaf, Tensor)]
            tensors.update(zip(keys, outputs, strict=True))
        return tensors

    def constants(self, program: Graph, condition: Condition) -> dict[int, Tensor]:
        """Data of the conditioned constants of a program, {node: [batch, rows, cols, channels]}.

        Raises:
            ValueError: the condition does not have the tensors of the one that was traced, or they differ in rows.
        """
        tensors = condition_tensors(condition)
        if len(tensors) != len(self._inputs):
            raise ValueError(f"condition: the network was traced with {len(self._inputs)} tensors, got {len(tensors)}")
        nodes = program.conditioned
        if not nodes:
            return {}
        batch = len(tensors[0])
        chunks: dict[int, list[Tensor]] = {node: [] for node in nodes}
        for start in range(0, batch, BATCH):
            rows = torch.arange(start, start + BATCH).clamp(max=batch - 1)
            replayed = self.replay([tensor[rows] for tensor in tensors])
            for node in nodes:
                recipe = program.nodes[node].recipe
                data = constant_data(replayed[recipe.key], recipe.dims)
                chunks[node].append(data.expand(BATCH, *data.shape[1:]))
        return {node: torch.cat(pieces)[:batch] for node, pieces in chunks.items()}
