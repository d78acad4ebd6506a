"""Every public name documents itself: its arguments, the shapes of its tensors, what it raises, and its source."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

# Of the ops, tests/ops/test_contract.py asks for more.
ROOMS = ("data", "density", "gan", "inverse", "metrics", "models", "nn", "sampling", "schedulers")
# It sends the reader to another docstring, of ours or of the peer that it stands for.
REFERS = re.compile(r"\b(arguments|errors)\b[^.]*\b(as|of|see)\b", re.IGNORECASE)
# They mean what they mean all over PyTorch.
USUAL = {"device", "dtype"}
CITES = re.compile(r"\bet al\b|\((19|20)\d\d\)")


def public() -> Iterator[tuple[str, Any]]:
    for room in ROOMS:
        module = importlib.import_module(f"fastgen.{room}")
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if callable(value) and not (inspect.isclass(value) and issubclass(value, BaseException)):
                yield f"{room}.{name}", value


PUBLIC = dict(public())
each = pytest.mark.parametrize("name", PUBLIC)


def documentation(value: Any) -> str:
    """Its own docstring, and a constructor's."""
    constructor = vars(value).get("__init__") if inspect.isclass(value) else None
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return f"{own or ''}\n{getattr(constructor, '__doc__', None) or ''}"


def has_no_constructor(value: Any) -> bool:
    """A class without one has its parent's; a protocol is not made at all."""
    return inspect.isclass(value) and ("__init__" not in vars(value) or getattr(value, "_is_protocol", False))


def parameters(value: Any) -> dict[str, inspect.Parameter]:
    if has_no_constructor(value):
        return {}
    return dict(inspect.signature(value).parameters)


def code(value: Any) -> str:
    if has_no_constructor(value):
        return ""
    names = ("__init__", "__post_init__")
    functions = [vars(value)[name] for name in names if name in vars(value)] if inspect.isclass(value) else [value]
    try:
        return "".join(inspect.getsource(inspect.unwrap(function)) for function in functions)
    except OSError:
        # A dataclass's constructor has no source.
        return ""


@each
def test_every_argument_is_named(name: str):
    text = documentation(PUBLIC[name])
    assert text.strip(), "no docstring"
    missing = [p for p in parameters(PUBLIC[name]).keys() - USUAL if not re.search(rf"\b{p}\b", text)]
    assert not missing or REFERS.search(text), missing


@each
def test_tensors_have_their_shapes(name: str):
    takes = [p for p in parameters(PUBLIC[name]).values() if str(p.annotation).startswith("Tensor")]
    text = documentation(PUBLIC[name])
    assert not takes or "[" in text or re.search(r"\bshapes?\b", text, re.IGNORECASE)


@each
def test_what_is_raised_is_told(name: str):
    text = documentation(PUBLIC[name])
    if re.search(r"\braise (ValueError|TypeError)", code(PUBLIC[name])):
        assert "Raises:" in text or REFERS.search(text)


@each
def test_a_paper_is_a_source(name: str):
    text = documentation(PUBLIC[name])
    assert not CITES.search(text) or "Source:" in text
