"""Sessions of one connection each: over real sockets and real TLS, two endpoints in one loop."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tests.fakes.endpoints import Mesh, call, web
from x0tta6bl4.core.machine import MS
from x0tta6bl4.core.proxy.clients import OWN_STANDBY
from x0tta6bl4.core.session.stream import CREDIT_MIN
from x0tta6bl4.runtime.loop.poll import READ
from x0tta6bl4.runtime.loop.streams import AppStream
from x0tta6bl4.wire.ids import NodeName

A, B = NodeName("a"), NodeName("b")


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    mesh = Mesh("a", "b")
    yield mesh
    mesh.close()


def test_each_connection_has_a_handshake_to_itself_and_leaves_nothing(mesh: Mesh) -> None:
    service = web(mesh, echo=True)
    a, b = mesh.nodes[A].endpoint, mesh.nodes[B].endpoint
    apps = [call(mesh, own=True) for _ in range(5)]
    for index, app in enumerate(apps):
        app.send(b"mine is %d" % index)
    mesh.run(lambda: all(len(app.got) == 9 for app in apps))
    assert [bytes(app.got) for app in apps] == [b"mine is %d" % i for i in range(5)]
    sessions = [(session.pipe.opened_total, session.client) for session in a.sessions.values()]
    assert sessions == [(1, True)] * 5
    carriers = [client.machine.active for client in a.proxy.clients.values()]
    assert len({carrier.number for carrier in carriers if carrier is not None}) == 5
    assert b.statistics().sessions == 5
    (state,) = a.states()
    assert (state.streams, state.requests) == (5, 5)
    for app in (*apps, *service.apps):
        app.finish()
    mesh.run(lambda: not (a.sessions or b.sessions or a.circuits or b.circuits))
    assert {record.reason for node in mesh.nodes.values() for record in node.records} == {"closed"}
    assert a.statistics().circuits_lost == 0


def test_shared_and_own_do_not_meet(mesh: Mesh) -> None:
    web(mesh, echo=True)
    a = mesh.nodes[A].endpoint
    apps = [call(mesh, own=own) for own in (False, True, False)]
    for app in apps:
        app.send(b"x")
    mesh.run(lambda: all(app.got for app in apps))
    assert sorted(session.pipe.opened_total for session in a.sessions.values()) == [1, 2]


def test_a_standby_comes_for_what_lasts_and_its_circuit_may_die(mesh: Mesh) -> None:
    service = web(mesh, echo=True)
    endpoint = mesh.nodes[A].endpoint
    app = call(mesh, own=True)
    app.send(b"one")
    mesh.run(lambda: len(app.got) == 3)
    (client,) = endpoint.proxy.clients.values()
    mesh.idle((OWN_STANDBY - 100 * MS) / 1e6)
    assert client.machine.standby is None, "most are over before"
    mesh.run(lambda: client.machine.standby is not None)
    active = client.machine.active
    assert active is not None
    endpoint.circuits[active.number].sock.shutdown(2)
    app.send(b"two")
    mesh.run(lambda: len(app.got) == 6)
    assert client.machine.moves == 1
    assert not app.end
    assert not service.apps[0].end


def test_all_that_was_said_arrives_though_the_caller_has_left(mesh: Mesh) -> None:
    """The service has ended its direction, reads late, and the session is over meanwhile."""
    service = web(mesh, read=False)
    service.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    a, b = mesh.nodes[A].endpoint, mesh.nodes[B].endpoint
    data = os.urandom(CREDIT_MIN - 1)
    app = call(mesh, own=True)
    app.send(data[:10])
    mesh.run(lambda: service.apps)
    served = service.apps[0]
    served.finish()
    mesh.run(lambda: app.end == "eof")
    (session,) = b.sessions.values()
    (stream,) = session.pipe.streams.values()
    assert isinstance(stream, AppStream)
    stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    app.send(data[10:])
    app.finish()
    mesh.run(lambda: not (a.sessions or a.circuits or b.circuits))
    assert stream.pending_bytes > 0
    served.read = True
    mesh.loop.set(served.sock.fileno(), READ)
    mesh.run(lambda: served.end)
    assert served.end == "eof"
    assert bytes(served.got) == data
    assert [record.reason for record in mesh.nodes[B].records] == ["closed"]
