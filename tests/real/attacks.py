"""Attacks as tests: what was tried, why it was refused, what of the same kind was let in.

    @attack("records", tried="...", reason="...", twin="...")
    def test_...(attempt, ...):
        ...
        attempt.refused(what_the_victim_said)     # has to contain the reason
        ...
        attempt.accepted("its own record")        # the positive twin

A test that never says both fails.  `python -m tests.real.attacks` carries all of them out and
prints them; `--doc` writes `docs/attacks.md`, which a test keeps current.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, final

import msgspec
import pytest

from tests.edge.attack.__main__ import main as certificates
from tests.sdk.attack.__main__ import main as at_the_sdk
from tests.sdk.attack.bearers import BEARERS, ODD
from tests.sdk.attack.certificates import UNUSUAL, WORLDLY
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.tls.impostors import IMPOSTORS, Impostor

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "attacks.md"
MODULES = ("test_hostile_members", "test_hostile_circuits", "test_hostile_edges")
PROPERTY = "attack"
_IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
"""The attacks on the SDK have brought anyio in, whose plug-in pytest would have imported."""

F = TypeVar("F", bound=Callable[..., None])


@final
class Attack(msgspec.Struct, frozen=True):
    """One row of the table."""

    group: str
    tried: str
    reason: str
    """Words that the victim's refusal has to contain."""
    twin: str


def attack(group: str, *, tried: str, reason: str, twin: str) -> Callable[[F], F]:
    """Declare a test to be an attack."""

    def declare(test: F) -> F:
        test.attack = Attack(group, tried, reason, twin)  # type: ignore[attr-defined]
        return test

    return declare


class Attempt:
    """What a test says of the attack that it carries out."""

    def __init__(self, declared: Attack) -> None:
        self._declared = declared
        self.said = ""
        self.let_in = ""

    @property
    def reason(self) -> str:
        """The declared reason."""
        return self._declared.reason

    def refused(self, why: str) -> None:
        """The attack failed, and this is what the victim said."""
        assert self.reason in why, f"refused for {why!r}, not for {self.reason!r}"
        self.said = why

    def accepted(self, what: object = True) -> None:
        """The twin was let in; anything false means that it was not."""
        assert what, f"the twin was refused: {self._declared.twin}"
        self.let_in = self._declared.twin


@pytest.fixture
def attempt(request: pytest.FixtureRequest) -> Iterator[Attempt]:
    """For one attack; fails unless the refusal and the twin were both asserted."""
    declared: Attack = request.function.attack
    made = Attempt(declared)
    failed = request.session.testsfailed
    yield made
    if request.session.testsfailed > failed:
        return
    assert made.said, "no refusal was asserted"
    assert made.let_in, "no positive twin was asserted"
    request.node.user_properties.append((PROPERTY, (declared, made.said)))


def declared() -> list[Attack]:
    """All attacks, in the order of the files."""
    found = []
    for name in MODULES:
        module = importlib.import_module(f"tests.real.{name}")
        found += [x.attack for x in vars(module).values() if hasattr(x, "attack")]
    return found


def document() -> str:
    """Text of `docs/attacks.md`."""
    lines = [
        "# Attacks",
        "",
        "Written by `python -m tests.real.attacks --doc` from the tests themselves; `make attacks`",
        "carries all of them out. Each is refused for the reason beside it, and a twin that",
        "differs in this one thing is accepted. Meanwhile a load runs through the same mesh and",
        "has to lose nothing.",
        "",
        "## Over real sockets, against real processes",
        "",
        "| against | tried | refused because | accepted twin |",
        "|---|---|---|---|",
    ]
    lines += [f"| {a.group} | {a.tried} | {a.reason} | {a.twin} |" for a in declared()]
    lines += [
        "",
        "## Certificates",
        "",
        "Each is shown as a client and as a server. One that TLS 1.3 can't present goes to the",
        "judge alone. What only the mesh refuses, as the specification allows it, is accepted at",
        "the doors of the SDK: listen and dial, with and without threads, on both backends and",
        "both loops, and every adapter for a framework.",
        "",
        "| certificate | refused because | by |",
        "|---|---|---|",
    ]
    lines += [f"| {c.name} | {c.reason} | {_by(c)} |" for c in IMPOSTORS]
    lines += [f"| {case.name} | {case.reason} | the SDK |" for case in WORLDLY]
    lines += _section("Valid, but unusual: accepted at every door", [one.name for one in UNUSUAL])
    lines += ["", "## Tokens", "", "| token | refused because |", "|---|---|"]
    lines += [f"| {case.name.replace('|', '')} | {case.reason} |" for case in BEARERS]
    lines += _section("Valid, but unusual tokens: accepted", [one.name for one in ODD])
    return "\n".join(lines) + "\n"


def _by(case: Impostor) -> str:
    return "the mesh" if case.ours or case.expect is not ANYBODY else "the mesh, the SDK"


def _section(title: str, names: list[str]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {name}" for name in names)]


class _Table:
    """A pytest plugin that prints each attack as it ends."""

    def __init__(self) -> None:
        self.refused = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print what a test told of its attack."""
        found: list[tuple[str, Any]] = [p for p in report.user_properties if p[0] == PROPERTY]
        if report.when == "teardown" and report.passed:
            for _, (made, said) in found:
                self.refused += 1
                _print(
                    f"{made.group}: {made.tried}\n    refused:  {said}\n    accepted: {made.twin}"
                )
        elif report.failed:
            _print(f"FAILED {report.nodeid} ({report.when})\n{report.longreprtext[-3000:]}")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Carry everything out, or write the document."""
    parser = argparse.ArgumentParser(prog="python -m tests.real.attacks")
    parser.add_argument("--doc", action="store_true", help=f"write {DOC.relative_to(ROOT)}")
    if parser.parse_args().doc:
        DOC.write_text(document())
        return 0
    status = certificates([]) | at_the_sdk()
    table = _Table()
    files = [str(ROOT / "tests" / "real" / f"{name}.py") for name in MODULES]
    status |= int(
        pytest.main(
            ["-qq", "--no-summary", "-p", "no:cacheprovider", "-W", _IMPORTED, *files], [table]
        )
    )
    _print(
        f"over real sockets: {table.refused} attacks refused, each with its twin accepted;"
        f" {'and the load lost nothing' if not status else 'SOMETHING FAILED'}"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
