"""Pages whose code runs: a block names its file, a text block is what that file says.

    ```python examples/asyncio/client.py        the file, word for word
    ```text examples/asyncio/client.py          its output

`refresh` writes both into a page.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 20.0
READY = "listening|[Rr]unning on"
"""What servers say when they take connections."""
_BLOCK = re.compile(r"^```(\w+) (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> dict[str, str]:
    """Named blocks of a page: name -> text."""
    found = [match.groups() for match in _BLOCK.finditer(page.read_text())]
    return {name: text for kind, name, text in found if kind == language}


def stale(page: Path) -> list[str]:
    """Files that differ from their blocks in the page."""
    return [
        name
        for name, text in blocks(page, "python").items()
        if not (ROOT / name).exists() or (ROOT / name).read_text() != text
    ]


def unnamed(page: Path) -> int:
    """Blocks of Python that nobody runs, as they name no file."""
    return len(re.findall(r"^```python\s*$", page.read_text(), re.MULTILINE))


@contextmanager
def running(
    name: str, *arguments: str, env: Mapping[str, str] | None = None, ready: str = READY
) -> Iterator[subprocess.Popen[str]]:
    """A file of the tree as a process, from the moment it says that it is ready; ended afterwards.

    Raises:
        AssertionError: it ends before.
    """
    with subprocess.Popen(
        command(name, *arguments),
        cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = ""
            while not re.search(ready, said):
                line = process.stdout.readline()
                said += line
                assert line, f"{name} ends:\n{said}"
            yield process
        finally:
            process.terminate()
            try:
                process.wait(TIMEOUT_S)
            finally:
                process.kill()


def output(name: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What a file of the tree prints; it has to end well within the time."""
    done = subprocess.run(
        command(name, *arguments),
        cwd=ROOT, env=env, text=True, capture_output=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{name}:\n{done.stdout}{done.stderr}"
    assert not done.stderr, done.stderr
    return done.stdout


def command(name: str, *arguments: str) -> Sequence[str]:
    """How a file of the tree is started: warnings are errors."""
    return (sys.executable, "-W", "error", str(ROOT / name), *arguments)


def refresh(page: Path, outputs: Mapping[str, str]) -> None:
    """Write files and outputs into the blocks of a page."""

    def renewed(match: re.Match[str]) -> str:
        kind, name, text = match.groups()
        if kind == "python":
            text = (ROOT / name).read_text()
        elif name in outputs:
            text = outputs[name]
        return f"```{kind} {name}\n{text}```"

    page.write_text(_BLOCK.sub(renewed, page.read_text()))
