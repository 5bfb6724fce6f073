"""The tutorial, to the letter: in an empty folder, block after block, as a newcomer types them."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "-- block --"
CLONE = "git clone https://example.org/x0tta6bl4.git x0tta6bl4"
WAIT_S = 20


def blocks() -> Iterator[tuple[str, str, str]]:
    """(language, word behind it, text) of each block."""
    for match in BLOCK.finditer(PAGE.read_text()):
        yield match[1], match[2], match[3]


def script() -> str:
    """The page as one script; what stands in the background ends with it."""
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    for number, (kind, about, text) in enumerate(blocks()):
        if kind == "python":
            lines += [f"cat > {about} <<'END_OF_FILE'\n{text}END_OF_FILE"]
        elif kind == "sh" and about.startswith("background"):
            log, ready = f"log.{number}", shlex.quote(about.split()[1])
            lines += [
                f"( exec {text.strip()} ) > {log} 2>&1 &",
                f"for i in $(seq {WAIT_S * 10}); do",
                f"  grep -q {ready} {log} && break; sleep 0.1",
                "done",
                f"grep -q {ready} {log} || {{ cat {log}; exit 1; }}",
            ]
        elif kind == "sh":
            lines += [f"echo '{MARK}'", text]
        else:
            assert kind == "text", f"a block of {kind} that nobody runs"
    return "\n".join(lines)


def expected() -> list[str]:
    """What each block that is not in the background should print; empty: nothing is said of it."""
    found: list[str] = []
    for kind, about, text in blocks():
        if kind == "sh" and not about:
            found.append("")
        elif kind == "text":
            found[-1] = text
    return found


def fits(said: str, page: str) -> bool:
    """Whether output is what the page shows; `…` stands for anything within a line."""
    if page == "…\n" or not page:
        return True
    lines = [
        "(?:.*\n)+?" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
        for line in page.splitlines()
    ]
    pattern = re.sub(r"(\\ )+", " +", "".join(lines)).replace(" +.*", " *.*")
    return re.fullmatch(pattern.replace(" +.*", " *.*"), said) is not None


def test_what_fits() -> None:
    assert fits("a 1 b\n", "a … b\n")
    assert not fits("a 1 c\n", "a … b\n")
    assert fits("x\ny\nz\n", "…\nz\n")
    assert not fits("x\ny\n", "…\nz\n")


@pytest.mark.timeout(180)
def test_every_block_does_what_the_page_says() -> None:
    text = script()
    assert CLONE in text
    text = text.replace(CLONE, f"ln -s {ROOT} x0tta6bl4")
    with tempfile.TemporaryDirectory(prefix="tut", dir="/tmp") as folder:
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, timeout=150, check=False,
        )  # fmt: skip
        logs = "".join(f"{x.name}:\n{x.read_text()}" for x in Path(folder).glob("log.*"))
        assert done.returncode == 0, done.stdout + logs
        said = done.stdout.split(f"{MARK}\n")[1:]
        for found, page in zip(said, expected(), strict=True):
            assert fits(found, page), f"said:\n{found}\nthe page:\n{page}\n{logs}"
