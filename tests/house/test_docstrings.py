"""Everything public says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.house import tree

# Said once, in the contract that every machine keeps (core/machine.py).
_SAID_ONCE = {"handle"}
_SILENT_DECORATORS = {"override", "overload", "setter", "deleter"}


def silent(modules: Iterable[tree.Module]) -> list[str]:
    """Public modules, classes and functions of the product without a docstring."""
    found: list[str] = []
    for module in modules:
        if not module.in_source or module.generated:
            continue
        empty_package = module.path.name == "__init__.py" and not module.tree.body
        if not empty_package and ast.get_docstring(module.tree) is None:
            found.append(str(module.path))
        found.extend(f"{module.path}::{name}" for name in _silent_in(module.tree, ""))
    return found


def _silent_in(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_") or (child.name in _SAID_ONCE and prefix):
            continue
        if _decorators(child) & _SILENT_DECORATORS:
            continue
        if ast.get_docstring(child) is None:
            yield f"{prefix}{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _silent_in(child, f"{prefix}{child.name}.")


def _decorators(node: ast.ClassDef | tree.Function) -> set[str]:
    names: set[str] = set()
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Attribute):
            names.add(decorator.attr)
        elif isinstance(decorator, ast.Name):
            names.add(decorator.id)
    return names


def test_everything_public_has_a_docstring() -> None:
    found = [name for name in silent(tree.modules()) if name not in tree.exceptions()["docstrings"]]
    assert not found, "no docstring:\n" + "\n".join(found)


def test_exceptions_are_needed() -> None:
    unneeded = set(tree.exceptions()["docstrings"]) - set(silent(tree.modules()))
    assert not unneeded, f"remove from exceptions.toml: {sorted(unneeded)}"


def test_silence_is_found() -> None:
    code = "class A:\n  def f(self): ...\n  def _g(self): ...\n  @override\n  def h(self): ...\n"
    assert silent([tree.parse(Path("src/x0tta6bl4/a.py"), code)]) == [
        "src/x0tta6bl4/a.py",
        "src/x0tta6bl4/a.py::A",
        "src/x0tta6bl4/a.py::A.f",
    ]
