"""`x0 check`: a healthy node has no finding; each fault has its own, with id and hint."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from tests.fakes.node_admin import UNIX_S, a_status
from x0tta6bl4.app.checks import CHECKS, FileFact, HostFacts, findings, host_facts
from x0tta6bl4.wire.admin import (
    AuthorityView,
    Finding,
    LinkView,
    PathView,
    PlaneView,
    ServiceView,
    Status,
    SvidView,
)

HOST = HostFacts(
    uid=1000,
    open_files_max=65_536,
    kernel=(6, 1),
    disk_free_bytes=10**10,
    files=(FileFact("/s", 0o700, 1000), FileFact("/s/node.key", 0o600, 1000)),
)
HEALTHY = a_status(links=(LinkView("b", "up", 400), LinkView("f", "up", 400)))


def svid(left_s: int, life_s: int = 3600, error: str = "") -> SvidView:
    return SvidView(
        "spiffe://example.org/web", "1", UNIX_S + left_s - life_s, UNIX_S + left_s, error=error
    )


def authority(**changes: object) -> AuthorityView:
    return msgspec.structs.replace(HEALTHY.authority, **changes)


# name -> what is changed in the status, expected (id, level) pairs
STATUS: dict[str, tuple[dict[str, object], list[tuple[str, str]]]] = {
    "healthy": ({}, []),
    "clock 3 s off": ({"authority": authority(clock_offset_ms=3000)}, [("X0-CHK-001", "warning")]),
    "clock 31 s off": (
        {"authority": authority(clock_offset_ms=-31_000)},
        [("X0-CHK-001", "error")],
    ),
    "authority silent for 3 minutes": (
        {"authority": authority(heard_age_ms=180_000)},
        [("X0-CHK-002", "error")],
    ),
    "authority never heard": ({"authority": authority(heard_age_ms=-1)}, [("X0-CHK-002", "error")]),
    "one of two authorities is away": (
        {"authority": authority(away=("192.0.2.2:7000",))},
        [("X0-CHK-024", "warning")],
    ),
    "authority heard through others only": (
        {"authority": authority(connected=False)},
        [("X0-CHK-002", "warning")],
    ),
    "SVID in its last quarter": ({"svids": (svid(800),)}, [("X0-CHK-003", "warning")]),
    "SVID just renewed": ({"svids": (svid(3500),)}, []),
    "SVID ended": ({"svids": (svid(-1),)}, [("X0-CHK-003", "error")]),
    "renewal fails": ({"svids": (svid(3000, error="no authority"),)}, [("X0-CHK-004", "warning")]),
    "link down": (
        {"links": (LinkView("b", "down", reason="detect time"),)},
        [("X0-CHK-005", "error")],
    ),
    "link suspected": ({"links": (LinkView("b", "suspected", 400),)}, [("X0-CHK-006", "warning")]),
    "link that loses 6 %": (
        {"links": (LinkView("b", "up", 400, 60_000),)},
        [("X0-CHK-006", "warning")],
    ),
    "UDP blocked": ({"links": (LinkView("b", "up", 400, udp=False),)}, [("X0-CHK-007", "notice")]),
    "neighbour without an agent": (
        {"links": (LinkView("b", "up", 400, agent_alive=False),)},
        [("X0-CHK-019", "warning")],
    ),
    "one path only": ({"paths": (PathView("c", (("a", "b", "c"),)),)}, [("X0-CHK-008", "warning")]),
    "paths through one relay": (
        {"paths": (PathView("c", (("a", "b", "c"), ("a", "f", "b", "c")), disjoint=False),)},
        [("X0-CHK-008", "warning")],
    ),
    "no path": ({"paths": (PathView("c", ()),)}, [("X0-CHK-009", "error")]),
    "classical key exchange": (
        {"counters": {"handshake_groups_total|X25519": 3}},
        [("X0-CHK-010", "notice")],
    ),
    "post-quantum key exchange": (
        {"counters": {"handshake_groups_total|X25519MLKEM768": 3}},
        [],
    ),
    "classical although forbidden": (
        {"counters": {"handshake_groups_total|X25519": 1}, "require_pq": True},
        [("X0-CHK-010", "error")],
    ),
    "service on loopback": (
        {"services": (ServiceView("web", "spiffe://e/w", "127.0.0.1:80", ("a",), exposed=True),)},
        [("X0-CHK-011", "warning")],
    ),
    "PROXY header on loopback": (
        {"services": (ServiceView("web", "spiffe://e/w", "127.0.0.1:80", ("a",), True, True),)},
        [("X0-CHK-011", "warning"), ("X0-CHK-022", "warning")],
    ),
    "a name that leads nowhere": (
        {"services": (ServiceView("web", "spiffe://e/w"),)},
        [("X0-CHK-021", "warning")],
    ),
    "two nodes of one name": ({"duplicate_name": True}, [("X0-CHK-016", "error")]),
    "no kernel": (
        {
            "plane": PlaneView(
                "userspace", "userspace, because", (Finding("X0-KRN-143", "warning", "no", "run"),)
            )
        },
        [("X0-KRN-143", "warning")],
    ),
    "no proxy": ({"state": "alone"}, [("X0-CHK-017", "error")]),
    "draining": ({"state": "draining"}, [("X0-CHK-023", "notice")]),
}

FACTS: dict[str, tuple[dict[str, object], list[tuple[str, str]]]] = {
    "key for everybody": (
        {"files": (FileFact("/s/node.key", 0o644, 1000),)},
        [("X0-CHK-012", "error")],
    ),
    "somebody else's file": (
        {"files": (FileFact("/s/node.key", 0o600, 1001),)},
        [("X0-CHK-013", "error")],
    ),
    "few open files": ({"open_files_max": 1024}, [("X0-CHK-014", "warning")]),
    "an old kernel": ({"kernel": (4, 19)}, [("X0-CHK-015", "warning")]),
    "a full disk": ({"disk_free_bytes": 1000}, [("X0-CHK-018", "error")]),
}


def found(status: Status, facts: HostFacts) -> list[tuple[str, str]]:
    answer = findings(status, facts)
    for one in answer:
        assert one.what, one
        assert one.hint, one
        assert "\n" not in one.what + one.hint
    return [(one.id, one.level) for one in answer]


@pytest.mark.parametrize("case", STATUS)
def test_a_fault_of_the_node_has_its_finding(case: str) -> None:
    changes, expected = STATUS[case]
    assert found(msgspec.structs.replace(HEALTHY, **changes), HOST) == expected


@pytest.mark.parametrize("case", FACTS)
def test_a_fault_of_the_host_has_its_finding(case: str) -> None:
    changes, expected = FACTS[case]
    assert found(HEALTHY, msgspec.structs.replace(HOST, **changes)) == expected


def test_every_check_is_seen_to_find_something() -> None:
    silent = []
    for check in CHECKS:
        hits = [
            list(check(msgspec.structs.replace(HEALTHY, **c), HOST)) for c, _ in STATUS.values()
        ]
        hits += [
            list(check(HEALTHY, msgspec.structs.replace(HOST, **c))) for c, _ in FACTS.values()
        ]
        if not any(hits):
            silent.append(check.__name__)
    assert silent == []


def test_the_worst_comes_first() -> None:
    status = msgspec.structs.replace(
        HEALTHY,
        links=(LinkView("b", "up", 400, udp=False), LinkView("c", "down")),
        svids=(svid(800),),
    )
    assert [level for _, level in found(status, HOST)] == ["error", "warning", "notice"]


def test_facts_of_this_host(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "node.key").write_text("")
    (tmp_path / "node.key").chmod(0o640)
    facts = host_facts(tmp_path)
    assert facts.files == (
        FileFact(str(tmp_path), 0o700, os.geteuid()),
        FileFact(str(tmp_path / "node.key"), 0o640, os.geteuid()),
    )
    assert facts.kernel > (4, 0)
    assert facts.open_files_max > 0
    assert facts.disk_free_bytes > 0


def test_facts_of_a_directory_that_is_gone(tmp_path: Path) -> None:
    facts = host_facts(tmp_path / "gone")
    assert facts.files == ()
    assert facts.disk_free_bytes == 0
