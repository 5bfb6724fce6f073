"""Ports of a mesh on one machine: its own while it lives, whoever of it is dead meanwhile."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.mesh import Mesh, Plan, free_ports
from x0tta6bl4.runtime.loop.connect import data_port
from x0tta6bl4.wire.errors import Unavailable


def ports_of(mesh: Mesh) -> list[int]:
    found = []
    for node in mesh.plan.nodes:
        settings = mesh.settings(node)
        for text in (
            settings.authority.address,
            settings.data.listen,
            settings.control.listen,
            settings.metrics.listen,
            *(listen.address for listen in settings.listen),
        ):
            found.append(int(text.rpartition(":")[2]))
    return found


def plan(*addresses: str) -> Plan:
    listeners = [("a", cfg.Listen(address=x, kind="plain", name="web")) for x in addresses]
    return Plan("t.mesh", ("a",), (), tuple(listeners))


def test_nobody_else_gets_the_ports_of_a_mesh_and_its_own_processes_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (named,) = free_ports(1)
    mesh = Mesh(tmp_path / "m", plan("127.0.0.1:0", f"127.0.0.1:{named}"))
    mesh.lay_out()
    ports = ports_of(mesh)
    assert len(set(ports)) == 6
    assert named in ports
    (other,) = free_ports(1)
    drawn = [port - 10_240 for port in (*ports, other)]
    monkeypatch.setattr(secrets, "randbelow", lambda _bound: drawn.pop(0))
    assert free_ports(1) == [other]
    for port in ports:
        tcp, udp = data_port("127.0.0.1", port)
        socket.create_connection(("127.0.0.1", port), 5).close()
        tcp.close()
        udp.close()
    mesh.stop()
    drawn = [port - 10_240 for port in ports]
    assert free_ports(len(ports)) == ports


def test_a_named_port_where_somebody_listens_is_a_clear_error(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        mesh = Mesh(tmp_path / "m", plan(f"127.0.0.1:{port}"))
        with pytest.raises(Unavailable, match=f"X0-UP-007: port {port} is taken"):
            mesh.lay_out()
