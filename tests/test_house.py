"""The rooms of docs/ARCHITECTURE.md hold: no circles, no imports upwards, and no private names of another room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up. Rooms of one floor may import one another as long as that makes no circle.
FLOORS = (
    {"_triton"},
    {"ops", "conformance"},
    {"nn", "sampling", "captured_loop", "schedulers"},
    {"data"},
    {"models", "gan", "inverse", "metrics", "density"},
    {"train"},
    {"cli", "bench"},
)
# These belong to no room: any may import them.
SHARED = {"__init__", "__main__", "device", "files", "remark"}
# Where each package lies that is installed under another name.
FOLDERS = {"_triton": "kernels/triton", "bench": "bench"}


class Import(NamedTuple):
    module: str
    target: str
    within_function: bool


def modules() -> dict[str, Path]:
    """Every module of the library by its name as it is installed."""
    found = {}
    folders = {"": ROOT / "fastgen", **{f".{name}": ROOT / folder for name, folder in FOLDERS.items()}}
    for prefix, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            # In a working copy the other folders may be linked into the package.
            if not prefix and parts[0] in FOLDERS:
                continue
            name = ".".join((f"fastgen{prefix}", *(parts[:-1] if parts[-1] == "__init__" else parts)))
            found[name] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[Import]:
    """The library's modules and names that a module imports when it runs: not those for type checkers alone."""

    def walk(node: ast.AST, within: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (Import(module, alias.name, within) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from (Import(module, f"{child.module}.{alias.name}", within) for alias in child.names)
            else:
                yield from walk(child, within or isinstance(child, (ast.FunctionDef, ast.Lambda)))

    for found in walk(ast.parse(MODULES[module].read_text()), False):
        if found.target.startswith("fastgen"):
            yield found


IMPORTS = [found for module in MODULES for found in imports(module)]


def module_of(target: str) -> str:
    """The module that an imported name is, or is in."""
    return target if target in MODULES else target.rpartition(".")[0]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def floor(module: str) -> int | None:
    name = room(module)
    if name in SHARED:
        return None
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_a_floor():
    for module in MODULES:
        floor(module)
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    for name in set().union(*FLOORS) - set(FOLDERS):
        assert f"fastgen/{name}" in text, name


def test_no_import_goes_upwards():
    found = set()
    for module, target, _ in IMPORTS:
        here, there = floor(module), floor(module_of(target))
        if here is not None and there is not None and there > here:
            found.add((module, module_of(target)))
    assert not found


def test_no_room_imports_private_names_of_another():
    found = set()
    for module, target, _ in IMPORTS:
        private = [part for part in target.split(".")[2:] if part.startswith("_") and not part.startswith("__")]
        if private and room(module) != room(module_of(target)):
            found.add((module, target))
    assert not found


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = set()

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            component = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.add(frozenset(component))

    for node in edges:
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("within_functions", [False, True], ids=["at the top", "within functions too"])
def test_no_modules_import_each_other(within_functions: bool):
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, target, within in IMPORTS:
        if module_of(target) in MODULES and (within_functions or not within):
            edges[module].add(module_of(target))
    for module, others in edges.items():
        others.discard(module)
    assert not circles(edges)


def test_every_folder_is_a_package():
    """A folder without `__init__.py` can be imported from a working copy and is missing in an installed library."""
    folders = {path.parent for path in (ROOT / "fastgen").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
