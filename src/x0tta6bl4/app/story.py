"""What a window of load looked like: counts and the longest gap, and the report of the demo.

A gap is the time from sending a request to its answer, of any request sent from LEAD_S before an
event to TAIL_S after it, on any connection; a request that failed counts with the time it took to
fail.  The control gap is the same figure for a window of the same length with no event in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, final

import msgspec

from x0tta6bl4.app.mesh import read_lines

LEAD_S: Final = 0.5
TAIL_S: Final = 5.0
SAMPLES_MAX: Final = 2_000_000


@final
class Sample(msgspec.Struct, frozen=True, gc=False):
    """One request."""

    at: float
    """Sent, CLOCK_MONOTONIC seconds."""
    took: float
    ok: bool
    why: str


@final
class Act(msgspec.Struct):
    """One act of the story, as it goes into the JSON report."""

    name: str
    what: str
    requests: int = 0
    failed: int = 0
    gap_ms_max: float = 0.0
    path_before: tuple[str, ...] = ()
    path_after: tuple[str, ...] = ()
    detail: str = ""


@final
class Bulk(msgspec.Struct):
    """The download that runs during every act."""

    bytes: int = 0
    sha256_ok: bool = False
    why: str = "not finished"


@final
class Impostors(msgspec.Struct):
    """Attempts of those who have no business here."""

    tried: int = 0
    accepted: int = 0
    reasons: dict[str, int] = msgspec.field(default_factory=dict)


@final
class Report(msgspec.Struct):
    """All of `--json FILE`."""

    requests: int = 0
    failed: int = 0
    control_gap_ms_max: float = 0.0
    acts: list[Act] = msgspec.field(default_factory=list)
    bulk: Bulk = msgspec.field(default_factory=Bulk)
    rotations: int = 0
    impostors: Impostors = msgspec.field(default_factory=Impostors)
    setup_s: float = 0.0
    story_s: float = 0.0
    failures: list[str] = msgspec.field(default_factory=list)


class Watcher:
    """A load process and what it said so far.

    Args:
        address: `host:port` to load.
        expect: file with the answer every request must get.
        arguments: further options of `app.load`.
    """

    def __init__(self, address: str, expect: Path, arguments: list[str]) -> None:
        self.samples: list[Sample] = []
        self.bulk: dict[str, object] = {}
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "x0tta6bl4.app.load",
                address,
                "--expect",
                str(expect),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with stdout:
            for line in read_lines(iter(stdout.readline, b"")):
                if "bulk" in line:
                    self.bulk = line
                elif len(self.samples) < SAMPLES_MAX:
                    self.samples.append(
                        msgspec.convert({k: line[k] for k in ("at", "took", "ok", "why")}, Sample)
                    )

    def window(self, begin: float, end: float) -> tuple[int, list[Sample], float]:
        """Requests sent between two instants: (how many, the failed ones, longest gap in ms)."""
        inside = [s for s in list(self.samples) if begin <= s.at <= end]
        failed = [s for s in inside if not s.ok]
        return len(inside), failed, max((s.took for s in inside), default=0.0) * 1e3

    def failed(self) -> list[Sample]:
        """All requests without the right answer."""
        return [s for s in list(self.samples) if not s.ok]

    def finish(self, seconds: float) -> None:
        """Ask the load to end and wait for its last lines (SIGKILL after `seconds`)."""
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()


def sleep_until(instant: float) -> None:
    """Wait for an instant of CLOCK_MONOTONIC."""
    time.sleep(max(0.0, instant - time.monotonic()))


def write_report(report: Report, path: Path) -> None:
    """Write the JSON report."""
    path.write_text(json.dumps(msgspec.to_builtins(report), indent=1) + "\n")
