"""The calls that ruff refuses, each with its replacement."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.house import tree


def ruff(code: str, path: str) -> str:
    """What ruff says about this code, were it in that file."""
    answer = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise",
         f"--stdin-filename={path}", "-"],
        cwd=tree.ROOT, input=code, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return answer.stdout


@pytest.mark.parametrize(
    ("code", "rule", "says"),
    [
        ("import time\n\nx = time.time()\n", "TID251", "ClockSet"),
        ("import random\n\nx = random.random()\n", "TID251", "named stream"),
        ("from random import choice\n\nx = choice([1])\n", "TID251", "named stream"),
        ("from unittest.mock import Mock\n\nx = Mock()\n", "TID251", "tests/fakes"),
        ("from unittest import mock\n\nx = mock.Mock()\n", "TID251", "tests/fakes"),
        ("import pickle\n\nx = pickle.loads(b'')\n", "TID251", "msgspec"),
        ("import asyncio\n\nx = asyncio.ensure_future(y())\n", "TID251", "TaskGroup"),
        ("try:\n    x = 1\nexcept Exception:\n    x = 2\n", "BLE001", ""),
        ("from . import x\n\ny = x\n", "TID252", ""),
    ],
)
def test_a_banned_call_is_refused_with_its_replacement(code: str, rule: str, says: str) -> None:
    for path in ("src/x0tta6bl4/core/links/liveness.py", "tests/core/test_x.py"):
        answer = ruff(code, path)
        assert rule in answer
        assert says in answer


def test_what_replaces_it_is_accepted() -> None:
    code = '"""Doc."""\n\nimport random\n\nx = random.Random("7/links/a").random()\n'
    assert "All checks passed" in ruff(code, "src/x0tta6bl4/core/links/liveness.py")
