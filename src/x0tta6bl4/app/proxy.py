"""The proxy's process: wires the endpoint, hops, hellos, local listeners and the agent's socket.

One thread, one event loop.  It needs nothing but its snapshot to go on: an agent that dies is an
agent that connects again and reads the snapshot back.
"""

from __future__ import annotations

import gc
import hashlib
import hmac
import os
import secrets
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.process import begin
from x0tta6bl4.app.sums import proxy_sums
from x0tta6bl4.app.wallet import note_pid, private_dir
from x0tta6bl4.core.identity.rules import WORKLOAD, Expect
from x0tta6bl4.core.links.words import AgentAlive
from x0tta6bl4.core.machine import SECOND, Allowed, Denied, Effect, Received, Send, Verdict
from x0tta6bl4.core.proxy.words import AGENT, Changed
from x0tta6bl4.edge.attest.containers import Containers
from x0tta6bl4.edge.attest.entries import Callers, Services
from x0tta6bl4.edge.attest.facts import Facts
from x0tta6bl4.edge.attest.listener import Attestor
from x0tta6bl4.edge.attest.process import Processes
from x0tta6bl4.edge.hop.setup import LinkSeal
from x0tta6bl4.edge.ingress import proxy_header
from x0tta6bl4.edge.ingress.connect import Connect
from x0tta6bl4.edge.ingress.socks5 import Socks5
from x0tta6bl4.edge.tls.context import ALPN_CIRCUIT, GROUPS, GROUPS_PQ, TlsContext
from x0tta6bl4.edge.tls.engine import Engine, TlsRefused
from x0tta6bl4.edge.tls.judge import Judge
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.runtime.loop.agent_port import AgentPort
from x0tta6bl4.runtime.loop.connect import data_port
from x0tta6bl4.runtime.loop.endpoint import Endpoint
from x0tta6bl4.runtime.loop.hellos import Hellos
from x0tta6bl4.runtime.loop.hops import Hops
from x0tta6bl4.runtime.loop.ingress import Ingress
from x0tta6bl4.runtime.loop.notices import Notices
from x0tta6bl4.runtime.loop.poll import READ, Loop
from x0tta6bl4.runtime.loop.sessions import Reply, StreamRecord
from x0tta6bl4.runtime.memory import TRIM_S, trim
from x0tta6bl4.telemetry import log
from x0tta6bl4.telemetry.access import Access, AccessLog
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import BadConfig, BadInput, BadMessage, Unavailable
from x0tta6bl4.wire.hello import Hello
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, node_id, node_of
from x0tta6bl4.wire.mesh_address import mesh_address
from x0tta6bl4.wire.messages import (
    PROXY_VERSION,
    AgentOrder,
    AuthorityPathItem,
    BundleItem,
    CallerItem,
    ClockItem,
    Counters,
    DirectItem,
    Item,
    ListenItem,
    ListenState,
    NeighbourItem,
    NodeItem,
    Notice,
    ProxyFact,
    Ready,
    RevokedItem,
    SvidItem,
)

TELL_US: Final = SECOND
CONTEXTS_MAX: Final = 4096
OUTCOMES_MAX: Final = 256
REFUSED_EVERY: Final = 10 * SECOND
"""Between two notices of refusals of one caller and name for one reason; others are counted."""


class CountedTls(Engine):
    """TLS of one circuit, whose handshake is counted by result and key exchange."""

    __slots__ = ("_counts",)

    def __init__(
        self, context: TlsContext, server: bool, counts: dict[tuple[str, str], int]
    ) -> None:
        super().__init__(context, server)
        self._counts: dict[tuple[str, str], int] | None = counts

    def shake(self) -> bool:
        """See `Engine.shake`; the first end of the handshake counts, and none after it."""
        try:
            done = super().shake()
        except TlsRefused as error:
            self._count(error.reason, "")
            raise
        if done:
            self._count("ok", self.group)
        return done

    def _count(self, result: str, group: str) -> None:
        counts, self._counts = self._counts, None
        if counts is not None and (len(counts) < OUTCOMES_MAX or (result, group) in counts):
            counts[result, group] = counts.get((result, group), 0) + 1


