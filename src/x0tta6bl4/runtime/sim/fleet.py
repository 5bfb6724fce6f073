"""A simulated trust domain: mesh, authority, a workload on each node, and how all is started."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Final

from x0tta6bl4.core.agent.composite import Agent
from x0tta6bl4.core.proxy.composite import Proxy
from x0tta6bl4.runtime.sim.authority import Authority
from x0tta6bl4.runtime.sim.identity import DOMAIN, Realm
from x0tta6bl4.runtime.sim.mesh import Host, Mesh
from x0tta6bl4.runtime.sim.sides import AgentSide, ProxySide, start_agent, start_proxy
from x0tta6bl4.runtime.sim.world import World
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.records import decode_node, decode_record

TTL_S: Final = 3600
_DECODED_MAX: Final = 20_000


def workload(node: str) -> SpiffeId:
    """SPIFFE ID of the workload of a node."""
    return SpiffeId(f"spiffe://{DOMAIN}/app/{node}")


class Fleet:
    """All processes of a simulated mesh.

    Args:
        world: where it lives.
        mesh: hosts and wires, laid already.
        direct: hosts that dial the authority themselves.
        ttl_s: life of SVIDs.
        workloads: hosts that have one; each calls and serves.  All, if None.
        agent, proxy: make the machines, or broken ones that a law must catch.
    """

    def __init__(
        self,
        world: World,
        mesh: Mesh,
        direct: Iterable[str],
        ttl_s: int = TTL_S,
        workloads: Iterable[str] | None = None,
        agent: Callable[..., Any] = Agent,
        proxy: Callable[..., Any] = Proxy,
    ) -> None:
        self.world = world
        self.mesh = mesh
        self.realm = Realm(world.seed)
        self.authority = Authority(world, mesh, self.realm, frozenset(direct), ttl_s)
        # What one node decodes all nodes decode: records are immutable, so they share the result.
        decode = functools.lru_cache(_DECODED_MAX)(decode_record)
        decode_body = functools.lru_cache(_DECODED_MAX)(decode_node)
        self._agent = functools.partial(agent, decode=decode, decode_body=decode_body)
        self._proxy = proxy
        for name in mesh.hosts if workloads is None else workloads:
            entry = Entry(
                str(workload(name)), name, ("unix:uid:1000",), address="127.0.0.1:80", key=name
            )
            self.authority.entries[name] = [entry]
        self.authority.allow(f"spiffe://{DOMAIN}/app/*")

    def start(self, names: Iterable[str] | None = None) -> None:
        """Start what is missing on these hosts, or on all."""
        for name in sorted(self.mesh.hosts) if names is None else names:
            host = self.mesh.hosts[name]
            if host.proxy is None:
                self.start_proxy(host)
            if host.agent is None:
                self.start_agent(host)

    def start_agent(self, host: Host) -> None:
        """Start a host's agent."""
        start_agent(host, AgentSide(host, self.authority, self._agent))

    def start_proxy(self, host: Host) -> None:
        """Start a host's proxy."""
        start_proxy(host, ProxySide(host, self.realm, self._proxy))
