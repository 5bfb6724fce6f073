"""Circuits, sessions, links and setup frames of a member that keeps to none of the rules."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from bench.server import pattern
from tests.edge.attack.attacker import Attacker
from tests.fakes import hostile_circuit as by_hand
from tests.fakes.hostile_circuit import Circuit, context, dial, hop_frame, raw_hop, say_setup, shake
from tests.real.attacks import Attempt, attack, attempt
from tests.real.hostile import EVIL, Scene, end_of, evil, load
from tests.real.lab import get_page, spiffe
from x0tta6bl4.app.admission import Unjudged
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.core.session import frames
from x0tta6bl4.core.session.frames import JOIN, JOINED, NEW, Join
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, ALPN_CIRCUIT, ALPN_LINK, TlsContext
from x0tta6bl4.edge.tls.engine import Engine
from x0tta6bl4.edge.tls.recipes import Presented
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.loop.endpoint import SHAKING_MAX
from x0tta6bl4.wire import hop
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.messages import Redial

__all__ = ["attempt", "evil", "load"]
pytestmark = pytest.mark.usefixtures("load")
PATH = ("n2", "n3")
WEB = spiffe("web")


def circuit(evil: Scene, svid: Svid | None, target: str = WEB, alpn: str = ALPN_CIRCUIT) -> Circuit:
    """A circuit from the hostile member over n2 to n3."""
    return Circuit(dial(evil.member, PATH, target), context(svid, Unjudged(), alpn))


def begun(evil: Scene, name: str = "shop") -> tuple[Circuit, bytes, bytes]:
    """A session as it should be: its first circuit, number and secret."""
    first = circuit(evil, evil.member.workloads[spiffe(name)])
    assert not first.why, first.why
    number, secret = by_hand.new_session()
    first.say(first.join(NEW, Join(number, 1, 0, 0, b""), secret))
    assert first.wait(JOINED) is not None, first.ended
    return first, number, secret


def is_page(evil: Scene, data: bytes) -> bool:
    """Whether this is what the servers serve."""
    return data == evil.lab.page.read_bytes()


# ------------------------------------------------------------------ who is who
@attack(
    "circuits",
    tried="a node's SVID on a circuit, as client",
    reason="not a workload",
    twin="the SVID of a workload of the same node, over the same path, gets a page",
)
def test_node_id_on_a_circuit(attempt: Attempt, evil: Scene) -> None:
    key = "handshakes_total|circuit|not a workload"
    before = evil.counter("n3", key)
    with contextlib.closing(circuit(evil, evil.member.svid)) as tried:
        assert tried.wait_end()
    attempt.refused(evil.counts("n3", key, before))
    first, _, _ = begun(evil)
    attempt.accepted(is_page(evil, first.get_page()))
    first.close()


@attack(
    "circuits",
    tried="a workload that no policy admits asks for a stream",
    reason="denied",
    twin="one that may",
)
def test_workload_without_a_right(attempt: Attempt, evil: Scene) -> None:
    wolf, _, _ = begun(evil, "wolf")
    wolf.say(frames.open_frame(1, frames.Open("web")))
    said = next((v for s, k, v, _ in wolf.each() if s == 1 and k == frames.RST), -1)
    wolf.close()
    attempt.refused(frames.reset_of(said).phrase)
    shop, _, _ = begun(evil)
    attempt.accepted(is_page(evil, shop.get_page()))
    shop.close()


@attack(
    "circuits",
    tried="another protocol name (ALPN x0-link/1) on a circuit",
    reason="no common protocol",
    twin="x0-circuit/1",
)
def test_other_protocol(attempt: Attempt, evil: Scene) -> None:
    key = "handshakes_total|circuit|no common protocol"
    shop = evil.member.workloads[spiffe("shop")]
    before = evil.counter("n3", key)
    with contextlib.closing(circuit(evil, shop, alpn=ALPN_LINK)) as tried:
        assert tried.wait_end()
    attempt.refused(evil.counts("n3", key, before))
    good = circuit(evil, shop)
    attempt.accepted(not good.why)
    good.close()


def tls12(sock: socket.socket, svid: Svid, alpn: str, only: bool = True) -> str:
    """Handshake of one who knows nothing newer; empty if it succeeds."""
    end = Attacker(False, Presented(svid.chain, svid.key), [alpn], only_tls12=only)
    with sock:
        why = shake(sock, end)
    return why and (end.dead or why)


@attack(
    "circuits, links, authority",
    tried="TLS 1.2 with a good SVID at each of the three",
    reason="alert protocol version",
    twin="TLS 1.3 with the same SVID at each of the three",
)
def test_tls12(attempt: Attempt, evil: Scene) -> None:
    settings = evil.lab.mesh.settings("n2")
    link, authority = (
        split_address(text) for text in (settings.control.listen, settings.authority.address)
    )
    doors: list[tuple[Callable[[], socket.socket], Svid, str]] = [
        (lambda: dial(evil.member, PATH, WEB), evil.member.workloads[spiffe("shop")], ALPN_CIRCUIT),
        (lambda: socket.create_connection(link, 5), evil.member.svid, ALPN_LINK),
        (lambda: socket.create_connection(authority, 5), evil.member.svid, ALPN_AUTHORITY),
    ]
    said = [tls12(door(), svid, alpn) for door, svid, alpn in doors]
    for why in said:
        attempt.refused(why.replace("tlsv1 ", "").replace("alert_", "alert "))
    attempt.accepted(all(tls12(d(), svid, alpn, only=False) == "" for d, svid, alpn in doors))


@attack(
    "links",
    tried="a workload's SVID on a link, as client",
    reason="not a node",
    twin="the node's own SVID",
)
def test_workload_id_on_a_link(attempt: Attempt, evil: Scene) -> None:
    address = split_address(evil.lab.mesh.settings("n1").control.listen)

    def knock(svid: Svid, alpn: str = ALPN_LINK) -> str:
        with socket.create_connection(address, 5) as sock:
            tls = Engine(TlsContext(svid, Unjudged(), (alpn,), ANYBODY), False)
            return shake(sock, tls) or (sock.recv(1) and "") or "closed"

    since = evil.now_us()
    knock(evil.member.workloads[spiffe("shop")])
    attempt.refused(evil.says("n1", "link handshake: not a node", since))
    assert knock(evil.member.svid, ALPN_CIRCUIT)
    evil.says("n1", "link handshake: no common protocol", since)
    since = evil.now_us()
    knock(evil.member.svid)
    with pytest.raises(Unavailable):
        evil.says("n1", "link handshake", since, 0.3)
    attempt.accepted()


@attack(
    "links",
    tried="a workload's SVID on a link, as server: a neighbour that dials is answered by it",
    reason="not a node",
    twin="the same server with the node's SVID",
)
def test_workload_id_answers_a_link(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    evil.member.trusts.present(evil.member.workloads[spiffe("shop")])
    evil.member.say("n1", Redial())
    try:
        attempt.refused(evil.says("n1", "not a node", since))
    finally:
        evil.member.trusts.present(evil.member.svid)
    before = evil.member.ups["n1"]
    wait_for(lambda: _redialled(evil, before), "n1 to dial again", 10)
    attempt.accepted(evil.taken(evil.honest(), "n1"))


def _redialled(evil: Scene, before: int) -> bool:
    if evil.member.ups["n1"] > before:
        return True
    evil.member.say("n1", Redial())
    time.sleep(0.2)
    return False


# ------------------------------------------------------------------ sessions
@attack(
    "sessions",
    tried="JOIN by a holder of the same workload ID, without the session's secret",
    reason="protocol",
    twin="JOIN with the secret; the session that was aimed at goes on",
)
def test_join_without_the_secret(attempt: Attempt, evil: Scene) -> None:
    first, number, secret = begun(evil)
    assert is_page(evil, first.get_page(1))
    key = "circuits_closed_total|protocol"
    before = evil.counter("n3", key)
    shop = evil.member.workloads[spiffe("shop")]
    for tried in (
        lambda c: c.join(JOIN, Join(number, 2, 0, 0, b""), os.urandom(32)),
        lambda c: c.join(NEW, Join(number, 2, 0, 0, b""), os.urandom(32)),
        lambda c: first.join(JOIN, Join(number, 2, 0, 0, b""), secret),  # Of another circuit.
        lambda c: c.join(JOIN, Join(number, 1, 0, 0, b""), secret),  # An epoch that was.
        lambda c: c.join(JOIN, Join(number, 2, 1 << 40, 0, b""), secret),
        lambda c: c.join(JOIN, Join(number, 2, 0, 1 << 40, b""), secret),
        lambda c: c.join(JOIN, Join(number, 2, 0, 0, b""), secret, frames.LABEL_SERVER),
    ):
        second = circuit(evil, shop)
        second.say(tried(second))
        assert second.wait(JOINED) is None
        assert second.ended
        second.close()
    attempt.refused(evil.counts("n3", key, before + 6))
    assert is_page(evil, first.get_page(2)), "the session that was aimed at is hurt"
    third = circuit(evil, shop)
    third.say(third.join(JOIN, Join(number, 2, 0, 0, b""), secret))
    attempt.accepted(third.wait(JOINED) is not None)
    first.close()
    third.close()


class Den:
    """A replica of a service that lies about offsets, until told to be honest."""

    def __init__(self, evil: Scene, page: bytes) -> None:
        self._evil = evil
        self._page = page
        self.svid = evil.member.workloads[spiffe("den")]
        self.lie: Callable[[Join], Join] | None = None
        self.lied = self.closed = self.served = 0
        self._secrets: dict[bytes, bytes] = {}
        self._circuits: set[Circuit] = set()
        evil.door.on_circuit = self.take

    def take(self, sock: socket.socket, target: str) -> None:
        """A hop of somebody who wants `den`."""
        with contextlib.closing(Circuit(sock, context(self.svid, Unjudged()), server=True)) as made:
            if not made.why:
                self._serve(made)

    def close(self) -> None:
        """Serve nobody any more."""
        self._evil.door.on_circuit = None
        self.forget()

    def forget(self) -> None:
        """Know no session any more, as if started anew."""
        self._secrets.clear()
        for made in tuple(self._circuits):
            with contextlib.suppress(OSError):
                made.sock.shutdown(socket.SHUT_RDWR)

    def _serve(self, made: Circuit) -> None:
        self._circuits.add(made)
        for stream, kind, _, body in made.each(20):
            if kind in (NEW, JOIN):
                join = frames.join_body(kind, body)
                secret = self._secrets.setdefault(join.session, join.secret)
                if not secret:  # A session of the process that was here before us.
                    made.say(frames.frame(0, frames.GONE))
                    continue
                answer = Join(join.session, join.epoch, 0, 0, b"")
                if self.lie is not None:
                    answer = self.lie(answer)
                    self.lied += 1
                made.say(made.join(JOINED, answer, secret, frames.LABEL_SERVER))
            elif kind == frames.DATA:
                head = b"HTTP/1.1 200 OK\r\n\r\n" + self._page
                made.say(
                    frames.frame(stream, frames.OPENED),
                    struct.pack("<II", stream, frames.DATA << 28 | len(head)) + head,
                )
                self.served += 1
        self._circuits.discard(made)
        self.closed += bool(made.ended)


class Asking:
    """A program on n1 that wants a page of `den`, and asks again when it gets none."""

    def __init__(self, evil: Scene) -> None:
        self._address = evil.lab.plain("n1", "den")
        self.got = b""
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        until = time.monotonic() + 15
        while not self.got and time.monotonic() < until:
            self.got = get_page(self._address, 15)

    def page(self) -> bytes:
        """What it got in the end."""
        self._thread.join(30)
        return self.got


@attack(
    "sessions",
    tried="JOINED with false offsets by a genuine replica",
    reason="the client closes the circuit",
    twin="JOINED with true ones: the page comes, whole and once",
)
def test_joined_with_false_offsets(attempt: Attempt, evil: Scene) -> None:
    page = os.urandom(1024)
    den = Den(evil, page)
    lies: list[Callable[[Join], Join]] = [
        lambda j: msgspec.structs.replace(j, received=1 << 40),
        lambda j: msgspec.structs.replace(j, start=1 << 40),
    ]
    evil.offer_den()
    for lie in lies:
        den.forget()
        den.lie, den.served = lie, 0
        lied, closed = den.lied, den.closed
        asking = Asking(evil)
        wait_for(lambda n=lied: den.lied > n, "a lie to be told", 15)  # type: ignore[misc]
        wait_for(lambda n=closed: den.closed > n, "the circuit to be closed", 15)  # type: ignore[misc]
        assert not asking.got, "the client took bytes from one who lied"
        den.lie = None
        assert asking.page() == page
    attempt.refused(f"the client closes the circuit ({den.lied} lies)")
    attempt.accepted(den.served)
    den.close()


@attack(
    "circuits",
    tried="a node's SVID on a circuit, as server",
    reason="not a workload",
    twin="the SVID of the workload that was called",
)
def test_node_id_serves_a_circuit(attempt: Attempt, evil: Scene) -> None:
    page = os.urandom(1024)
    den = Den(evil, page)
    evil.offer_den()
    good, den.svid = den.svid, evil.member.svid
    key = "handshakes_total|circuit|not a workload"
    before = evil.counter("n1", key)
    asking = Asking(evil)
    attempt.refused(evil.counts("n1", key, before, 15))
    den.svid = good
    attempt.accepted(asking.page() == page)
    den.close()


# ------------------------------------------------------------------ setup frames
def provoked(evil: Scene, words: str, act: Callable[[], str]) -> str:
    """Act until n1 says why it refused: it says so once a second."""
    for _ in range(8):
        since = evil.now_us()
        assert act() == "n1: setup frame not opened"
        with contextlib.suppress(Unavailable):
            return evil.says("n1", words, since, 0.4)
    raise AssertionError(words)


@attack(
    "setup frames",
    tried="one forged: a bit of its seal is wrong",
    reason="setup frame forged",
    twin="the one that was copied",
)
def test_forged(attempt: Attempt, evil: Scene) -> None:
    def act() -> str:
        good = bytearray(hop_frame(evil.member, "n1", ("n1",), WEB))
        good[-1] ^= 1
        return say_setup(evil.member.data_of("n1"), bytes(good))

    attempt.refused(provoked(evil, "setup frame forged", act))
    good = hop_frame(evil.member, "n1", ("n1",), WEB)
    # It was opened: the answer is about its target, which is not here.
    attempt.accepted(say_setup(evil.member.data_of("n1"), good) == "n1: no such workload here")


@attack(
    "setup frames",
    tried="one replayed",
    reason="setup frame replayed",
    twin="the same, the first time",
)
def test_replayed(attempt: Attempt, evil: Scene) -> None:
    frame = hop_frame(evil.member, "n1", ("n1",), WEB)
    first = say_setup(evil.member.data_of("n1"), frame)
    again = lambda: say_setup(evil.member.data_of("n1"), frame)  # noqa: E731
    attempt.refused(provoked(evil, "setup frame replayed", again))
    attempt.accepted(first == "n1: no such workload here")


@attack(
    "setup frames",
    tried="one under another link's number, one under none",
    reason="unknown keys",
    twin="under its own",
)
def test_foreign_keys(attempt: Attempt, evil: Scene) -> None:
    good = hop_frame(evil.member, "n1", ("n1",), WEB)
    other = hop.Header(hop.HOP, 12345, 1, 64)

    def act() -> str:
        return say_setup(evil.member.data_of("n1"), hop.pack_header(other), os.urandom(64))

    attempt.refused(provoked(evil, "unknown keys", act))
    attempt.accepted(say_setup(evil.member.data_of("n1"), good) == "n1: no such workload here")


@attack(
    "setup frames",
    tried="one truncated at every tenth byte",
    reason="setup frame cut short",
    twin="the whole one",
)
def test_truncated(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    whole = hop_frame(evil.member, "n1", ("n1",), WEB)
    for size in range(1, len(whole), 10):
        assert say_setup(evil.member.data_of("n1"), whole[:size], end=True) == "closed"

    def told() -> bool:  # Once a second.
        say_setup(evil.member.data_of("n1"), whole[:20], end=True)
        return any("cut short" in e.text for e in evil.lab.status("n1").events[-3:])

    wait_for(told, "n1 to tell", 5)
    attempt.refused(evil.says("n1", "setup frame cut short", since))
    attempt.accepted(say_setup(evil.member.data_of("n1"), whole) == "n1: no such workload here")


def _paths(evil: Scene, *path: str) -> str:
    return say_setup(evil.member.data_of("n1"), raw_hop(evil.member, "n1", path, WEB))


@attack(
    "setup frames",
    tried="a path that comes to a node twice",
    reason="path with a node twice",
    twin="one that does not reaches n3",
)
def test_looping(attempt: Attempt, evil: Scene) -> None:
    attempt.refused(_paths(evil, "n1", "n2", "n1", "n2", "n3"))
    assert _paths(evil, "n1", EVIL) == f"n1: path goes back to {EVIL}"
    good = Circuit(
        dial(evil.member, ("n1", "n2", "n3"), WEB),
        context(evil.member.workloads[spiffe("shop")], Unjudged()),
    )
    attempt.accepted(not good.why)
    good.close()


@attack(
    "setup frames",
    tried="1,000 hops, and 17",
    reason="path of 1000 nodes",
    twin="three",
)
def test_thousand_hops(attempt: Attempt, evil: Scene) -> None:
    many = ("n1", *(f"{i:x}" for i in range(999)))
    attempt.refused(_paths(evil, *many))
    assert _paths(evil, *many[:17]) == "n1: path of 17 nodes"
    good = Circuit(
        dial(evil.member, ("n1", "n2", "n3"), WEB),
        context(evil.member.workloads[spiffe("shop")], Unjudged()),
    )
    attempt.accepted(not good.why)
    good.close()


@attack(
    "setup frames",
    tried="onward to a node that is no neighbour of the relay",
    reason="no link to n3",
    twin="onward to one that is",
)
def test_no_link(attempt: Attempt, evil: Scene) -> None:
    attempt.refused(_paths(evil, "n1", "n3"))
    assert "no link to n9" in _paths(evil, "n1", "n9", "n3")
    assert "refused" not in _paths(evil, "n2", "n3")
    good = Circuit(
        dial(evil.member, ("n1", "n2", "n3"), WEB),
        context(evil.member.workloads[spiffe("shop")], Unjudged()),
    )
    attempt.accepted(not good.why)
    good.close()


@attack(
    "setup frames",
    tried="more silent circuits at once than one neighbour's share of handshakes",
    reason=f"too many handshakes from {EVIL}",
    twin="one, when the others have gone",
)
def test_over_the_bounds(attempt: Attempt, evil: Scene) -> None:
    # The bound of hops that are past their handshake: tests/real/test_hops.py.
    address = evil.member.data_of("n1")
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(SHAKING_MAX // 2 + 20):
            sock = stack.enter_context(socket.create_connection(address, 5))
            sock.sendall(hop_frame(evil.member, "n1", ("n1",), spiffe("shop")))
            socks.append(sock)
        last = [by_hand.read_refusal(sock, 3) for sock in socks[-20:]]
    attempt.refused(last[-1])
    wait_for(
        lambda: (
            say_setup(address, hop_frame(evil.member, "n1", ("n1",), WEB))
            == "n1: no such workload here"
        ),
        "the hops to go",
        10,
    )
    attempt.accepted()


# ------------------------------------------------------------------ a relay that flips bytes
@attack(
    "relays",
    tried="a relay turns bits over in what it carries",
    reason="circuit dropped",
    twin="a download through it meanwhile: hash equal, and its path is avoided",
)
def test_relay_flips_bytes(attempt: Attempt, evil: Scene) -> None:
    relay = evil.lab.path("n1")[1]
    flipper = evil.flippers[relay]
    before, lost = flipper.flipped, evil.counter("n1", "circuits_closed_total|lost")
    total = 24 << 20
    digest = hashlib.sha256()
    with socket.create_connection(evil.lab.plain("n1", "web"), 20) as sock:
        sock.sendall(f"both {total} {total * 8}\n".encode())
        sock.shutdown(socket.SHUT_WR)
        got = 0
        while data := sock.recv(1 << 18):
            digest.update(data)
            got += len(data)
            if got > total // 4 and flipper.flipped == before:
                flipper.flips = 1
    flipper.flips = 0
    wanted = hashlib.sha256()
    for block in pattern(total):
        wanted.update(block)
    wanted.update(hashlib.sha256().hexdigest().encode())  # Of what it read: nothing.
    total += 64
    assert flipper.flipped > before
    wait_for(
        lambda: (
            evil.counter("n1", "circuits_closed_total|lost") > lost
            or evil.counter("n3", "circuits_closed_total|lost") > 0
        ),
        "the circuit to be dropped",
        5,
    )
    wait_for(lambda: evil.lab.path("n1")[1] != relay, "another path", 10)
    attempt.refused(f"circuit dropped after {flipper.flipped - before} flips at {relay}")
    assert got == total, f"{got} of {total} bytes came"
    attempt.accepted(digest.digest() == wanted.digest())


def test_the_other_traffic_lost_nothing_either(evil: Scene) -> None:
    end_of(evil)