class Contexts:
    """TLS contexts of this node's workloads, made when they are first needed.

    Args:
        endpoint: whose snapshot has SVIDs and whose revocations count.
        require_pq: refuse key exchanges that are not post-quantum.
        unix_us: wall time.
    """

    def __init__(self, require_pq: bool, unix_us: Callable[[], int]) -> None:
        self._groups = GROUPS_PQ if require_pq else GROUPS
        self._unix_us = unix_us
        self._made: dict[tuple[str, str, bool], TlsContext] = {}
        self._judges: dict[str, Judge] = {}
        self.endpoint: Endpoint | None = None
        self.handshakes: dict[tuple[str, str], int] = {}
        """By result (`ok` or the reason) and key exchange."""

    def clear(self) -> None:
        """A bundle has changed."""
        self._made.clear()
        self._judges.clear()

    def forget(self, own: str) -> None:
        """A workload's SVID has changed; those of others, and the judges, serve on."""
        for key in [key for key in self._made if key[0] == own]:
            del self._made[key]

    def make(self, own: SpiffeId, peer: SpiffeId | None, server: bool) -> Engine | Denied:
        """TLS for one circuit, as `own`, with `peer` (any workload if None)."""
        key = own, peer or "", server
        context = self._made.get(key)
        if context is None:
            made = self._context(own, peer)
            if isinstance(made, Denied):
                return made
            if len(self._made) >= CONTEXTS_MAX:
                self._made.clear()
            self._made[key] = context = made
        return CountedTls(context, server, self.handshakes)

    def _context(self, own: SpiffeId, peer: SpiffeId | None) -> TlsContext | Denied:
        assert self.endpoint is not None
        items = self.endpoint.proxy.snapshot.items
        item = items.get(f"SvidItem/{own}")
        node = items.get("NodeItem")
        if type(item) is not SvidItem or type(node) is not NodeItem:
            return Denied("no svid")
        bundle = items.get(f"BundleItem/{node.trust_domain}")
        if type(bundle) is not BundleItem:
            return Denied("no bundle")
        judge = self._judges.get(node.trust_domain)
        if judge is None:
            judge = Judge(
                TrustDomain(node.trust_domain),
                bundle.anchors,
                self.endpoint.proxy.check,
                self._unix_us,
            )
            self._judges[node.trust_domain] = judge
        svid = Svid(own, item.chain, item.key, item.not_after_unix_s)
        expect = WORKLOAD if peer is None else Expect(role="workload", id=peer)
        try:
            return TlsContext(svid, judge, (ALPN_CIRCUIT,), expect, self._groups)
        except BadInput as error:
            return Denied(error.what)


