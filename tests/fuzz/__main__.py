"""`python -m tests.fuzz [TARGET ...] [--seconds N]`: search for bytes that do what they must not.

Each target runs in a process of its own under atheris (`requirements/fuzz.txt`).  What it finds of
new paths goes to a folder that is thrown away, unless `--keep` adds some of it to the corpus,
which a test replays.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import search
from tests.fuzz.targets import SEEDS, TARGETS

CORPUS = Path(__file__).parent / "corpus"
INPUT_BYTES_MAX = 20_000
"""As long as the longest that a parser reads on, and more."""
HANG_S = 5
KEPT_MAX = 40
"""Inputs that one search adds to the corpus at most, and how long one may be."""
KEPT_BYTES_MAX = 2_048


def _run(name: str, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", search.__name__, name, *options]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, errors="replace")
    return done.returncode, done.stderr


def look(name: str, seconds: int, keep: bool) -> bool:
    """Search for so long; whether nothing was found."""
    with tempfile.TemporaryDirectory(prefix="x0-fuzz-") as folder:
        work, seeds = Path(folder, "work"), Path(folder, "seeds")
        work.mkdir()
        seeds.mkdir()
        for count, seed in enumerate((*SEEDS[name], *corpus(name))):
            (seeds / str(count)).write_bytes(seed)
        limits = f"-max_len={INPUT_BYTES_MAX}", f"-timeout={HANG_S}", f"-artifact_prefix={folder}/"
        status, said = _run(
            name, f"-max_total_time={seconds}", *limits, "-print_final_stats=1",
            str(work), str(seeds),
        )  # fmt: skip
        runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
        covered = re.findall(r"cov: (\d+)", said)
        print(
            f"{name}: {runs.group(1) if runs else '?'} inputs in {seconds} s,"
            f" {covered[-1] if covered else '?'} branches,"
            f" {'nothing found' if status == 0 else 'FOUND SOMETHING'}",
            flush=True,
        )
        if status:
            print(said[-3_000:])
            for found in Path(folder).glob("*-*"):
                print(found.name, found.read_bytes().hex())
        elif keep:
            _keep(work, name)
        return status == 0


def corpus(name: str) -> list[bytes]:
    """What was kept of searches: lines of hexadecimal digits."""
    path = CORPUS / f"{name}.hex"
    return [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []


def _keep(work: Path, name: str) -> None:
    """Add some of what a search has found, from the shortest to the longest."""
    found = sorted(
        (path.read_bytes() for path in work.iterdir()), key=lambda data: (len(data), data)
    )
    found = [data for data in found if 0 < len(data) <= KEPT_BYTES_MAX]
    kept = {*corpus(name), *found[:: 1 + len(found) // KEPT_MAX]}
    (CORPUS / f"{name}.hex").write_text("".join(f"{data.hex()}\n" for data in sorted(kept)))


def main() -> int:
    """Search; 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="all if left out")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--keep", action="store_true", help="merge what is new into the corpus")
    given = parser.parse_args()
    results = [look(name, given.seconds, given.keep) for name in given.targets or TARGETS]
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
