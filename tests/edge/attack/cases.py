"""The attack set: certificates in both roles, protocol tricks, and bytes changed on the way.

Each attack is carried out against a real `Engine`; its outcome says whether anything got through
and why it was refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
from OpenSSL import SSL

from tests.edge.attack.attacker import Attacker
from tests.fakes.ca import ALPN, FakeCa
from x0tta6bl4.core.identity.revocation import Revocations
from x0tta6bl4.core.identity.rules import ANYBODY, WORKLOAD, Expect
from x0tta6bl4.core.machine import Allowed
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.engine import Engine, TlsClosed, TlsRefused
from x0tta6bl4.edge.tls.impostors import IMPOSTORS, Impostor
from x0tta6bl4.edge.tls.judge import Revoked, allow_all
from x0tta6bl4.edge.tls.recipes import Presented

SECRET = b"what only a judged peer may read or say"


class Outcome(msgspec.Struct, frozen=True):
    name: str
    role: str
    """What the attacker is: client or server."""
    accepted: bool
    """The peer was allowed, or a byte of it was delivered, or it has read one of ours."""
    reason: str
    wanted: tuple[str, ...]
    """Reasons that count as the right one; empty: any."""

    @property
    def right(self) -> bool:
        return not self.accepted and (not self.wanted or self.reason in self.wanted)


STDLIB_SAYS = {
    "signing certificate as leaf": "wrong extended key usage",
    "intermediate as leaf": "wrong extended key usage",
    "an extension twice": "untrusted issuer",
    "intermediate without keyCertSign": "issuer is no CA",
    "intermediate expired": "expired",
    "intermediate not yet valid": "not yet valid",
    "CA in the bundle that has expired": "expired",
    "CA in the bundle without keyCertSign": "issuer is no CA",
}
"""Where OpenSSL, which the standard library asks first, has another reason than the judge."""

_GIVES_UP = ("alert from peer: handshake failure", "alert from peer: protocol version")
"""What an OpenSSL server says when it has no certificate that it could use."""


# ------------------------------------------------------------------------------------ the exchange
def meet(
    victim: Engine, attacker: Attacker, role: str, name: str, wanted: tuple[str, ...]
) -> Outcome:
    """Handshake as far as it goes; the attacker sends at once, the victim as soon as it may."""
    buffer = memoryview(bytearray(1 << 18))
    plain = bytearray(1 << 16)
    reason, delivered, leaked = "", b"", b""
    for _ in range(8):
        if attacker.shake():
            attacker.write(SECRET)
            leaked += attacker.read()
        while n := attacker.take(buffer):
            victim.feed(buffer[:n])
        try:
            if not reason and victim.shake():
                victim.write(SECRET)
                while n := victim.read(plain):
                    delivered += plain[:n]
        except (TlsRefused, TlsClosed) as refused:
            reason = getattr(refused, "reason", "closed")
        while n := victim.take(buffer):
            attacker.feed(buffer[:n])
    allowed = not reason and type(victim.peer) is Allowed
    # Allowed by the judge but refused by OpenSSL (a proof of possession that fails) is refused.
    return Outcome(name, role, bool(allowed or delivered or leaked), reason, wanted)


def victim(ca: FakeCa, role: str, expect: Expect, revoked: Revoked = allow_all) -> Engine:
    """The end that judges; its own SVID is of the kind that it expects."""
    context = TlsContext(ca.svid("web"), ca.judge(revoked), [ALPN], expect)
    return Engine(context, server=role == "client")


def present(ca: FakeCa, impostor: Impostor, role: str, right: bool = False) -> Outcome:
    make = impostor.twin if right else impostor.make
    attacker = Attacker(role == "server", make(ca.issuer, ca.now_unix_s))
    wanted: tuple[str, ...] = (impostor.reason,)
    if not impostor.presentable:  # It can't even sign with that key.
        wanted = ("no certificate", *_GIVES_UP)
    return meet(victim(ca, role, impostor.expect), attacker, role, impostor.name, wanted)


# ------------------------------------------------------------------------------- protocol attacks
def good(ca: FakeCa, path: str = "shop", via: str | None = None) -> Presented:
    svid = ca.svid(path, via=via)
    return Presented(svid.chain, svid.key)


def version(ca: FakeCa, role: str) -> Outcome:
    return meet(
        victim(ca, role, ANYBODY),
        Attacker(role == "server", good(ca), only_tls12=True),
        role,
        "TLS 1.2 only",
        ("tls version", "alert from peer: protocol version"),
    )


def other_protocol(ca: FakeCa, role: str) -> Outcome:
    return meet(
        victim(ca, role, ANYBODY),
        Attacker(role == "server", good(ca), ["x0-link/1"]),
        role,
        "other ALPN",
        ("no common protocol",) if role == "client" else ("bad tls: bad extension",),
    )  # OpenSSL notices that we never offered it.


def no_protocol(ca: FakeCa, role: str) -> Outcome:
    return meet(
        victim(ca, role, ANYBODY),
        Attacker(role == "server", good(ca), []),
        role,
        "no ALPN",
        ("no common protocol",),
    )


def no_certificate(ca: FakeCa, role: str) -> Outcome:
    if role == "server":  # Nothing to choose from: it has to give up by itself.
        return meet(
            victim(ca, role, ANYBODY), Attacker(True, None), role, "no certificate", _GIVES_UP
        )
    return meet(
        victim(ca, role, ANYBODY),
        Attacker(False, None),
        role,
        "no certificate",
        ("no certificate",),
    )


def revoked(ca: FakeCa, role: str) -> Outcome:
    table = Revocations()
    table.put(ca.id("shop"), 2**40)
    return meet(
        victim(ca, role, WORKLOAD, table.check),
        Attacker(role == "server", good(ca)),
        role,
        "revoked",
        ("revoked",),
    )


def node_revoked(ca: FakeCa, role: str) -> Outcome:
    table = Revocations()
    table.put(ca.id("node/a"), 2**40)
    return meet(
        victim(ca, role, WORKLOAD, table.check),
        Attacker(role == "server", good(ca, via="a")),
        role,
        "node revoked",
        ("node revoked",),
    )


def someone_else(ca: FakeCa, role: str) -> Outcome:
    return meet(
        victim(ca, role, Expect(id=ca.id("bank"))),
        Attacker(role == "server", good(ca)),
        role,
        "valid, but not the one expected",
        ("unexpected peer",),
    )


def resumption(ca: FakeCa, role: str) -> Outcome:
    """A client is judged once, then revoked, and comes back with its session ticket."""
    if role == "server":  # A server can only accept what the client offers: nothing.
        return node_revoked(ca, role)
    table = Revocations()
    context = TlsContext(ca.svid("web"), ca.judge(table.check), [ALPN], ANYBODY)
    attacker = Attacker(False, good(ca))
    first = meet(Engine(context, True), attacker, role, "", ())
    assert first.accepted
    table.put(ca.id("shop"), 2**40)
    again = Attacker(False, None, like=attacker)
    return meet(Engine(context, True), again, role, "session resumption", ("revoked",))


PROTOCOL: tuple[Callable[[FakeCa, str], Outcome], ...] = (
    version,
    other_protocol,
    no_protocol,
    no_certificate,
    revoked,
    node_revoked,
    someone_else,
    resumption,
)

GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: web\r\n\r\n",
    "zeros": bytes(4_096),
    "ones": b"\xff" * 4_096,
    "record of 65,535 bytes": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "endless empty records": b"\x16\x03\x03\x00\x00" * 1_000,
    "application data first": b"\x17\x03\x03\x00\x20" + bytes(32),
    "alert storm": b"\x15\x03\x03\x00\x02\x01\x5a" * 1_000,
    "change cipher spec storm": b"\x14\x03\x03\x00\x01\x01" * 1_000,
    "refusal frame": b"X0\x01\x80\x04\x00nope",
    "sslv2 hello": bytes.fromhex("802e0100020015000000100100800200800300800600400700c0")
    + bytes(32),
}


def garbage(ca: FakeCa, role: str) -> Iterator[Outcome]:
    """Bytes that are no handshake, at once and after a proper hello."""
    for name, data in (*GARBAGE.items(), ("random", Random(7).randbytes(9_000))):
        end = victim(ca, role, ANYBODY)
        yield throw(end, data, role, f"garbage: {name}")
        end = victim(ca, role, ANYBODY)
        yield throw(end, hello(ca, role) + data, role, f"garbage after hello: {name}")


def hello(ca: FakeCa, role: str) -> bytes:
    """The first flight of a proper peer, for nobody in particular."""
    attacker = Attacker(False, good(ca))
    attacker.shake()
    buffer = bytearray(1 << 16)
    client = bytes(buffer[: attacker.take(buffer)])
    if role == "client":
        return client
    server = Attacker(True, good(ca))
    server.feed(client)
    server.shake()
    return bytes(buffer[: server.take(buffer)])


def throw(end: Engine, data: bytes, role: str, name: str) -> Outcome:
    """Feed bytes and end the stream; whatever happens, nothing may come of it."""
    reason, delivered = "", False
    try:
        end.shake()
        end.feed(data)
        for _ in range(3):
            delivered = delivered or end.shake()
        end.feed_eof()
        delivered = delivered or end.shake()
    except (TlsRefused, TlsClosed) as refused:
        reason = getattr(refused, "reason", "closed")
    return Outcome(name, role, delivered or not reason, reason, ())


def truncated(ca: FakeCa, role: str, step: int = 97) -> Iterator[Outcome]:
    """A proper peer whose every flight is cut at some byte."""
    total = len(carry(ca, role, None)[1])
    for at in range(1, total, step):

        def cut(sent: int, data: bytes, at: int = at) -> bytes:
            return data[: max(0, at - sent)]

        outcome, _ = carry(ca, role, cut)
        yield msgspec.structs.replace(outcome, name=f"truncated at {at}")


def flipped(ca: FakeCa, role: str, step: int = 41) -> Iterator[Outcome]:
    """A proper peer with one bit changed on the way, all over its flights."""
    total = len(carry(ca, role, None)[1])
    random = Random(11)
    for at in range(0, total, step):
        bit = 1 << random.randrange(8)

        def change(sent: int, data: bytes, at: int = at, bit: int = bit) -> bytes:
            if not sent <= at < sent + len(data):
                return data
            changed = bytearray(data)
            changed[at - sent] ^= bit
            return bytes(changed)

        outcome, _ = carry(ca, role, change)
        yield msgspec.structs.replace(outcome, name=f"bit flipped at {at}")


def carry(
    ca: FakeCa,
    role: str,
    change: Callable[[int, bytes], bytes] | None,
) -> tuple[Outcome, bytes]:
    """A handshake and one message of two honest ends; what the one called `role` sends passes
    through `change(bytes so far, data)`.

    Accepted means: the receiver read something other than what was sent, or the two ends hold
    different keys.  A change that TLS is bound to ignore (a record's old version number) leaves
    both intact.
    """
    sender = Engine(ca.context("shop"), server=role == "server")
    receiver = Engine(ca.context("web"), server=role == "client")
    buffer = memoryview(bytearray(1 << 18))
    sent, seen, reason, got = 0, b"", "", b""
    plain = bytearray(1 << 16)
    wrote = False
    for _ in range(6):
        try:
            if sender.shake() and not wrote:
                sender.write(SECRET)
                wrote = True
        except (TlsRefused, TlsClosed) as refused:
            reason = reason or "sender: " + getattr(refused, "reason", "closed")
        while n := sender.take(buffer):
            data = bytes(buffer[:n])
            seen += data
            receiver.feed(data if change is None else change(sent, data))
            sent += n
        try:
            if receiver.shake():
                while n := receiver.read(plain):
                    got += plain[:n]
        except (TlsRefused, TlsClosed) as refused:
            reason = reason or getattr(refused, "reason", "closed")
        while n := receiver.take(buffer):
            sender.feed(buffer[:n])
    if got == SECRET and not reason:
        label = b"EXPERIMENTAL x0 session"
        same = sender.exporter(label, b"", 32) == receiver.exporter(label, b"", 32)
        return Outcome("", role, not same, "ignored by TLS", ()), seen
    return Outcome("", role, bool(got), reason or "waits for more", ()), seen


def replayed(ca: FakeCa, role: str) -> Outcome:
    """All that a proper peer once said, said again to a new connection."""
    _, seen = carry(ca, role, None)
    return throw(victim(ca, role, ANYBODY), seen, role, "replayed connection")


ROLES = ("client", "server")


def all_attacks(ca: FakeCa) -> Iterator[Outcome]:
    """Everything, in a fixed order."""
    for role in ROLES:
        for impostor in IMPOSTORS:
            yield present(ca, impostor, role)
        for attack in PROTOCOL:
            yield attack(ca, role)
        yield from garbage(ca, role)
        yield from truncated(ca, role)
        yield from flipped(ca, role)
        yield replayed(ca, role)


def twins(ca: FakeCa) -> Iterator[Outcome]:
    """The valid twin of every impostor; `accepted` has to be True."""
    for role in ROLES:
        for impostor in IMPOSTORS:
            yield present(ca, impostor, role, right=True)


def statistics(ca: FakeCa) -> dict[str, Any]:
    """Counts for reports: what was tried, what got through, and why the rest did not."""
    outcomes = list(all_attacks(ca))
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
    valid = list(twins(ca))
    return {
        "tried": len(outcomes),
        "accepted": sum(outcome.accepted for outcome in outcomes),
        "refused_for_another_reason": [
            f"{o.role}: {o.name}: {o.reason}" for o in outcomes if not o.right
        ],
        "impostors": len(IMPOSTORS),
        "twins_tried": len(valid),
        "twins_refused": [f"{o.role}: {o.name}: {o.reason}" for o in valid if not o.accepted],
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "openssl": SSL.OpenSSL_version(0).decode(),
    }
