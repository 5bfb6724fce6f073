"""Strangers at the edges: a squatter, a stolen key at the authority, a false authority, crowds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.hostile_authority import FalseAuthority
from tests.real.attacks import Attempt, attack, attempt
from tests.real.hostile import EVIL, Scene, end_of, evil, load
from tests.real.lab import ServerProcess, get_page, rss_kb, spiffe
from x0tta6bl4.app.admission import Admission
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.edge.authority_api.client import _Connection
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.authority import Page, TokenCreate, Wanted
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.token import Token, read_token

__all__ = ["attempt", "evil", "load"]
pytestmark = pytest.mark.usefixtures("load")
NOBODY = 65_534
SQUATTER = f"""
import os, socket, sys
os.setgid({NOBODY}); os.setuid({NOBODY})
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    sock, _ = listener.accept()
    sock.settimeout(3)
    try:
        data = sock.recv(65536)
    except OSError:
        data = b""
    print(len(data), flush=True)
    sock.close()
"""


# ------------------------------------------------------------------ a squatter
@attack(
    "services",
    tried="a program of another user takes the port of a service that has died",
    reason="listener",
    twin="the service comes back",
)
def test_squatter(attempt: Attempt, evil: Scene) -> None:
    if os.geteuid() != 0:
        pytest.skip("a squatter under another uid needs root")
    server = evil.lab.servers["n4"]
    address, (port,) = evil.lab.plain("n1", "stall"), server.ports
    assert get_page(address, 10)
    server.stop()
    key = "requests_total|client|listener"
    before = evil.counter("n1", key)
    squatter = subprocess.Popen(
        [sys.executable, "-c", SQUATTER, str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == "listening\n"
        assert get_page(address, 5) == b""
        attempt.refused(evil.counts("n1", key, before))
    finally:
        squatter.kill()
        squatter.wait()
    with squatter.stdout:
        got = [int(line) for line in squatter.stdout]
    assert sum(got) == 0, "bytes reached the squatter"
    evil.lab.servers["n4"] = ServerProcess(evil.lab.page, arguments=("--port", str(port)))
    wait_for(lambda: get_page(address, 5) != b"", "the service to come back", 10)
    attempt.accepted()


# ------------------------------------------------------------------ a stolen node key
def _issue(evil: Scene, entry: str) -> words.Issued:
    wanted = (Wanted(entry=entry, csr=x509.new_csr(x509.new_key())),)
    return evil.member.ask(lambda client: client.issue(wanted))[0]


@attack(
    "authority",
    tried="a stolen node key asks for the SVIDs of other nodes' workloads",
    reason="entry of another node",
    twin="for those of its own",
)
def test_foreign_svids(attempt: Attempt, evil: Scene) -> None:
    entries = evil.lab.operator.call("EntryList", Page()).entries
    foreign = [entry for entry in entries if entry.node != EVIL]
    assert len(foreign) >= 3
    for entry in foreign:
        issued = _issue(evil, entry.key)
        assert not issued.chain
        attempt.refused(issued.refused)
    own = [entry for entry in entries if entry.node == EVIL]
    attempt.accepted(all(_issue(evil, entry.key).chain for entry in own))


@attack(
    "authority",
    tried="a stolen node key watches, to learn the entries of other nodes",
    reason="none of another node",
    twin="its own are told",
)
def test_foreign_entries(attempt: Attempt, evil: Scene) -> None:
    evil.member.fetch()
    assert {entry.node for entry in evil.member.entries} == {EVIL}
    attempt.refused(f"none of another node among {len(evil.member.entries)}")
    attempt.accepted(spiffe("den") in {entry.id for entry in evil.member.entries})


@attack(
    "authority",
    tried="a stolen node key calls all methods of operators over its connection",
    reason="authority answered",
    twin="Health is answered at the operators' socket",
)
def test_admin_methods(attempt: Attempt, evil: Scene) -> None:
    async def ask(method: str, request: Any) -> str:
        address = evil.member.settings.authority.address
        tls = evil.member.trusts.authority_client()
        connection = _Connection(address, tls, words.ADMIN, 5)
        try:
            await connection.call(method, request, words.ADMIN_METHODS[method][1])
        except X0Error as error:
            return error.what
        finally:
            connection.close()
        return ""

    requests = {
        "Health": words.Nothing(),
        "NodeEvict": words.NodeEvict(node="n1"),
        "TokenCreate": TokenCreate(node="n9"),
        "Revoke": words.Revoke(subject=spiffe("web")),
        "EntryList": Page(),
        "RenewAll": words.Nothing(),
    }
    for method, request in requests.items():
        attempt.refused(evil.member.background.call(ask(method, request)))
    attempt.accepted(evil.lab.operator.call("Health", words.Nothing()))


# ------------------------------------------------------------------ a false authority
def _token(evil: Scene, node: str) -> Token:
    made = evil.lab.operator.call("TokenCreate", TokenCreate(node=node))
    return msgspec.structs.replace(read_token(made.token), authorities=())


def _enrol(evil: Scene, token: Token, through: str, root: Path) -> str:
    """Enrol through a neighbour; the reason of a failure, or how it was done."""
    admission = Admission(
        evil.member.domain,
        NodeName(token.node),
        Wallet(root / token.node),
        (),
        (through,),
        root,
    )
    try:
        return asyncio.run(admission.admit(token)).how
    except X0Error as error:
        return error.what


@attack(
    "enrolment",
    tried="a neighbour plays authority to an enrolling node, with a CA and a bundle of its own",
    reason="does not have the bundle that the token names",
    twin="the same node and token through an honest neighbour",
)
def test_false_authority(attempt: Attempt, evil: Scene, tmp_path: Path) -> None:
    token = _token(evil, "n7")
    with FalseAuthority(evil.member.domain, evil.member.background) as false:
        attempt.refused(_enrol(evil, token, false.address, tmp_path))
        assert false.asked == ["Trust"], "the secret went to the false authority"
    honest = evil.lab.mesh.settings("n1").data.listen
    attempt.accepted(_enrol(evil, token, honest, tmp_path) == "enrolled")


@attack(
    "enrolment",
    tried="with the true authority's answer about its bundle, recorded",
    reason="untrusted issuer",
    twin="the same node and token through an honest neighbour",
)
def test_recorded_trust(attempt: Attempt, evil: Scene, tmp_path: Path) -> None:
    token = _token(evil, "n8")
    recorded = evil.member.ask(lambda client: client.trust(token.bundle_sha256))
    with FalseAuthority(evil.member.domain, evil.member.background, recorded) as false:
        attempt.refused(_enrol(evil, token, false.address, tmp_path))
        assert false.asked == ["Trust"], "the secret went to the false authority"
    honest = evil.lab.mesh.settings("n1").data.listen
    attempt.accepted(_enrol(evil, token, honest, tmp_path) == "enrolled")


@attack(
    "enrolment",
    tried="a token spent twice",
    reason="token",
    twin="the first time",
)
def test_spent_token(attempt: Attempt, evil: Scene, tmp_path: Path) -> None:
    token = _token(evil, "n6")
    honest = evil.lab.mesh.settings("n1").data.listen
    first = _enrol(evil, token, honest, tmp_path / "a")
    attempt.refused(_enrol(evil, token, honest, tmp_path / "b"))
    attempt.accepted(first == "enrolled")


# ------------------------------------------------------------------ crowds
HELLO = bytes.fromhex("16030100f8010000f40303") + bytes(64)
"""The beginning of a ClientHello whose end never comes."""


@attack(
    "edges",
    tried="300 half-open TLS handshakes each at link port, authority and data port, and 200"
    " connections that dribble into the SOCKS port",
    reason="closed by the deadline",
    twin="new connections meanwhile, and memory that does not grow by more than 48 MB",
)
def test_crowds(attempt: Attempt, evil: Scene) -> None:
    settings = evil.lab.mesh.settings("n1")
    doors = [
        (split_address(settings.control.listen), HELLO, 300),
        (split_address(settings.authority.address), HELLO, 300),
        (split_address(settings.data.listen), b"X0\x01", 300),
        (evil.lab.socks("n1"), b"\x05", 200),
    ]
    pids = {name: pid for name, pid in evil.lab.processes().items() if "n1" in name or "au" in name}
    before = {name: rss_kb(pid) for name, pid in pids.items()}
    with contextlib.ExitStack() as stack:
        crowd = []
        for address, first, count in doors:
            for _ in range(count):
                sock = stack.enter_context(socket.create_connection(address, 5))
                sock.sendall(first)
                crowd.append(sock)
        began = time.monotonic()
        fresh = [get_page(evil.lab.plain("n1", "web"), 5) for _ in range(10)]
        assert all(fresh), "a new connection got nothing"
        grown = max(rss_kb(pid) - before[name] for name, pid in pids.items()) / 1024
        left = _left(crowd[:-200], began + 15)  # SOCKS greetings may take 10 s.
        took = time.monotonic() - began
        assert left == 0, f"{left} of {len(crowd) - 200} are still open"
    assert grown < 48, grown
    attempt.refused(
        f"closed by the deadline: {len(crowd) - 200} within {took:.1f} s, {grown:+.1f} MB"
    )
    attempt.accepted(evil.taken(evil.honest(), "n1"))


def _left(crowd: list[socket.socket], until: float) -> int:
    """How many are still open at an instant."""
    open_ones = set(crowd)
    for sock in crowd:
        sock.setblocking(False)
    while open_ones and time.monotonic() < until:
        for sock in tuple(open_ones):
            try:
                if not sock.recv(4096):
                    open_ones.discard(sock)
            except BlockingIOError:
                continue
            except OSError:
                open_ones.discard(sock)
        time.sleep(0.05)
    return len(open_ones)


def test_the_other_traffic_lost_nothing_at_all(evil: Scene) -> None:
    end_of(evil, 500)
