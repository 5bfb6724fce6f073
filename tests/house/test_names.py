"""Names that say nothing about what a thing is are not names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from tests.house import tree

_BANNED = {
    "base": "say what it is a root of",
    "common": "put it in the room whose idea it is",
    "engine": "say what it does",
    "helper": "say what it does",
    "helpers": "say what each does",
    "integration": "name the outside thing",
    "manager": "say what it decides, holds or moves",
    "misc": "put each in its room",
    "orchestrator": "say what it starts, plans or heals",
    "util": "put it in the room whose idea it is",
    "utils": "put each in the room whose idea it is",
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def empty_names(modules: Iterable[tree.Module]) -> dict[str, str]:
    """Modules, packages and classes with a banned word in their name, each with its advice."""
    found: dict[str, str] = {}
    for module in modules:
        for word in _words("_".join(module.path.with_suffix("").parts)):
            if word in _BANNED:
                found[str(module.path)] = _BANNED[word]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                for word in _words(node.name):
                    if word in _BANNED:
                        found[f"{module.path}::{node.name}"] = _BANNED[word]
    return found


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def test_no_name_is_empty() -> None:
    allowed = tree.exceptions()["names"]
    found = {
        what: advice
        for what, advice in empty_names(tree.modules()).items()
        if what not in allowed
        and not (what.startswith("tests/") and Path(what).stem.startswith("test_"))
    }
    assert not found, "\n".join(f"{what}: {advice}" for what, advice in found.items())


def test_exceptions_are_needed() -> None:
    paths = {str(module.path) for module in tree.modules()}
    found = empty_names(tree.modules())
    unneeded = [
        what
        for what in tree.exceptions()["names"]
        if what.partition("::")[0] in paths and what not in found
    ]
    assert not unneeded, f"remove from exceptions.toml: {unneeded}"


def test_empty_names_are_found() -> None:
    code = "class SessionManager: ...\nclass HTTPUtil: ...\nclass Database: ...\n"
    module = tree.parse(Path("src/x0tta6bl4/edge/base.py"), code)
    assert set(empty_names([module])) == {
        "src/x0tta6bl4/edge/base.py",
        "src/x0tta6bl4/edge/base.py::SessionManager",
        "src/x0tta6bl4/edge/base.py::HTTPUtil",
    }
