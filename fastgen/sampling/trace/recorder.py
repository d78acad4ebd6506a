"""Follows the image and the condition through the operators of one run of the network.

A dispatch mode sees every ATen operator with its real tensors. Each tensor that depends on the image has a `Value`,
found by the tensor's identity; an operator that works in place gives tensors new values, and memory that is overwritten
through one tensor makes the others that share it stale. Operators that depend on the condition (labels, usually) but
not on the image are kept on a `Tape`, which runs them again for other conditions.

`torch.func.functionalize` would follow the writes in place, but a network under it may not use an `autograd.Function`
of the older style, write the image into a buffer, or call `tolist()`, and `numpy()` of its tensors reads memory that
was never written (torch 2.13). Here all of that runs as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastgen.sampling.program import Builder, Graph
from fastgen.sampling.trace.rules import COMPOSED, CONDITIONAL, RULES, why_not
from fastgen.sampling.trace.value import (
    BATCH,
    Conditional,
    Value,
    add,
    align,
    constant_data,
    constant_like,
    pad,
    reshape,
)

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd

# Arguments that say how a result is stored, not what it is; a change of dtype shows in the result.
IGNORED = {"dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format"}


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


@dataclass
class Stale:
    """Stands for the value of a tensor that must not be read; the reason completes "reads a tensor ..."."""

    reason: str


@dataclass
class Entry:
    """A tensor that depends on the image. Holding it keeps its memory, and so its identity, from being used again."""

    tensor: Tensor
    value: Value | Stale


class Parent(NamedTuple):
    """How a view was made: it is the `index`th result of `function(tensor, *args, **kwargs)`."""

    view: Tensor
    tensor: Tensor
    function: Callable
    args: tuple
    kwargs: dict
    index: int


class Recorder(TorchDispatchMode):
    """Follows the image and the condition through the operators of one run."""

    def __init__(self, builder: Builder, condition: Sequence[Tensor], dtype: torch.dtype):
        super().__init__()
        self.builder, self.dtype = builder, dtype
        self.tape = Tape(condition)
        self._entries: dict[int, Entry] = {}
        self._by_storage: dict[int, list[Entry]] = defaultdict(list)
        # Memory of constants that was overwritten with what depends on the condition.
        self._conditional_storages: set[int] = set()
        # How each view was made, by the identity of the view.
        self._parents: dict[int, Parent] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing here is compiled, and asking the compiler to skip it would import it: seconds before the first sample.
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        entries = [self._find(leaf, function) for leaf in leaves]
        if any(entry is not None for entry in entries):
            return self._follow(function, args, kwargs)
        if any(self.tape.key(leaf) is not None for leaf in leaves):
            results = self._run_conditional(function, args, kwargs)
        else:
            results = function(*args, **kwargs)
        self._remember_view(function, args, kwargs, results)
        return results

    def _run_conditional(self, function, args, kwargs):
        target = _written(function, args)
        if target is not None and self.tape.key(target) is None:
            if id(target) in self._parents:
                self.builder.refuse(f"{_name(function)} writes what depends on the condition into part of a tensor")
            self._conditional_storages.add(_storage(target))
        return self.tape.run(function, args, kwargs)

    def track(self, tensor: Tensor, value: Value | Stale) -> None:
        """Notes the value of a tensor."""
        entry = self._entries.get(id(tensor))
        if entry is None:
            entry = self._entries[id(tensor)] = Entry(tensor, value)
            self._by_storage[_storage(tensor)].append(entry)
        entry.value = value

    def value(self, tensor: Tensor) -> Value | None:
        """The value of a tensor, None if it does not depend on the image."""
        entry = self._find(tensor, None)
        return None if entry is None else entry.value

    def _find(self, tensor: Tensor, function: Callable | None) -> Entry | None:
        """The entry of a tensor that `function` reads, None if it does not depend on the image."""
        entry = self._entries.get(id(tensor))
        if self.tape.key(tensor) is None and _storage(tensor) in self._conditional_storages:
            self.builder.refuse(f"{_name(function)} reads a tensor that was made depend on the condition in place")
        if entry is None:
            # The same memory may come as another tensor object, which no operator announced.
            others = self._by_storage.get(_storage(tensor), ())
            entry = next((other for other in others if _same_place(other.tensor, tensor)), None)
            if entry is None and any(_overlap(other.tensor, tensor) for other in others):
                self.builder.refuse(f"{_name(function)} reads a tensor that was made depend on the image in place")
        if entry is not None and isinstance(entry.value, Stale):
            self.builder.refuse(f"{_name(function)} reads a tensor {entry.value.reason}")
        return entry

    def _follow(self, function, args, kwargs):
        name = _name(function)
        base = function._schema.name.removeprefix("aten::")
        if kwargs.get("out") is not None:
            self.builder.refuse(f"no rule for {name} with out=")
        target = _written(function, args)
        operator = base.removesuffix("_") if target is not None else base
        if operator in COMPOSED:
            with self:
                made = COMPOSED[operator](*args, **kwargs)
            if target is None:
                return made
            results = function(*args, **kwargs)
            self._overwrite(target, self.value(made), name)
            return results
        rule = RULES.get(operator)
        if base.endswith("_like") or base.startswith("new_"):
            if base.startswith("rand"):
                self.builder.refuse(f"{name} makes the network random")
            return function(*args, **kwargs)
        fill = base in ("fill_", "zero_", "copy_")
        if rule is None and not fill and function.has_kernel_for_dispatch_key(COMPOSITE):
            # Usually taken apart before it comes here; not where the network's own tensors are inference tensors.
            with self:
                return function.decompose(*args, **kwargs)
        if rule is None and not fill:
            self.builder.refuse(f"{name} has no one-pixel rule (it may mix positions)")
        conditional = any(self.tape.key(leaf) is not None for leaf in tree_flatten((args, kwargs))[0])
        if conditional and operator not in CONDITIONAL:
            self.builder.refuse(f"no rule for {name} of the image and the condition")
        # Taken before the operator runs, because it may work in place.
        symbolic = tree_map(self._symbol, (args, kwargs))
        results = function(*args, **kwargs)
        if target is not None:
            value = self._filled(target, symbolic[0]) if fill else self._apply(name, rule, target, *symbolic)
            self._check_result(name, target, value)
            self._overwrite(target, value, name)
            return results
        values = self._apply(name, rule, results, *symbolic)
        for tensor, value in zip(_listed(results), _listed(values), strict=True):
            if value is not None:
                self._check_result(name, tensor, value)
            self.track(tensor, value or Stale(f"that {name} returns beside its result"))
        self._remember_view(function, args, kwargs, results)
        return results

    def _symbol(self, leaf):
        if not isinstance(leaf, Tensor):
            return leaf
        entry = self._entries.get(id(leaf)) or self._find(leaf, None)
        if entry is not None:
            return entry.value
        key = self.tape.key(leaf)
        # An in-place operator may change a constant after it was read.
        return Conditional(leaf, key) if key is not None else leaf.detach().clone()

    def _apply(self, name: str, rule: Callable, results, args, kwargs):
        shapes = [tuple(result.shape) for result in _listed(results)]
        options = {key: value for key, value in kwargs.items() if key not in IGNORED}
        positional = (self.builder, shapes if isinstance(results, list | tuple) else shapes[0], *args)
        if reason := why_not(rule, positional, options):
            self.builder.refuse(f"no rule for {name} {reason}")
        return rule(*positional, **options)

    def _check_result(self, name: str, tensor: Tensor, value: Value) -> None:
        if tensor.dtype != self.dtype:
            self.builder.refuse(f"{name} converts the image from {self.dtype} to {tensor.dtype}")
        if value.shape != tuple(tensor.shape):
            self.builder.refuse(f"the rule of {name} gives shape {list(value.shape)} for {list(tensor.shape)}")

    # In-place operators.

    def _filled(self, target: Tensor, args) -> Value:
        """The value of `target` after `copy_`, `fill_` or `zero_`, which have already run."""
        source = args[1] if len(args) > 1 else None
        if isinstance(source, Value):
            template = Value(source.view, ((),) * (target.dim() - len(source.dims)) + source.dims)
            if template.shape != tuple(target.shape):
                self.builder.refuse("no rule for copying the image into a larger tensor")
            return template
        template = self.value(target)
        return constant_like(self.builder, target.detach().clone(), template)

    def _overwrite(self, target: Tensor, value: Value, name: str) -> None:
        """Gives `target` a new value, works out what the tensors that it is a view of become, and marks all others."""
        changed, written = [(target, value)], target
        while (link := self._parents.get(id(written))) is not None:
            value = self._scatter(link, value)
            changed.append((link.tensor, value))
            written = link.tensor
        stale = Stale(f"whose memory {name} in {self.builder.module() or '(model)'} overwrote")
        for entry in self._by_storage[_storage(target)]:
            if _overlap(entry.tensor, target):
                entry.value = stale
        for tensor, value in changed:
            self.track(tensor, value)
            for entry in self._by_storage[_storage(target)]:
                if _same_place(entry.tensor, tensor):
                    entry.value = value

    def _scatter(self, link: Parent, value: Value) -> Value:
        """The value of a tensor after `value` was written into a view of it."""
        base, parent = link.function._schema.name.removeprefix("aten::"), link.tensor
        if base in ("alias", "detach"):
            return value
        if base not in ("slice", "select", "split", "split_with_sizes", "unbind"):
            self.builder.refuse(f"no rule for writing in place through aten.{base}")
        inside = torch.zeros(parent.shape, dtype=torch.float64, device=parent.device)
        _listed(link.function(inside, *link.args, **link.kwargs))[link.index].fill_(1)
        # Exactly one dimension is written in part.
        covered = [inside.movedim(dim, 0).flatten(1).amax(1).nonzero()[:, 0].tolist() for dim in range(inside.dim())]
        dim = next((dim for dim, rows in enumerate(covered) if len(rows) < parent.shape[dim]), None)
        if dim is None:
            return reshape(self.builder, value, parent.shape)
        first, last = covered[dim][0], covered[dim][-1]
        if last - first + 1 != len(covered[dim]):
            self.builder.refuse("no rule for writing in place with a step")
        value = reshape(self.builder, value, [*parent.shape[:dim], last - first + 1, *parent.shape[dim + 1 :]])
        placed = pad(self.builder, value, dim, first, parent.shape[dim] - last - 1)
        old = self.value(parent)
        if old is None:
            rest = parent.detach().double() * (1 - inside)
            if not bool((rest != 0).any()):
                return placed
            (view, data), dims = align(self.builder, [placed, rest], parent.shape)
            constant = self.builder.constant(data[None], view.height, view.width)
            return Value(self.builder.pointwise("add", [view, constant]), dims)
        (view, mask), dims = align(self.builder, [old, 1 - inside], parent.shape)
        mask = self.builder.constant(mask[None], view.height, view.width)
        kept = Value(self.builder.pointwise("mul", [view, mask]), dims)
        return add(self.builder, kept, placed)

    def _remember_view(self, function, args, kwargs, results) -> None:
        if args and isinstance(args[0], Tensor):
            for index, result in enumerate(_listed(results)):
                if isinstance(result, Tensor) and result is not args[0] and _storage(result) == _storage(args[0]):
                    self._parents[id(result)] = Parent(result, args[0], function, args[1:], kwargs, index)


def _name(function: Callable | None) -> str:
    return "the end of the network" if function is None else str(function)


def _listed(results) -> list:
    return list(results) if isinstance(results, list | tuple) else [results]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _same_place(a: Tensor, b: Tensor) -> bool:
    return (
        _storage(a) == _storage(b)
        and a.storage_offset() == b.storage_offset()
        and a.shape == b.shape
        and a.stride() == b.stride()
    )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage share any element."""
    if _storage(a) != _storage(b) or not a.numel() or not b.numel():
        return False
    touched = np.zeros(a.untyped_storage().nbytes() // a.element_size(), bool)
    touched[_offsets(a)] = True
    return bool(touched[_offsets(b)].any())


def _offsets(tensor: Tensor) -> np.ndarray:
    offsets = np.full(1, tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
    return offsets


def _written(function: Callable, args: tuple) -> Tensor | None:
    """The tensor that an operator writes in place, None if it writes none."""
    for argument, value in zip(function._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return value
    return None
