"""A module is one idea: at most 600 lines; a function at most 70, its docstring not counted."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from tests.house import tree

MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70


def measure(modules: Iterable[tree.Module]) -> dict[str, int]:
    """Everything that is longer than the rule, with its length in lines."""
    long: dict[str, int] = {}
    for module in modules:
        if module.generated:
            continue
        if module.lines > MODULE_LINES_MAX:
            long[str(module.path)] = module.lines
        for name, function, _ in tree.functions(module.tree):
            lines = _lines(function)
            if lines > FUNCTION_LINES_MAX:
                long[f"{module.path}::{name}"] = lines
    return long


def _lines(function: tree.Function) -> int:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_nothing_is_longer_than_the_rule_or_its_exception() -> None:
    allowed = tree.exceptions()["size"]
    found = measure(tree.modules())
    longer = [
        f"{what}: {lines} lines, {allowed.get(what, {}).get('lines', 'no exception')} allowed"
        for what, lines in found.items()
        if lines > allowed.get(what, {}).get("lines", 0)
    ]
    assert not longer, "split it along its ideas:\n" + "\n".join(longer)


def test_exceptions_shrink_with_the_code() -> None:
    found = measure(tree.modules())
    slack = [
        f"{what}: {entry['lines']} allowed, {found.get(what, 0)} needed"
        for what, entry in tree.exceptions()["size"].items()
        if found.get(what, 0) < entry["lines"]
    ]
    assert not slack, "tighten exceptions.toml:\n" + "\n".join(slack)
    assert all(entry["reason"] for entry in tree.exceptions()["size"].values())


def test_long_code_is_found() -> None:
    body = "    x = 1\n" * FUNCTION_LINES_MAX
    code = f'class A:\n  def f(self):\n    """Doc.\n\n    More.\n    """\n{body}'
    module = tree.parse(Path("src/x0tta6bl4/a.py"), code + "\n" * MODULE_LINES_MAX)
    assert measure([module]) == {
        "src/x0tta6bl4/a.py": module.lines,
        "src/x0tta6bl4/a.py::A.f": FUNCTION_LINES_MAX + 1,
    }
