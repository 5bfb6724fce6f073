"""Members of the mesh that lie, repeat or forge, relays that corrupt, and what an operator does.

None of them has a key that is not its own.  What they say carries the word `forged`, so that a law
can look for it everywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Any, Final, final

import msgspec

from x0tta6bl4.core.agent.words import RenewNow
from x0tta6bl4.core.machine import MS, SECOND
from x0tta6bl4.core.session import frames
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.facts import Up
from x0tta6bl4.runtime.sim.fleet import Fleet, workload
from x0tta6bl4.runtime.sim.pathwire import PathWire
from x0tta6bl4.runtime.sim.plan import Fault, Kind, Undo
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.messages import Flood, SvidItem
from x0tta6bl4.wire.records import (
    AUTHORITY,
    KIND_MANIFEST,
    KIND_NODE,
    Adjacency,
    Manifest,
    NodeBody,
    Record,
    Rule,
    encode_body,
    encode_record,
    signed_part,
)

FORGED: Final = "forged"
_KEPT_MAX: Final = 200
_JOIN: Final = struct.Struct("<16sIQQ")


def _repeated(fleet: Fleet, every: int, act: Callable[[], None]) -> Undo:
    """Do something now and then, until it is undone."""
    going = [True]

    def again(_: object) -> None:
        if going[0]:
            act()
            fleet.world.after(every, again)

    fleet.world.after(0, again)

    def undo() -> None:
        going[0] = False

    return undo


def _say(fleet: Fleet, name: str, records: list[bytes]) -> None:
    """A member floods records to its neighbours, past its own agent."""
    flood = Flood(tuple(records))
    for neighbour in fleet.mesh.neighbours(name):
        link = fleet.mesh.between(name, neighbour)
        link.send(name, flood, 20 + sum(len(record) for record in records))


def _unix_s(fleet: Fleet) -> int:
    return fleet.authority.unix_s()


def _signed(fleet: Fleet, svid: SvidItem, record: Record) -> bytes:
    """Sign a record with the key of an SVID."""
    named = msgspec.structs.replace(record, signer=svid.chain)
    signature = fleet.realm.sign(svid.key, signed_part(named))
    return encode_record(msgspec.structs.replace(named, signature=signature))


def _poison(fleet: Fleet, name: str) -> NodeBody:
    """A body that makes its writer the best neighbour of everybody."""
    links = tuple(Adjacency(other, 1, True) for other in sorted(fleet.mesh.hosts) if other != name)
    return NodeBody(links[:64], (), report=FORGED)


def _forge_records(fleet: Fleet, fault: Fault) -> Undo:
    """A member forges records of others: with its own key, with none, and one of the authority."""
    (name,) = fault.target
    fleet.mesh.byzantine.add(name)
    random = fleet.world.random(f"forger/{name}/{fault.at}")

    def act() -> None:
        svid = fleet.mesh.hosts[name].disk.get("svid")
        if svid is None:
            return
        victim = random.choice([other for other in sorted(fleet.mesh.hosts) if other != name])
        now = _unix_s(fleet)
        record = Record(
            victim, KIND_NODE, "", now + random.randrange(60), svid.not_after_unix_s,
            encode_body(_poison(fleet, victim)), (), b"",
        )  # fmt: skip
        theirs = fleet.mesh.hosts[victim].disk.get("svid", svid)
        guessed = msgspec.structs.replace(
            record, signer=theirs.chain, signature=random.randbytes(16)
        )
        rules = (Rule(FORGED, "allow", ("spiffe://*",), ("spiffe://*",)),)
        manifest = Manifest("policy", 1_000_000, (), encode_body(rules))
        decree = Record(
            AUTHORITY, KIND_MANIFEST, "policy", now + 1, now + 3600, encode_body(manifest), (), b""
        )
        by_key = msgspec.structs.replace(decree, signer=(fleet.realm.record_key.id.encode(),))
        _say(
            fleet,
            name,
            [
                _signed(fleet, svid, record),
                encode_record(guessed),
                _signed(fleet, svid, decree),
                encode_record(msgspec.structs.replace(by_key, signature=random.randbytes(16))),
            ],
        )

    return _repeated(fleet, fault.number, act)


def _replay_records(fleet: Fleet, fault: Fault) -> Undo:
    """A member keeps what others said, and says it again and again."""
    (name,) = fault.target
    fleet.mesh.byzantine.add(name)
    kept: list[bytes] = []

    def act() -> None:
        agent = fleet.mesh.hosts[name].agent
        if agent is None:
            return
        if len(kept) < _KEPT_MAX:
            found = records_of(agent)
            kept.extend(encode_record(record) for record in found.values())
        _say(fleet, name, kept[:64])
        kept.append(kept.pop(0))

    return _repeated(fleet, fault.number, act)


def _liar(fleet: Fleet, fault: Fault) -> Undo:
    """A member says of itself, with its own key, that it has the best link to everybody."""
    (name,) = fault.target
    fleet.mesh.byzantine.add(name)

    def act() -> None:
        svid = fleet.mesh.hosts[name].disk.get("svid")
        if svid is not None:
            body = msgspec.structs.replace(_poison(fleet, name), report="")
            record = Record(
                name, KIND_NODE, "", _unix_s(fleet) + 20, svid.not_after_unix_s,
                encode_body(body), (), b"",
            )  # fmt: skip
            _say(fleet, name, [_signed(fleet, svid, record)])

    return _repeated(fleet, 500 * MS, act)


def _corrupt_relay(fleet: Fleet, fault: Fault) -> Undo:
    """A relay changes bytes of a circuit that it carries, now and then."""
    (name,) = fault.target
    random = fleet.world.random(f"flips/{name}/{fault.at}")

    def act() -> None:
        proxy = fleet.mesh.hosts[name].proxy
        if proxy is not None:
            wires = [wire for wire in proxy.sessions.wires if name in wire.path[1:-1]]
            if wires:
                random.choice(wires).corrupt(random.randrange(2))

    return _repeated(fleet, fault.number, act)


def _thief(fleet: Fleet, fault: Fault) -> Undo:
    """Somebody with a right SVID of the caller's, but without its secret, JOINs its sessions."""
    client, server = fault.target
    random = fleet.world.random(f"thief/{client}/{fault.at}")

    def act() -> None:
        proxy = fleet.mesh.hosts[server].proxy
        if proxy is None or proxy.process.frozen:
            return
        for session in tuple(proxy.machine.server.sessions.values()):
            if session.source != workload(client) or session.active is None:
                continue
            _join_without_secret(fleet, proxy, session, random)

    return _repeated(fleet, fault.number, act)