class ProxyProcess:
    """One node's proxy.

    Args:
        settings: of the node.

    Raises:
        Unavailable: the data port is taken.
        Refused: another proxy runs in this state directory.
    """

    def __init__(self, settings: cfg.NodeSettings) -> None:
        self.settings = settings
        self.state_dir = Path(settings.state_dir)
        private_dir(self.state_dir)
        self.log = log.logger("proxy", settings.node)
        self.incarnation = secrets.randbits(63)
        tcp, udp = _data_port(settings.data.listen)  # First of all: it may be taken.
        self.tcp_port = tcp.getsockname()[1]
        self.loop = loop = Loop()
        self._floor_unix_us = 0
        self._refusals = Notices(loop, self._notice, REFUSED_EVERY)
        self.outcomes: dict[tuple[str, str], int] = {}
        """Streams that have ended, by side and outcome."""
        self.carried: dict[tuple[str, str], int] = {}
        """Application bytes of streams that have ended, by side and direction."""
        self.access = AccessLog(settings.log.access_file) if settings.log.access_file else None
        facts = Facts(containers=Containers(settings.attest.engines))
        self._attestor = Attestor(processes=Processes(facts=facts))
        self.callers, self.services = Callers(self._attestor), Services(self._attestor)
        self.contexts = Contexts(settings.require_pq, self.unix_us)
        self.hops = Hops(
            loop,
            tcp,
            me=NodeName(settings.node),
            incarnation=self.incarnation,
            maker=LinkSeal,
            admit=self._admit,
            on_circuit=self._on_circuit,
            on_notice=self._notice,
        )
        self.endpoint = Endpoint(
            loop,
            incarnation=self.incarnation,
            seed=secrets.token_hex(16),
            dial=self.hops.dial,
            tls=self.contexts.make,
            perform=self._perform,
            listener=self.services.before,
            confirm=self.services.after,
            mac=_mac,
            random=os.urandom,
            unix_us=self.unix_us,
            on_record=self._record,
            proxy_header=proxy_header.build,
        )
        self.contexts.endpoint = self.endpoint
        self.hellos = Hellos(loop, udp, self.hops, self._on_hello)
        self.ingress = Ingress(
            loop,
            identify=self.callers.identify,
            greetings={"socks5": Socks5, "connect": Connect},
            on_stream=self._on_stream,
            on_notice=self._notice,
        )
        self.hops.authority.listen(str(self.state_dir / "authority.sock"))
        self.port = AgentPort(
            loop, str(self.state_dir / "proxy.sock"), self._order, self._greeting, self._agent
        )
        loop.after(TELL_US, self._tell)
        loop.after(TRIM_S * SECOND, self._trim)

    def unix_us(self) -> int:
        """Wall time, never below the newest time signed by the authority."""
        return max(unix_us(), self._floor_unix_us)

    # -------------------------------------------------------------- the agent
    def _greeting(self) -> tuple[ProxyFact, ...]:
        proxy = self.endpoint.proxy
        full = proxy.snapshot.full()
        ready = Ready(PROXY_VERSION, self.incarnation, full.version, self.tcp_port, self.tcp_port)
        return (ready, full, *proxy.link_states.values(), *self._listening())

    def _listening(self) -> tuple[ProxyFact, ...]:
        items = self.endpoint.proxy.snapshot.items.values()
        return tuple(
            ListenState(x.address, self.ingress.where(x.address), x.kind, x.name)
            for x in items
            if type(x) is ListenItem and self.ingress.where(x.address)
        )

    def _agent(self, alive: bool) -> None:
        self.endpoint.give(AgentAlive(alive))

    def _order(self, order: AgentOrder) -> None:
        self.endpoint.give(Received(AGENT, order))

    def _tell(self) -> None:
        """Once a second: sessions and sums for the agent, lines for the access log."""
        self.loop.after(TELL_US, self._tell)
        if self.port.connected:
            for state in self.endpoint.states():
                self.port.tell(state)
            self.port.tell(Counters(proxy_sums(self)))
        if self.access is not None:
            self.access.flush()

    def _trim(self) -> None:
        """Once a minute."""
        self.loop.after(TRIM_S * SECOND, self._trim)
        trim()

    def _notice(self, kind: str, text: str) -> None:
        self.log.info(text, kind=kind)
        self.port.tell(Notice(kind, text))

    # -------------------------------------------------------------- effects
    def _perform(self, effect: Effect) -> None:
        if type(effect) is Send:
            if type(effect.message) is Hello:
                self.hellos.send(effect.dst, effect.message)
            else:
                self.port.tell(effect.message)
        elif type(effect) is Changed:
            for key in effect.drops:
                self._drop(key)
            for item in effect.puts:
                handler = self._PUTS.get(type(item))
                if handler is not None:
                    handler(self, item)

    def _drop(self, key: str) -> None:
        kind, _, rest = key.partition("/")
        if kind == "NeighbourItem":
            self.hops.neighbour_gone(NodeName(rest))
        elif kind == "DirectItem":
            self.hops.direct.gone(NodeName(rest))
        elif kind == "ListenItem":
            self.ingress.gone(rest)
        elif kind == "SvidItem":
            self.contexts.forget(rest)
        elif kind == "BundleItem":
            self.contexts.clear()
        elif kind == "CallerItem":
            id, _, selectors = rest.rpartition("/unix:")
            self.callers.drop(CallerItem(id, tuple(f"unix:{selectors}".split(","))))

    def _put_node(self, item: NodeItem) -> None:
        self.hops.node_set(item)
        self.endpoint.draining = item.draining

    def _put_neighbour(self, item: NeighbourItem) -> None:
        try:
            self.hops.neighbour_set(item)
        except BadMessage as error:
            self._notice("neighbours", str(error))

    def _put_direct(self, item: DirectItem) -> None:
        self.hops.direct.set(item)
        node = self.endpoint.proxy.snapshot.items.get("NodeItem")
        if type(node) is NodeItem:
            own = mesh_address(TrustDomain(node.trust_domain), NodeName(node.node))
            try:
                self.hops.direct.listen(str(own))
            except OSError as error:
                self._notice("accept", f"can't listen at {own}: {error.strerror}")

    def _put_listener(self, item: ListenItem) -> None:
        problem = ""
        try:
            self.ingress.set(item)
        except BadConfig as error:
            problem = str(error)
        except OSError as error:
            problem = error.strerror or str(error)
        where = self.ingress.where(item.address)
        self.port.tell(ListenState(item.address, where, item.kind, item.name, problem))

    def _put_revoked(self, item: RevokedItem) -> None:
        node = node_of(SpiffeId(item.subject))
        if node is None:
            return
        if item.issued_before_unix_s:
            self.hops.cut(node, "older svids revoked")  # It may come back with newer ones.
        else:
            self.hops.neighbour_gone(node, "revoked")

    def _put_caller(self, item: CallerItem) -> None:
        try:
            self.callers.put(item)
        except BadInput as error:
            self._notice("caller", f"entry of {item.id}: {error}")

    def _put_clock(self, item: ClockItem) -> None:
        self._floor_unix_us = max(self._floor_unix_us, item.floor_unix_us)

    _PUTS: Final[dict[type[Item], Callable[[Any, Any], None]]] = {
        NodeItem: _put_node,
        AuthorityPathItem: lambda self, item: self.hops.authority_paths(item),
        NeighbourItem: _put_neighbour,
        DirectItem: _put_direct,
        ListenItem: _put_listener,
        RevokedItem: _put_revoked,
        SvidItem: lambda self, item: self.contexts.forget(item.id),
        BundleItem: lambda self, item: self.contexts.clear(),
        CallerItem: _put_caller,
        ClockItem: _put_clock,
    }

    # -------------------------------------------------------------- hops
    def _admit(self, previous: NodeName, following: NodeName) -> Verdict:
        """Whether a hop from a neighbour may go on to another, or end here."""
        proxy = self.endpoint.proxy
        item = proxy.snapshot.items.get("NodeItem")
        domain = TrustDomain(item.trust_domain if type(item) is NodeItem else "")
        for node in (previous, following):
            if node == self.hops.me:
                continue
            ends = following == self.hops.me and self.hops.direct.knows(node)
            if not (ends or proxy.links.is_up(node)):
                return Denied(f"no link to {node}")
            verdict = proxy.check(node_id(domain, node), 1 << 60, None)
            if type(verdict) is Denied:
                return verdict
        return Allowed(node_id(domain, following))

    def _on_circuit(
        self, sock: socket.socket, previous: NodeName, target: SpiffeId, first: bytes
    ) -> None:
        self.endpoint.on_circuit(sock, previous, target, first)

    def _on_hello(self, node: NodeName, hello: Hello) -> None:
        self.endpoint.give(Received(node, hello))

    # -------------------------------------------------------------- local programs
    def _on_stream(
        self,
        sock: socket.socket,
        source: SpiffeId,
        item: ListenItem,
        name: str,
        first: bytes,
        reply: Reply | None,
    ) -> None:
        verdict = self.endpoint.connect(
            sock, source, name, reply=reply, first=first, own=item.own_sessions
        )
        if type(verdict) is Denied:
            what = f"{source} -> {name}: {verdict.reason}"
            self._refusals.say("refused", what, about=what)

    def _record(self, record: StreamRecord) -> None:
        side = "client" if record.client else "server"
        for key, count in (((side, "out"), record.bytes_out), ((side, "in"), record.bytes_in)):
            self.carried[key] = self.carried.get(key, 0) + count
        outcome = "ok" if record.reason == "closed" else record.reason
        if len(self.outcomes) < OUTCOMES_MAX or (side, outcome) in self.outcomes:
            self.outcomes[side, outcome] = self.outcomes.get((side, outcome), 0) + 1
        if self.access is not None:
            self.access.write(
                Access(
                    unix_us=self.unix_us(),
                    side=side,
                    source=record.source,
                    target=record.target,
                    name=record.name,
                    node=record.node,
                    path=record.path,
                    bytes_out=record.bytes_out,
                    bytes_in=record.bytes_in,
                    duration_us=record.duration_us,
                    outcome=outcome,
                )
            )

    # -------------------------------------------------------------- life
    def run(self) -> None:
        """Serve until `stop`."""
        pid = self.state_dir / "proxy.pid"
        note_pid(pid)
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        try:
            self.loop.run()
        finally:
            pid.unlink(missing_ok=True)
            self.endpoint.close()
            self.ingress.close()
            self.hellos.close()
            self.hops.close()
            self.port.close()
            self._attestor.close()
            if self.access is not None:
                self.access.close()
            self.loop.close()


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, hashlib.sha256)


def _data_port(listen: str) -> tuple[socket.socket, socket.socket]:
    """TCP listener and UDP socket with one number.

    Raises:
        Unavailable: the port is taken, or the address is not ours.
    """
    host, port = split_address(listen) if listen else ("127.0.0.1", 0)
    try:
        return data_port(host, port)
    except OSError as error:
        raise Unavailable(
            "X0-RUN-042",
            f"can't listen at {listen}: {error.strerror}",
            "set data.listen to a free address",
        ) from None


def _swallow(sock: socket.socket) -> None:
    sock.recv(64)


def run(settings: cfg.NodeSettings) -> None:
    """Run a node's proxy until SIGTERM.

    Raises:
        X0Error: it can't start.
    """
    begin(settings.log)
    proxy = ProxyProcess(settings)
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: proxy.loop.stop())
    proxy.loop.add(woken.fileno(), READ, lambda _mask: _swallow(woken))
    proxy.run()
