"""Sessions over real sockets, real TLS and real certificates: two endpoints in one loop."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pytest

from tests.fakes.endpoints import App, Mesh, Service, call, tcp_pair, unix_us, web
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.core.session.facts import Limits
from x0tta6bl4.core.session.frames import Reset
from x0tta6bl4.runtime.loop import circuits
from x0tta6bl4.runtime.loop import endpoint as endpoint_module
from x0tta6bl4.runtime.loop.held import Shares
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import (
    NameItem,
    PathsItem,
    ReplicasItem,
    RevokedItem,
    RuleItem,
    ServiceItem,
)

A, B, C = NodeName("a"), NodeName("b"), NodeName("c")


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    mesh = Mesh("a", "b", "c", limits=Limits(renew_spread=500_000))
    yield mesh
    mesh.close()


def test_bytes_go_both_ways_and_ends_stay_half_closes(mesh: Mesh) -> None:
    service = web(mesh)
    app = call(mesh)
    app.send(b"question")
    app.finish()
    mesh.run(lambda: service.apps and service.apps[0].end)
    served = service.apps[0]
    assert bytes(served.got) == b"question"
    assert app.end == "", "half-closed, not closed"
    served.send(b"answer, late")
    served.finish()
    mesh.run(lambda: app.end)
    assert bytes(app.got) == b"answer, late"
    assert app.end == "eof"
    mesh.run(lambda: mesh.nodes[A].records and mesh.nodes[B].records)
    for record in (mesh.nodes[A].records[0], mesh.nodes[B].records[0]):
        assert record.reason == "closed"
        assert record.source == mesh.ca.id("caller")
        assert record.target == mesh.ca.id("web")
        assert record.name == "web"
        assert sorted((record.bytes_in, record.bytes_out)) == [8, 12]
    assert mesh.nodes[A].records[0].path[0] == "a"


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_is_a_reset_at_the_other_end(mesh: Mesh, side: str) -> None:
    service = web(mesh)
    app = call(mesh)
    app.send(b"x")
    mesh.run(lambda: service.apps and service.apps[0].got)
    one, other = (app, service.apps[0]) if side == "client" else (service.apps[0], app)
    mesh.loop.drop(one.sock.fileno())
    one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    one.sock.close()
    mesh.run(lambda: other.end)
    assert other.end == "ConnectionResetError"


def test_large_transfers_are_exact_under_circuits_that_die(mesh: Mesh) -> None:
    service = web(mesh)
    apps = [call(mesh) for _ in range(4)]
    sent = [os.urandom(6_000_000) for _ in apps]
    for app, data in zip(apps, sent, strict=True):
        app.send(data)
        app.finish()
    killed = 0
    endpoint = mesh.nodes[A].endpoint

    def done() -> bool:
        nonlocal killed
        moved = sum(len(app.got) for app in service.apps)
        if moved > (killed + 1) * 2_000_000 and killed < 8:
            active = next(iter(endpoint.proxy.clients.values())).machine.active
            if active is not None:
                sock = endpoint.circuits[active.number].sock
                for index, (_, near, _far) in enumerate(mesh.wires):
                    if near is sock:
                        mesh.kill_wires(index)
                        killed += 1
        return len(service.apps) == 4 and all(app.end for app in service.apps)

    mesh.run(done, 30)
    assert killed == 8
    digests = sorted(blake2b(bytes(app.got)).digest() for app in service.apps)
    assert digests == sorted(blake2b(data).digest() for data in sent)
    assert all(app.end == "" for app in apps)
    assert endpoint.statistics().moves >= 4


def test_the_listener_is_looked_at_before_and_after_the_connect(mesh: Mesh) -> None:
    service = web(mesh)
    answers = iter(["the service", "somebody else"])
    mesh.nodes[B].listener = lambda item: next(answers)
    app = call(mesh)
    app.send(b"secret")
    mesh.run(lambda: app.end)
    assert app.end == "ConnectionResetError"
    mesh.run(lambda: service.apps and service.apps[0].end)
    assert bytes(service.apps[0].got) == b"", "not a byte"
    mesh.nodes[B].listener = lambda item: Denied("nobody listens")
    app = call(mesh)
    mesh.run(lambda: app.end)
    assert mesh.nodes[B].records[-1].reason == "refused: nobody listens"


def test_callers_that_may_not_are_refused_at_both_ends(mesh: Mesh) -> None:
    web(mesh)
    a, b = mesh.nodes[A], mesh.nodes[B]
    target = mesh.ca.id("web")
    mine, theirs = tcp_pair()
    mesh.socks.append(mine)
    stranger = a.workload("stranger")
    assert a.endpoint.connect(theirs, stranger, "web") == Denied("nothing allows it")
    assert a.records[-1].reason == "refused: nothing allows it"
    with pytest.raises(ConnectionResetError):
        mine.recv(1)
    # Skew: the caller's node would allow it, the target's node does not.
    b.put(NameItem("web", target, ()))
    app = call(mesh)
    mesh.run(lambda: app.end)
    assert b.records[-1].reason == "refused: nothing allows it"
    assert a.records[-1].reason == "denied"


def test_unknown_names_and_missing_svids(mesh: Mesh) -> None:
    web(mesh)
    a = mesh.nodes[A]
    for name, source, why in (
        ("nobody.mesh", "caller", "no such name"),
        ("web", "ghost", "caller has no svid"),
        (f"spiffe://{mesh.ca.domain}/ghost", "caller", "nothing allows it"),
    ):
        mine, theirs = tcp_pair()
        mesh.socks.append(mine)
        verdict = a.endpoint.connect(theirs, mesh.ca.id(source), name)
        assert verdict == Denied(why)
    # One form of a name, however it was asked for.
    assert [record.name for record in a.records] == ["nobody", "web", ""]


def test_another_replica_is_tried_and_gets_the_first_bytes(mesh: Mesh) -> None:
    service = web(mesh)
    a, c = mesh.nodes[A], mesh.nodes[C]
    target = c.workload("web")
    caller = mesh.ca.id("caller")
    refusing = socket.create_server(("127.0.0.1", 0))
    address = "{}:{}".format(*refusing.getsockname())
    refusing.close()  # Nobody listens there.
    c.put(NameItem("web", target, (caller,)), ServiceItem(target, address, ("unix:uid:0",)))
    a.put(PathsItem("c", (("a", "c"),)), ReplicasItem(target, (("b", 5), ("c", 0))))
    assert a.endpoint.proxy.replicas(target)[0] == "c"
    app = call(mesh)
    app.send(b"first bytes")
    mesh.run(lambda: service.apps and service.apps[0].got)
    assert bytes(service.apps[0].got) == b"first bytes"
    assert c.records[-1].reason in ("connect-refused", "refused: connect-refused")
    service.apps[0].send(b"reply")
    mesh.run(lambda: app.got)
    assert bytes(app.got) == b"reply"


def test_a_session_at_work_is_used_though_no_way_is_known(mesh: Mesh) -> None:
    service = web(mesh)
    a, target = mesh.nodes[A], mesh.ca.id("web")
    before = call(mesh)
    before.send(b"one")
    mesh.run(lambda: service.apps and service.apps[0].got)
    a.put(ReplicasItem(target, ()))
    assert a.endpoint.proxy.replicas(target) == ()
    after = call(mesh)
    after.send(b"two")
    mesh.run(lambda: len(service.apps) == 2 and service.apps[1].got)
    assert bytes(service.apps[1].got) == b"two"
    mine, theirs = tcp_pair()
    mesh.socks.append(mine)
    verdict = a.endpoint.connect(theirs, mesh.ca.id("caller"), "web", own=True)
    assert verdict == Denied("no replica"), "a session of its own would have to be dialled"
    active = next(iter(a.endpoint.proxy.clients.values())).machine.active
    assert active is not None
    active.suspect_at = a.endpoint.loop.now
    assert a.endpoint.proxy.reached(mesh.ca.id("caller"), target) == ()


def test_socks_style_replies_come_after_opened_with_the_right_code(mesh: Mesh) -> None:
    service = web(mesh)

    def reply(reason: Reset | None) -> bytes:
        return b"OK\n" if reason is None else f"NO {reason.phrase}\n".encode()

    app = call(mesh, reply=reply)
    app.send(b"hello")
    mesh.run(lambda: service.apps and service.apps[0].got)
    assert bytes(app.got) == b"OK\n"
    mesh.nodes[B].put(drops=(f"ServiceItem/{mesh.ca.id('web')}",))
    app = call(mesh, reply=reply)
    mesh.run(lambda: app.end)
    assert bytes(app.got) == b"NO no-service\n"
    app = call(mesh, name="nobody", reply=reply)
    mesh.run(lambda: app.end)
    assert bytes(app.got) == b"NO no-service\n"


def test_a_proxy_header_goes_in_front_where_the_service_wants_it(mesh: Mesh) -> None:
    service = web(mesh)
    target = mesh.ca.id("web")
    mesh.nodes[B].put(ServiceItem(target, service.address, ("unix:uid:0",), proxy_header=True))
    app = call(mesh)
    app.send(b"request")
    mesh.run(lambda: service.apps and b"request" in service.apps[0].got)
    header = b"PROXY " + mesh.ca.id("caller").encode() + b"\n"
    assert bytes(service.apps[0].got) == header + b"request"


def test_a_service_on_the_same_node_goes_through_the_same_checks(mesh: Mesh) -> None:
    a = mesh.nodes[A]
    caller, target = a.workload("caller"), a.workload("web")
    service = Service(mesh, echo=True)
    a.put(
        NameItem("web", target, (caller,)),
        ServiceItem(target, service.address, ("unix:uid:0",)),
    )
    app = call(mesh)
    app.send(b"around the corner")
    mesh.run(lambda: len(app.got) == 17)
    assert a.endpoint.statistics().circuits == 2, "one circuit, both ends of it here"
    assert a.dials == [("a",)]


# ---------------------------------------------------------------------- identities come and go
def test_rotation_moves_the_session_and_no_stream_breaks(mesh: Mesh) -> None:
    service = web(mesh, echo=True)
    app = call(mesh)
    app.send(b"1")
    mesh.run(lambda: app.got == b"1")
    a, b = mesh.nodes[A], mesh.nodes[B]
    mesh.run(lambda: len(a.endpoint.circuits) == 2)
    for node, path in ((a, "caller"), (b, "web"), (a, "caller")):
        before = set(a.endpoint.circuits)
        node.workload(path)
        mesh.run(lambda: not before & set(a.endpoint.circuits))  # noqa: B023
        mesh.run(lambda: len(a.endpoint.circuits) == 2)
        app.send(b"2")
        size = len(app.got)
        mesh.run(lambda: len(app.got) > size)  # noqa: B023
    assert app.end == ""
    assert len(service.apps) == 1
    assert a.endpoint.statistics().moves >= 3


def test_circuits_end_with_their_svid_and_streams_wait_for_the_next(mesh: Mesh) -> None:
    service = web(mesh, echo=True)
    a = mesh.nodes[A]
    a.workload("caller", ttl_s=35 + 4)  # 35 s of it lie in the past.
    app = call(mesh)
    app.send(b"1")
    mesh.run(lambda: app.got == b"1")
    ends = a.endpoint.proxy.svid(mesh.ca.id("caller")).not_after_unix_s  # type: ignore[union-attr]
    mesh.run(lambda: not a.endpoint.circuits)
    assert unix_us() < ends * 1_000_000, "closed before the end"
    app.send(b"2")
    mesh.idle(0.2)
    assert app.got == b"1"
    a.workload("caller")
    mesh.run(lambda: app.got == b"12")
    assert len(service.apps) == 1
    assert app.end == ""


@pytest.mark.parametrize("who", ["caller", "web"])
def test_revocation_ends_everything_at_once_and_for_good(mesh: Mesh, who: str) -> None:
    service = web(mesh, echo=True)
    app = call(mesh)
    app.send(b"1")
    mesh.run(lambda: app.got == b"1")
    node = mesh.nodes[B if who == "caller" else A]
    node.put(RevokedItem(mesh.ca.id(who), 2_000_000_000))
    mesh.run(lambda: app.end, 1.0)
    assert app.end == "ConnectionResetError"
    mesh.run(lambda: service.apps[0].end, 1.0)
    assert node.endpoint.statistics().sessions == 0
    app = call(mesh)
    app.send(b"again")
    mesh.idle(0.3)
    assert bytes(app.got) == b""
    assert node.endpoint.statistics().sessions in (0, 1)
    assert len(service.apps) == 1


def test_revoking_a_node_ends_what_was_issued_through_it(mesh: Mesh) -> None:
    service = web(mesh, echo=True)
    app = call(mesh)
    app.send(b"1")
    mesh.run(lambda: app.got == b"1")
    mesh.nodes[B].put(RevokedItem(f"spiffe://{mesh.ca.domain}/node/a", 2_000_000_000))
    mesh.run(lambda: app.end and service.apps[0].end, 1.0)


def test_open_streams_are_judged_again_when_policy_changes(mesh: Mesh) -> None:
    service = web(mesh, echo=True)
    kept, cut = call(mesh), call(mesh, name=f"spiffe://{mesh.ca.domain}/web")
    mesh.run(lambda: cut.end)
    assert mesh.nodes[A].records[-1].reason == "refused: nothing allows it"
    rule = RuleItem("r", "allow", (mesh.ca.id("caller"),), (mesh.ca.id("web"),))
    for node in (mesh.nodes[A], mesh.nodes[B]):
        node.put(rule)
    cut = call(mesh, name=f"spiffe://{mesh.ca.domain}/web")
    for app in (kept, cut):
        app.send(b"1")
    mesh.run(lambda: kept.got and cut.got)
    mesh.nodes[B].put(drops=("RuleItem/r",))
    mesh.run(lambda: cut.end)
    assert cut.end == "ConnectionResetError"
    kept.send(b"2")
    mesh.run(lambda: kept.got == b"12")
    mesh.nodes[A].put(
        RuleItem("no", "deny", (mesh.ca.id("caller"),), (f"spiffe://{mesh.ca.domain}/*",))
    )
    mesh.run(lambda: kept.end)
    assert mesh.nodes[A].records[-1].reason == "withdrawn"
    assert len(service.apps) == 2


def test_nobody_is_taken_for_somebody_else(mesh: Mesh) -> None:
    # The node that answers has an SVID, but not that of the workload that was called.
    web(mesh)
    a, b = mesh.nodes[A], mesh.nodes[B]
    wrong = b.workload("impostor")
    original = b.tls
    b.endpoint._tls = lambda own, peer, server: original(wrong, peer, server)
    app = call(mesh)
    app.send(b"secret")
    mesh.idle(0.5)
    assert a.endpoint.statistics().circuits_lost > 0
    assert b.endpoint.statistics().sessions == 0
    assert a.endpoint.states()[0].state == "new"


def test_drain_takes_nothing_new_and_lets_the_rest_end(mesh: Mesh) -> None:
    service = web(mesh, echo=True)
    app = call(mesh)
    app.send(b"1")
    mesh.run(lambda: app.got == b"1")
    b = mesh.nodes[B].endpoint
    assert b.drain() == 1
    late = call(mesh)
    mesh.run(lambda: late.end)
    assert mesh.nodes[A].records[-1].reason == "draining"
    app.send(b"2")
    mesh.run(lambda: app.got == b"12")
    app.finish()
    mesh.run(lambda: service.apps[0].end)
    service.apps[0].finish()
    mesh.run(lambda: b.drain() == 0)


def test_a_refused_hop_is_a_failed_dial_with_its_reason(mesh: Mesh) -> None:
    web(mesh)
    mesh.nodes[B].put(drops=(f"SvidItem/{mesh.ca.id('web')}",))
    app = call(mesh)
    app.send(b"x")
    mesh.run(lambda: mesh.nodes[B].endpoint.statistics().circuits_refused > 2)
    mesh.run(lambda: mesh.nodes[A].endpoint.statistics().circuits_lost > 2)
    mesh.nodes[B].workload("web")
    mesh.run(lambda: mesh.nodes[B].records or mesh.nodes[B].endpoint.statistics().streams)


# ---------------------------------------------------------------------- bounds
def test_slow_readers_cost_what_was_promised_and_block_nobody(mesh: Mesh) -> None:
    slow = web(mesh, read=False)
    stuck = [call(mesh) for _ in range(20)]
    for app in stuck:
        app.send(bytes(4_000_000))
    mesh.idle(0.5)
    a = mesh.nodes[A].endpoint
    assert a.statistics().streams == 20
    for app in slow.apps:
        assert len(app.got) == 0
    session = next(iter(mesh.nodes[B].endpoint.sessions.values()))
    held = sum(stream.pending_bytes for stream in session.slow)
    assert held <= 20 * 1024 * 1024
    assert session.pipe.ring.held < 1_000_000
    for app in slow.apps:
        app.read = True
        app._write()
    mesh.run(lambda: sum(len(app.got) for app in slow.apps) == 20 * 4_000_000, 30)


def test_streams_that_stand_still_do_not_use_up_the_session(mesh: Mesh, tmp_path: Path) -> None:
    service = web(mesh, read=False, unix=f"{tmp_path}/web")  # Its buffers don't grow.
    stuck = [call(mesh) for _ in range(150)]
    for app in stuck:
        app.send(bytes(1_000_000))
    session_of_a = None

    def blocked() -> bool:
        nonlocal session_of_a
        sessions = list(mesh.nodes[A].endpoint.sessions.values())
        session_of_a = sessions[0] if sessions else None
        return session_of_a is not None and len(service.apps) == 150

    mesh.run(blocked)
    mesh.idle(2.5)
    assert mesh.nodes[B].endpoint.statistics().standing_bytes > 0
    app = call(mesh)
    app.send(b"hello")
    mesh.run(lambda: len(service.apps) == 151)
    service.apps[-1].read = True
    service.apps[-1]._write()
    mesh.run(lambda: service.apps[-1].got == b"hello", 5)


def test_a_circuit_that_says_nothing_is_given_up(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuits, "HANDSHAKE_US", 200_000)
    b = mesh.nodes[B]
    b.workload("web")
    near, far = tcp_pair()
    mesh.socks.append(near)
    b.endpoint.on_circuit(far, A, mesh.ca.id("web"), b"")
    near.send(b"\x16\x03\x01 this is no ClientHello, whatever it says" * 10)
    mesh.run(lambda: not b.endpoint.circuits)
    assert b.endpoint.statistics().circuits_lost == 1


def test_a_neighbour_that_opens_handshakes_leaves_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint_module, "SHAKING_MAX", 8)
    monkeypatch.setattr(circuits, "HANDSHAKE_US", 1_000_000)
    mesh = Mesh("a", "b", "c")
    try:
        service = web(mesh)
        b, web_id = mesh.nodes[B].endpoint, mesh.ca.id("web")
        for _ in range(12):
            near, far = tcp_pair()
            mesh.socks.append(near)
            b.on_circuit(far, C, web_id, b"")
        assert near.recv(100).endswith(b"b: too many handshakes from c")
        assert len(b.circuits) == 4
        app = call(mesh)
        app.send(b"from a")
        mesh.run(lambda: service.apps and service.apps[0].got == b"from a", 0.9)
        mesh.run(lambda: b.statistics().circuits_lost == 4)  # At their deadline.
        for _ in range(4):
            near, far = tcp_pair()
            mesh.socks.append(near)
            b.on_circuit(far, C, web_id, b"")
        assert b.statistics().circuits_refused == 8
    finally:
        mesh.close()


def test_places_are_shared_so_that_one_more_gets_in() -> None:
    shares = Shares(12)
    assert [shares.take("a") for _ in range(7)] == [True] * 6 + [False]
    assert [shares.take("b") for _ in range(4)] == [True] * 3 + [False]
    assert [shares.take("c") for _ in range(3)] == [True, True, False]
    shares.give_back("a")
    assert [shares.take(node) for node in "abcdd"] == [False, False, False, True, False]


def test_sessions_and_streams_leave_nothing_behind(mesh: Mesh) -> None:
    service = web(mesh, echo=True)
    for number in range(30):
        app = call(mesh)
        app.send(b"x")
        app.finish()
        mesh.run(lambda: len(service.apps) > number and service.apps[number].end)  # noqa: B023
        service.apps[number].finish()
        mesh.run(lambda: app.end)  # noqa: B023
    a, b = mesh.nodes[A].endpoint, mesh.nodes[B].endpoint
    mesh.run(lambda: a.statistics().streams == b.statistics().streams == 0)
    for endpoint in (a, b):
        assert not endpoint.calls.opening
        assert not endpoint.serving.connecting
        assert not endpoint._dials
        for session in endpoint.sessions.values():
            assert not session.slow
            assert not session.waiting
            assert not session.pipe.streams


def test_circuits_that_end_leave_nothing_to_the_collector(mesh: Mesh) -> None:
    """Each holds memory of OpenSSL's, of which the collector knows nothing: it comes too late."""
    web(mesh, echo=True)
    app = call(mesh)
    app.send(b"x")
    mesh.run(lambda: app.got)
    a, b = mesh.nodes[A], mesh.nodes[B]
    mesh.run(lambda: len(a.endpoint.circuits) == len(b.endpoint.circuits) == 2)
    gc.collect()
    gc.disable()
    try:
        for end in (
            lambda: a.workload("caller"),
            lambda: b.workload("web"),
            lambda: mesh.kill_wires(*range(len(mesh.wires))),
        ):
            before = set(a.endpoint.circuits) | set(b.endpoint.circuits)
            end()
            mesh.run(
                lambda: (
                    not before & (set(a.endpoint.circuits) | set(b.endpoint.circuits))  # noqa: B023
                    and len(a.endpoint.circuits) == len(b.endpoint.circuits) == 2
                )
            )
        assert sum(type(thing) is circuits.TlsCircuit for thing in gc.get_objects()) == 4
    finally:
        gc.enable()


