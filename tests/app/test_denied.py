"""`x0 explain denied`: each reason why a program has no identity is found, and none invented."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.app.cli_world import Run
from tests.app.test_admin import served
from tests.fakes.node_admin import FakeNode
from x0tta6bl4.app.denied import CALLERS_MAX, Caller, Facts, findings
from x0tta6bl4.core.identity.selectors import Attributes, parse_all
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.listener import needs
from x0tta6bl4.edge.attest.process import Needs
from x0tta6bl4.wire.authority import Entry

ID = "spiffe://example.org/web"
SELECTORS = ("python:script:/srv/web.py", "unix:uid:7")
ENTRY = Entry(id=ID, node="a", selectors=SELECTORS, key="web")
NEEDS = needs(parse_all(SELECTORS))
PLAIN = Attributes(7, (100,))


def caller(found: Attributes | Denied | None = None, uid: int = 7) -> Caller:
    looks: dict[Needs, Attributes | Denied] = {Needs(): PLAIN}
    if found is not None:
        looks[NEEDS] = found
    return Caller(1234, uid, 100, 3, looks)


def script(path: str) -> Attributes:
    return Attributes(
        7, (100,), facts=frozenset({f"python:script:{path}", "python:interpreter:/usr/bin/python3"})
    )


FINE = Facts("a", True, "", True, 4, (ENTRY,), 1800, "", "", (caller(script("/srv/web.py")),))


def said(**changes: Any) -> list[tuple[str, str]]:
    found = findings(ID, msgspec.structs.replace(FINE, **changes))
    assert all(one.hint for one in found)
    return [(one.id, one.what) for one in found]


WHO = "entry web: pid 1234 of uid 7, gid 100, 3 s ago: "


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("X0-DEN-010", WHO + "it is this program")),
        ({"node_denied": "banned"}, ("X0-DEN-001", "node a counts no more: banned")),
        ({"serving": False}, ("X0-DEN-002", "the Workload API is not served here")),
        (
            {"authority_up": False, "authority_age_s": 500},
            ("X0-DEN-003", "the node has not heard the authority for 500 s"),
        ),
        (
            {"entries": ()},
            ("X0-DEN-004", f"no entry gives {ID} to a program of node a"),
        ),
        ({"svid_denied": "banned"}, ("X0-DEN-005", f"SVIDs of {ID} do not count: banned")),
        (
            {"svid_left_s": -1, "error": "refused"},
            ("X0-DEN-006", "the node has no valid SVID for it: refused"),
        ),
        ({"callers": ()}, ("X0-DEN-007", "no program has asked the Workload API yet")),
        (
            {"entries": (Entry(id=ID, node="a", selectors=("new:kind:x",), key="web"),)},
            ("X0-DEN-008", "entry web is not understood here: 'new:kind:x' is no selector"),
        ),
        (
            {"callers": (caller(uid=8),)},
            ("X0-DEN-009", WHO.replace("uid 7", "uid 8") + "it is not unix:uid:7"),
        ),
        (
            {"callers": (caller(Denied("PYTHONPATH decides what it runs")),)},
            ("X0-DEN-009", WHO + "PYTHONPATH decides what it runs"),
        ),
        ({"callers": (caller(),)}, ("X0-DEN-009", WHO + "entry came after it")),
        (
            {"callers": (caller(script("/tmp/x.py")),)},
            (
                "X0-DEN-009",
                WHO + "it is not python:script:/srv/web.py but "
                "python:interpreter:/usr/bin/python3, python:script:/tmp/x.py",
            ),
        ),
    ],
)
def test_each_reason_is_named(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    found = said(**changes)
    assert expected in found
    assert len(found) == (2 if expected[0] in ("X0-DEN-00" + n for n in "12356") else 1)


def test_callers_are_the_newest_and_few() -> None:
    many = tuple(caller(Denied("executable is no Python")) for _ in range(3 * CALLERS_MAX))
    assert len(said(callers=many)) == CALLERS_MAX


def test_the_command_says_it_and_ends_with_1(tmp_path: Path, run: Run) -> None:
    with served(tmp_path, FakeNode("a")):
        ran = run("explain", "denied", ID, "--state-dir", str(tmp_path))
        assert ran.status == 1
        assert ran.out == f"ERROR    X0-DEN-004: no entry gives {ID}. make one\n"
        ran = run("explain", "denied", ID, "--state-dir", str(tmp_path), "--json")
        assert json.loads(ran.out)[0]["id"] == "X0-DEN-004"
    assert run("explain", "denied", "web", "--state-dir", str(tmp_path)).status == 1


def test_a_program_is_explained_line_by_line(run: Run) -> None:
    ran = run("explain", "program", os.getpid())
    assert ran.status == 0
    assert f"unix:uid:{os.getuid()}\n" in ran.out
    assert "\n# systemd: " in ran.out or "\nsystemd:unit:" in ran.out
    told = json.loads(run("explain", "program", os.getpid(), "--json").out)
    assert told.keys() == {"unix", "python", "systemd", "docker"}
    assert "X0-SEL-010" in run("explain", "program", 2**22).err
