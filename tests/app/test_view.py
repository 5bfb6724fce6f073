"""The view fits the terminal, and shows each thing once."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from tests.fakes.node_admin import UNIX_S, a_status
from x0tta6bl4.app.cli.gather import Silent
from x0tta6bl4.app.cli.view import Screen
from x0tta6bl4.wire.admin import EventView, LinkView, SessionView, Status
from x0tta6bl4.wire.errors import Unavailable

SHOP, WEB = "spiffe://example.org/client", "spiffe://example.org/web"


def shown(
    screen: Screen, looks: list[Status | Silent], width: int, lines: int, now: float = 0.0
) -> list[str]:
    """What a terminal of this size would show."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(screen.draw(looks, lines, now))
    return out.getvalue().splitlines()


def busy(count: int) -> list[Status | Silent]:
    """Nodes in a ring with a session and many events each."""
    names = [f"node-{i:03}" for i in range(count)]
    return [
        a_status(
            name,
            links=(LinkView(names[i - 1], "up", 400), LinkView(names[(i + 1) % count], "up", 400)),
            sessions=tuple(
                SessionView(f"{SHOP}", f"{WEB}-{j}", names[j], (name, names[j])) for j in range(20)
            ) if i == 0 else (),
            events=tuple(EventView(UNIX_S * 10**6 + j, "link", f"event {j}") for j in range(64)),
        )
        for i, name in enumerate(names)
    ]  # fmt: skip


@pytest.mark.parametrize(("width", "lines"), [(80, 23), (80, 40), (120, 50), (200, 100)])
@pytest.mark.parametrize("count", [1, 3, 6, 40])
def test_it_fits_the_terminal(width: int, lines: int, count: int) -> None:
    got = shown(
        Screen(("curl -x socks5h://127.0.0.1:1 http://web.mesh/",)),
        busy(max(20, count) if count > 6 else 20)[:count],
        width,
        lines,
    )
    assert len(got) <= lines
    assert max(map(len, got)) <= width
    assert any("curl" in line for line in got)
    for heading in ("NODE", "LINK", "SESSION", "SERVICE", "EVENT"):
        assert any(heading in line for line in got), heading


def test_what_does_not_fit_is_counted() -> None:
    got = shown(Screen(), busy(40), 80, 23)
    assert sum("more" in line for line in got) >= 2


def test_without_a_height_everything_is_shown() -> None:
    got = "\n".join(shown(Screen(), busy(40), 120, 0))
    assert "more" not in got
    assert all(f"node-{i:03} " in got for i in range(40))


def test_a_link_is_shown_once_by_its_worse_end() -> None:
    good = a_status("a", links=(LinkView("b", "up", 400),))
    bad = a_status("b", links=(LinkView("a", "down", reason="silent"),))
    rows = [line for line in shown(Screen(), [good, bad], 80, 0) if "a-b" in line]
    assert len(rows) == 1
    assert "down" in rows[0]


def test_a_session_is_shown_at_its_callers_end_with_its_rate() -> None:
    screen = Screen()
    status = a_status()
    (session,) = status.sessions
    server = a_status("c", svids=(), sessions=(msgspec.structs.replace(session, node="a"),))
    shown(screen, [status, server], 80, 0, now=10.0)
    later = msgspec.structs.replace(
        session, requests=session.requests + 300, bytes_in=session.bytes_in + 4_000_000
    )
    got = shown(screen, [msgspec.structs.replace(status, sessions=(later,)), server], 80, 0, 12.0)
    rows = [line for line in got if "client > web" in line]
    assert len(rows) == 1
    assert "a b c" in rows[0]
    assert "150" in rows[0]
    assert "2.0 MB" in rows[0]
    assert "150 req/s" in got[0]


def test_a_session_that_began_anew_has_no_negative_rate() -> None:
    screen = Screen()
    shown(screen, [a_status()], 80, 0, 1.0)
    (session,) = a_status().sessions
    fresh = a_status(sessions=(msgspec.structs.replace(session, requests=1, bytes_in=1),))
    assert "0 req/s" in shown(screen, [fresh], 80, 0, 2.0)[0]


def test_a_silent_node_has_a_line() -> None:
    error = Unavailable("X0-ADM-001", "no agent is running", "start it")
    got = shown(Screen(), [a_status(), Silent("b", error)], 80, 23)
    assert "b: X0-ADM-001: no agent is running. start it" in got
    assert shown(Screen(), [Silent("b", error)], 80, 23)[0] == "no node answers"


def test_one_node_shows_its_paths() -> None:
    got = "\n".join(shown(Screen(), [a_status()], 80, 0))
    assert "PATH IN USE" in got
    assert "a b c" in got


def test_one_node_shows_where_its_workloads_ask() -> None:
    node = msgspec.structs.replace(a_status(), workload_api="unix:/run/x/sock")
    assert "Workload API at unix:/run/x/sock" in shown(Screen(), [node], 80, 0)
    full = busy(20)[0]
    assert isinstance(full, Status)
    full = msgspec.structs.replace(full, workload_api="unix:/run/x/sock")
    assert len(shown(Screen(), [full], 80, 23)) <= 23
    assert "Workload API" not in "\n".join(shown(Screen(), [a_status()], 80, 0))


def test_what_is_said_again_is_one_line() -> None:
    events = tuple(EventView(UNIX_S * 10**6 + i, "refused", "no replica") for i in range(5))
    got = shown(Screen(), [a_status(events=events)], 80, 0)
    assert sum("no replica" in line for line in got) == 1
    assert any("no replica (5 times)" in line for line in got)
