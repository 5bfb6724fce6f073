"""The authority of a simulated trust domain: issues SVIDs, signs sets, pushes them to agents.

It answers at once and is always right; what is tested is the mesh.  An agent has a connection to
it while its host can reach a host that may dial the authority itself, over live proxies.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from x0tta6bl4.core.machine import MS, SECOND
from x0tta6bl4.core.records.sets import cut
from x0tta6bl4.runtime.sim.identity import DOMAIN, Realm
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.world import UNIX_START_US, World
from x0tta6bl4.wire.authority import BACKDATE_S, Entry, Update
from x0tta6bl4.wire.ids import SpiffeId, node_of
from x0tta6bl4.wire.messages import SvidItem
from x0tta6bl4.wire.records import (
    AUTHORITY,
    KIND_CHUNK,
    KIND_MANIFEST,
    Bundle,
    Heartbeat,
    Record,
    Revocation,
    Rule,
    Word,
    encode_body,
    encode_record,
)

ANSWER_US: Final = 20 * MS
_LOOK: Final = 1 * SECOND
_HEARTBEAT: Final = 30 * SECOND
_SET_TTL_S: Final = 24 * 3600


class Authority:
    """One authority for a mesh.

    Args:
        world: where it lives.
        mesh: whose agents it serves.
        realm: its keys.
        direct: hosts that dial it themselves.
        ttl_s: life of SVIDs.
    """

    def __init__(
        self, world: World, mesh: Mesh, realm: Realm, direct: frozenset[str], ttl_s: int
    ) -> None:
        self.realm = realm
        self.direct = direct
        self.ttl_s = ttl_s
        self.entries: dict[str, list[Entry]] = {}
        self.revoked: dict[str, Revocation] = {}
        self.bundle = Bundle(DOMAIN, 1, (b"ca",), (realm.record_key,))
        self._world = world
        self._mesh = mesh
        self._sets: dict[str, tuple[int, tuple[bytes, ...]]] = {}
        self._up: dict[str, Any] = {}
        self.publish("bundle", self.bundle)
        self.publish("names", ())
        self.publish("revocations", ())
        self._beat(None)
        world.after(10 * MS, self._look, None)

    def unix_s(self) -> int:
        """Its wall time, which is right."""
        return (UNIX_START_US + self._world.now) // SECOND

    def publish(self, set: str, value: Word | tuple[Word, ...]) -> None:
        """Sign a set anew and push it to every agent with a connection."""
        sequence = self._sets[set][0] + 1 if set in self._sets else 1
        manifest, chunks = cut(set, sequence, encode_body(value))
        generation = max(self.unix_s(), sequence)
        expires = self.unix_s() + _SET_TTL_S
        made = [(KIND_CHUNK, f"{set}/{i}", body) for i, body in enumerate(chunks)]
        made.append((KIND_MANIFEST, set, encode_body(manifest)))
        records = tuple(
            encode_record(
                self.realm.sign_authority(
                    Record(AUTHORITY, kind, name, generation, expires, body, (), b"")
                )
            )
            for kind, name, body in made
        )
        self._sets[set] = (sequence, records)
        for agent in tuple(self._up.values()):
            self._say(agent, Update(self._unix_us(), records=records))

    def allow(self, pattern: str) -> None:
        """Publish a policy that lets everything below `pattern` call everything below it."""
        self.publish("policy", (Rule("all", "allow", (pattern,), (pattern,)),))

    def revoke(self, subject: SpiffeId) -> None:
        """Ban an identity: workload or node."""
        self.revoked[subject] = Revocation(subject, self.unix_s() + 2 * self.ttl_s, "sim")
        self.publish("revocations", tuple(self.revoked.values()))

    def issue(self, node: str, id: SpiffeId) -> SvidItem | str:
        """An SVID for a node that asks, or why not."""
        allowed = any(entry.id == id for entry in self.entries.get(node, ()))
        if node_of(id) != node and not allowed:
            return "no entry"
        if id in self.revoked or f"spiffe://{DOMAIN}/node/{node}" in self.revoked:
            return "banned"
        return self.realm.svid(id, node, self.not_before(), self.ttl_s)

    def not_before(self) -> int:
        """Where an SVID of now begins: back-dated, inside its life."""
        return self.unix_s() - min(BACKDATE_S, self.ttl_s // 4)

    def reachable(self, host: str) -> bool:
        """Whether an agent has a connection now."""
        return host in self._up

    def _unix_us(self) -> int:
        return UNIX_START_US + self._world.now

    def _beat(self, _: object) -> None:
        sequence = self._sets["revocations"][0]
        self.publish("heartbeat", Heartbeat(self._unix_us(), sequence))
        self._world.after(_HEARTBEAT, self._beat)

    def _say(self, agent: Any, update: Update) -> None:
        self._world.after(ANSWER_US, agent.authority_said, update)

    def _look(self, _: object) -> None:
        """Once a second: who has a connection?"""
        mesh = self._mesh
        reached = mesh.reached([name for name in self.direct if not mesh.hosts[name].isolated])
        for name, host in mesh.hosts.items():
            agent = host.agent
            reaches = (name in reached and host.proxy is not None) or name in self.direct
            up = agent is not None and not agent.process.frozen and not host.isolated and reaches
            known = self._up.get(name)
            if known is not None and (known is not agent or not up):
                del self._up[name]
                if known is agent:
                    agent.authority_state(False)
            if up and name not in self._up:
                self._up[name] = agent
                agent.authority_state(True)
                records = tuple(r for _, found in self._sets.values() for r in found)
                entries = tuple(self.entries.get(name, ()))
                self._say(
                    agent, Update(self._unix_us(), full=True, entries=entries, records=records)
                )
        self._world.after(_LOOK, self._look, None)


def persisted(value: msgspec.Struct) -> Any:
    """What a file brings back: a copy by way of its bytes."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))
