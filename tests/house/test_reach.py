"""Every module is reached by a test, and by the product itself.

A test reaches what it imports, and what that imports inside its own room: `edge/store/schema.py`
may be tested through `edge/store/store.py`, never through `app`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.house import tree

_ENTRIES = ("x0tta6bl4.__main__", "x0tta6bl4.app", "x0tta6bl4.sdk")


def untested(modules: Iterable[tree.Module]) -> list[str]:
    """Modules of the product that no test imports."""
    modules = tuple(modules)
    known = {module.name: module for module in modules if module.in_source}
    reached: set[str] = set()
    todo = [
        name
        for module in modules
        if not module.in_source
        for name in tree.imports(module)
        if name in known
    ]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            room = _room(known[name])
            todo += [
                other
                for other in tree.imports(known[name])
                if other in known and _room(known[other]) == room
            ]
    return sorted(
        name
        for name, module in known.items()
        if name not in reached and module.tree.body and not _found_by_path(module)
    )


def _room(module: tree.Module) -> Path:
    return module.path.parent


def _found_by_path(module: tree.Module) -> bool:
    """Alembic looks for migrations in their directory; the store's tests run them all."""
    return "migrations" in module.path.parts


def unused(modules: Iterable[tree.Module]) -> list[str]:
    """Files that nobody imports, from the entries of the product and from any test on."""
    modules = tuple(modules)
    known = {module.name: module for module in modules}
    todo = [module.name for module in modules if _is_entry(module)]
    used: set[str] = set()
    while todo:
        name = todo.pop()
        if name in known and name not in used:
            used.add(name)
            todo += tree.imports(known[name])
    return sorted(
        name
        for name, module in known.items()
        if name not in used and module.tree.body and not _found_by_path(module)
    )


def _is_entry(module: tree.Module) -> bool:
    if not module.in_source:
        return (
            module.path.name.startswith("test_")
            or module.path.name == "conftest.py"
            or "peers" in module.path.parts  # Programs, run in environments of their own.
        )
    return module.name == "x0tta6bl4" or module.name.startswith(_ENTRIES)


def test_every_module_is_reached_by_a_test() -> None:
    found = [name for name in untested(tree.modules()) if name not in tree.exceptions()["reach"]]
    assert not found, f"no test imports: {found}"


def test_no_file_is_dead() -> None:
    found = unused(tree.modules())
    if not (tree.SOURCE / "app" / "cli" / "main.py").exists():
        found = [name for name in found if name.startswith("tests.")]
    assert not found, f"nobody uses: {found}"


def test_exceptions_are_needed() -> None:
    unneeded = set(tree.exceptions()["reach"]) - set(untested(tree.modules()))
    assert not unneeded, f"remove from exceptions.toml: {sorted(unneeded)}"


@pytest.fixture
def small() -> list[tree.Module]:
    files = {
        "src/x0tta6bl4/app/cli.py": "from x0tta6bl4.edge.store import store",
        "src/x0tta6bl4/edge/store/store.py": "from x0tta6bl4.edge.store.schema import T",
        "src/x0tta6bl4/edge/store/schema.py": "T = 1",
        "src/x0tta6bl4/edge/old.py": "x = 1",
        "tests/edge/test_store.py": "from x0tta6bl4.edge.store.store import Store",
        "tests/fakes/clock.py": "x = 1",
    }
    return [tree.parse(Path(path), code) for path, code in files.items()]


def test_a_module_without_a_test_is_found(small: list[tree.Module]) -> None:
    assert untested(small) == ["x0tta6bl4.app.cli", "x0tta6bl4.edge.old"]


def test_a_dead_file_is_found(small: list[tree.Module]) -> None:
    assert unused(small) == ["tests.fakes.clock", "x0tta6bl4.edge.old"]
