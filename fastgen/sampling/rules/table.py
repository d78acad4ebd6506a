"""The table of rules, by the name of the operator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastgen.sampling.value import Conditional, Value

__all__ = ["RULES", "Operand", "Shape", "rule", "why_not"]

Operand = Value | Tensor | Conditional | float
Shape = Sequence[int]

RULES: dict[str, Callable] = {}


def rule(*names: str) -> Callable[[Callable], Callable]:
    """Registers a rule for operators of these names, in every overload and in place.

    A rule that takes `name` is told by which name it was called. A parameter may be image-dependent if its annotation
    is `Value` (it must be), `Operand` or a sequence of these.
    """

    def register(function: Callable) -> Callable:
        takes_name = "name" in inspect.signature(function).parameters
        for name in names:
            RULES[name] = functools.partial(function, name=name) if takes_name else function
        return function

    return register


def why_not(rule: Callable, args: tuple, kwargs: dict) -> str | None:
    """Why a rule cannot take these arguments, None if it can."""
    signature = _signature(rule)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return "with these arguments"
    for name, argument in bound.arguments.items():
        annotation = str(signature.parameters[name].annotation)
        has_value = any(isinstance(leaf, Value) for leaf in tree_leaves(argument))
        if has_value and "Value" not in annotation and "Operand" not in annotation:
            return f"where {name} depends on the image"
        if annotation == "Value" and not isinstance(argument, Value):
            return f"where {name} does not depend on the image"
    return None


@functools.cache
def _signature(rule: Callable) -> inspect.Signature:
    return inspect.signature(rule)
