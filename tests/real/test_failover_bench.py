"""What the measurement of outages counts beside its harness, seen to count."""

from __future__ import annotations

import array
import socket

import pytest

from bench import failover
from bench.failover_cell import expired_in
from bench.failover_ours import KERNEL, USERSPACE
from bench.outcome import Outcome
from bench.requests import Heard
from tests.edge.kernel.space import named
from tests.real.hosts import Hosts


@pytest.mark.netns
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_packet_that_two_routers_send_each_other_is_counted_once(family: int) -> None:
    form, length = ("10.9.{}.{}", 24) if family == socket.AF_INET else ("fd09:{}::{}", 64)
    with Hosts("s", "a", "b") as hosts:
        for name in ("s", "a", "b"):
            hosts.run(name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
            hosts.forwards(name)
            hosts.run(name, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        near, far = form.format(1, 1), form.format(1, 2)
        one, other, target = form.format(2, 1), form.format(2, 2), form.format(9, 9)
        hosts.wire("s", f"{near}/{length}", "a", f"{far}/{length}")
        hosts.wire("a", f"{one}/{length}", "b", f"{other}/{length}")
        for name, via in (("s", far), ("a", other), ("b", one)):
            hosts.route(name, target, via)
        hosts.route("b", form.format(1, 0) + f"/{length}", one)
        assert [expired_in(hosts.space(name)) for name in "ab"] == [0, 0]
        with named(hosts.space("s")), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.settimeout(5)
            probe.setsockopt(socket.SOL_IP, 11, 1)  # IP_RECVERR: routers are heard.
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
            probe.connect((target, 7777))
            probe.send(b"round and round")
            with pytest.raises(OSError, match=r"No route to host"):
                probe.recv(1)
        assert sum(expired_in(hosts.space(name)) for name in "ab") == 1


def test_requests_count_in_the_window_in_which_they_were_sent() -> None:
    times = array.array("d", [1.0, 1.004, 2.0, 2.5, 2.1, 0.0, 3.5, 0.0])
    heard = Heard(times, [2.2])
    assert heard.within(0.5, 1.5) == {
        "requests": 1, "longest_ms": 4.0, "failed": 0, "broken": 0,
    }  # fmt: skip
    assert heard.within(1.5, 3.0) == {
        "requests": 2, "longest_ms": 500.0, "failed": 1, "broken": 1,
    }  # fmt: skip


def _fault(fault: str, ms: float | None, *, lost: int = 0, gap: float = 0.0) -> failover.Row:
    return {"kind": "fault", "fault": fault, "healed": ms is not None, "outage_ms": ms,
            "mttr_ms": ms, "lost": lost, "heal_gap_ms": gap}  # fmt: skip


def _cell(*rows: failover.Row, proto: str = KERNEL) -> failover.Row:
    whole = ({"kind": "start", "converged_s": 3.0}, {"kind": "steady", "cpu_pct": 4.0},
             {"kind": "expired", "packets": 0})  # fmt: skip
    heard = {"requests": 9, "longest_ms": 1.0, "failed": 0, "broken": 0}
    asked = {"kind": "requests", "fault": "silent", "control": heard, "broke": heard}
    return failover.summary([*whole, *rows, asked], list(failover.FAULTS), proto)


def _bad(cell: failover.Row, proto: str = KERNEL) -> list[str]:
    outcome = Outcome()
    failover.judge(outcome, {f"{failover.RING} {proto}": cell})
    return [bad.partition(":")[0] + ":" + bad.split(":")[1] for bad in outcome.bad]


def test_what_is_within_the_targets_is_good() -> None:
    cell = _cell(_fault("silent", 3.0), _fault("gray", 90.0), _fault("daemon", 0.0))
    assert _bad(cell) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (_fault("silent", 11.0), "silent at most 5/10 ms"),
        (_fault("silent", None), "silent at most 5/10 ms"),
        (_fault("gray5", 2001.0), "gray5 healed in 2 s in 19 of 20"),
        (_fault("daemon", 0.0, lost=1), "dead processes lose nothing"),
        (_fault("relay", 1.0, gap=3.0), "no gap when it heals"),
        ({"kind": "expired", "packets": 1}, None),
        ({"kind": "fault", "fault": "silent", "error": "no path"}, "every run counts"),
        ({"kind": "failed", "error": "no cable"}, "every run counts"),
    ],
)
def test_what_is_not_is_said(row: failover.Row, said: str | None) -> None:
    cell = _cell(row)
    if said is None:
        cell["TTL exceeded"] = row["packets"]
        said = "no packet went in circles"
    assert any(said in bad for bad in _bad(cell))


def test_a_peer_may_be_slow_and_ours_may_not_lose_a_request() -> None:
    assert _bad(_cell(_fault("silent", 900.0), proto="babeld-20ms"), "babeld-20ms") == []
    cell = _cell(proto=USERSPACE)
    cell["requests"]["silent"]["failed"] = 1
    assert len(_bad(cell, USERSPACE)) == 1


def test_kernel_mode_breaks_as_often_everywhere_and_others_are_sampled() -> None:
    options = failover.parser().parse_args([])
    cells = {(c.shape, c.proto): c.faults for c in failover.plan(options, ["babeld-20ms"])}
    assert all(len(cells[shape, KERNEL]) == 60 for shape in failover.SHAPES)
    assert cells["ring6c", USERSPACE].count("relay") == 10
    assert cells["ring6c", "babeld-20ms"].count("silent") == 10
    assert cells["ring6c", "babeld-20ms"].count("gray5") == failover.SAMPLE
    assert cells["grid4", "babeld-20ms"].count("relay") == 1
    options = failover.parser().parse_args(["--whole"])
    assert all(len(c.faults) == 60 for c in failover.plan(options, ["babeld-20ms"]))
