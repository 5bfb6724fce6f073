"""Memory stays bounded with many sessions and many applications that do not read."""

from __future__ import annotations

import resource
import socket
from pathlib import Path

from tests.fakes.endpoints import Mesh, Service, tcp_pair
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import PathsItem, ReplicasItem, RuleItem, ServiceItem

SESSIONS = 200
READERS = 1000


def rss_kib() -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])


def files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def test_memory_is_bounded_with_200_sessions_and_1000_slow_readers(tmp_path: Path) -> None:
    files(16_000)
    mesh = Mesh("a", "b", tcp=False)
    a, b = mesh.nodes[NodeName("a")], mesh.nodes[NodeName("b")]
    service = Service(mesh, read=False, unix=f"{tmp_path}/web")
    caller = a.workload("caller")
    # One certificate for all: 200 targets on one node, told apart by their IDs.
    targets = [b.workload(f"web{number}") for number in range(SESSIONS)]
    rule = RuleItem("all", "allow", (caller,), (f"spiffe://{mesh.ca.domain}/*",))
    a.put(
        rule,
        PathsItem("b", (("a", "b"),)),
        *(ReplicasItem(target, (("b", 0),)) for target in targets),
    )
    b.put(rule, *(ServiceItem(target, service.address, ("unix:uid:0",)) for target in targets))
    before = rss_kib()
    socks: list[socket.socket] = []
    block = bytes(512 * 1024)
    for number in range(READERS):
        mine, theirs = tcp_pair()
        socks.append(mine)
        a.endpoint.connect(theirs, caller, targets[number % SESSIONS])
        if number % 50 == 0:
            mesh.idle(0.01)
    mesh.run(lambda: len(service.apps) == READERS, 60)
    assert a.endpoint.statistics().sessions == SESSIONS
    endpoints = (a.endpoint, b.endpoint)

    def moved() -> int:
        return sum(s.pipe.received for e in endpoints for s in e.sessions.values())

    last = -1
    cut: set[socket.socket] = set()
    while moved() != last:  # Everybody sends as much as fits, until nothing fits any more.
        last = moved()
        for sock in socks:
            try:
                sock.send(block)
            except BlockingIOError:
                pass
            except ConnectionError:
                cut.add(sock)  # The budget for what stands still is used up: the longest idle go.
        mesh.idle(1.0)
    grown = rss_kib() - before
    held = sum(s.pipe.ring.held for e in endpoints for s in e.sessions.values())
    standing = sum(
        stream.pending_bytes
        for endpoint in endpoints
        for session in endpoint.sessions.values()
        for stream in session.slow
    )
    print(
        f"\n{SESSIONS} sessions, {READERS} slow readers: {grown // 1024} MiB more, "
        f"{last >> 20} MiB moved, {len(cut)} reset, "
        f"rings {held >> 20} MiB, standing {standing >> 20} MiB"
    )
    # 64 MiB stand at most, and one look's worth of credit beyond it.
    assert standing <= 64 * 1024 * 1024 + READERS * 64 * 1024
    assert held <= SESSIONS * 1024 * 1024
    assert grown < 450 * 1024
    for sock in socks:
        sock.close()
    mesh.close()
