"""Core and wire never touch the world: they import from a short list and call no door outside."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.house import tree

# No I/O, clock, thread, log or environment; `random` for its class only (ruff bans the rest).
PURE = frozenset(
    """
    __future__ abc array base64 binascii bisect collections copy dataclasses enum fractions
    functools hashlib heapq hmac ipaddress itertools keyword math operator random re statistics
    string struct textwrap types typing unicodedata zlib
    msgspec
    """.split()
)
DOORS = frozenset({"__import__", "breakpoint", "eval", "exec", "input", "open", "print"})


def impure(modules: Iterable[tree.Module]) -> list[str]:
    """Imports and calls of core and wire that reach outside."""
    found: list[str] = []
    for module in modules:
        if not module.name.startswith(("x0tta6bl4.core", "x0tta6bl4.wire")):
            continue
        for name in sorted(tree.imports(module)):
            first = name.partition(".")[0]
            if first == "x0tta6bl4":
                continue
            if first not in PURE and name == first:
                found.append(f"{module.path}: imports {name}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in DOORS:
                    found.append(f"{module.path}:{node.lineno}: calls {node.func.id}()")
            elif isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncWith):
                found.append(f"{module.path}:{node.lineno}: is async")
            elif isinstance(node, ast.Global):
                found.append(f"{module.path}:{node.lineno}: keeps state in the module")
    return found


def test_core_and_wire_are_pure() -> None:
    assert not impure(tree.modules())


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio",
        "import logging.handlers",
        "import os",
        "import secrets",
        "import socket",
        "import threading",
        "import time",
        "from cryptography import x509",
        "from datetime import datetime",
        "async def f(): ...",
        "open('/etc/passwd')",
        "def f():\n    global x",
    ],
)
def test_a_way_out_is_found(code: str) -> None:
    assert impure([tree.parse(Path("src/x0tta6bl4/core/links/liveness.py"), code)])
    assert not impure([tree.parse(Path("src/x0tta6bl4/edge/x.py"), code)])