def _join_without_secret(fleet: Fleet, proxy: Any, session: Any, random: Random) -> None:
    server = proxy.host.name
    wire = PathWire(fleet.mesh, (server,), f"thief/{fleet.world.now}/{session.number}")
    number = proxy.machine.token()
    unix_s = _unix_s(fleet)
    up = Up(
        Circuit(number, proxy.sessions.heard), (server,), (unix_s + 3600) * SECOND,
        wire.exporter, wire.secret, 0, unix_s, "",
    )  # fmt: skip
    thief = Circuit(0, lambda *_: None)
    thief.say(
        frames.HEADER.pack(0, frames.JOIN << 28 | frames.JOIN_BYTES)
        + _JOIN.pack(session.id, session.epoch + 1, session.pipe.ring.acknowledged, 0)
        + random.randbytes(frames.MAC_BYTES)
    )
    wire.dialled.start(thief, lambda *_: None, lambda _: None)
    proxy.sessions.accepted((Stolen(session.source, session.target), wire, up))
    wire.dialled.pump()
    fleet.mesh.thefts.append((proxy, number))


@final
class Stolen(msgspec.Struct, frozen=True):
    """What the server sees of a thief's circuit: the right identities."""

    source: SpiffeId
    target: SpiffeId


def _rotate(fleet: Fleet, fault: Fault) -> Undo:
    """An operator has a node renew all its SVIDs, under load."""
    (name,) = fault.target
    agent = fleet.mesh.hosts[name].agent
    if agent is not None:
        agent.process.give(RenewNow((str(workload(name)), f"spiffe://sim.test/node/{name}")))
    return lambda: None


def _revoke(fleet: Fleet, fault: Fault) -> Undo:
    """An operator bans the workload of a node, for good."""
    fleet.authority.revoke(workload(fault.target[0]))
    return lambda: None


def records_of(agent: Any) -> dict[tuple[str, str, str], Record]:
    """What an agent's store holds."""
    store = agent.machine._records
    found = {key: store.record(key) for key in store.generations()}
    return {key: record for key, record in found.items() if record is not None}


KINDS: Final[dict[str, Kind]] = {
    "forge-records": _forge_records,
    "replay-records": _replay_records,
    "liar": _liar,
    "corrupt-relay": _corrupt_relay,
    "thief": _thief,
    "rotate": _rotate,
    "revoke": _revoke,
}