def test_an_idle_session_ends_at_both_sides() -> None:
    mesh = Mesh("a", "b", limits=Limits(idle_max=300_000))
    service = web(mesh, echo=True)
    app = call(mesh)
    app.send(b"x")
    mesh.run(lambda: app.got)
    app.finish()
    service.apps[0].finish()
    mesh.run(lambda: not mesh.nodes[A].endpoint.sessions)
    mesh.run(lambda: not mesh.nodes[B].endpoint.sessions)
    mesh.run(lambda: not mesh.nodes[A].endpoint.circuits and not mesh.nodes[B].endpoint.circuits)
    mesh.close()


def test_bytes_read_before_the_stream_are_not_lost_while_the_session_is_paused(mesh: Mesh) -> None:
    service = web(mesh, echo=True)
    app = call(mesh)
    app.send(b"1")
    mesh.run(lambda: app.got == b"1")
    session = next(iter(mesh.nodes[A].endpoint.sessions.values()))
    session.pipe.paused = True
    mine, theirs = tcp_pair()
    late = App(mesh, mine)
    first = os.urandom(50_000)
    mesh.nodes[A].endpoint.connect(theirs, mesh.ca.id("caller"), "web", first=first)
    mesh.run(lambda: len(service.apps) == 2)
    assert bytes(service.apps[1].got) == b""
    session.pipe.paused = False
    session.resume(session.pipe)
    mesh.run(lambda: len(late.got) == len(first))
    assert bytes(late.got) == first


def test_a_bad_id_is_no_name(mesh: Mesh) -> None:
    web(mesh)
    for name in ("spiffe://", "spiffe://x/../y", "SPIFFE://a b"):
        mine, theirs = tcp_pair()
        mesh.socks.append(mine)
        verdict = mesh.nodes[A].endpoint.connect(theirs, mesh.ca.id("caller"), name)
        assert verdict == Denied("no such name")
