"""The agent's desk: answers operators, and keeps what they want to see.

Everything here is read off the machine's view, the proxy's facts and the agent's own connections;
nothing is decided.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from x0tta6bl4 import __version__
from x0tta6bl4.app import checks, denied
from x0tta6bl4.core.agent import words
from x0tta6bl4.core.machine import Denied, Verdict
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.telemetry import metrics
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.authority import Update
from x0tta6bl4.wire.errors import NotFound, Unavailable
from x0tta6bl4.wire.ids import spiffe_id
from x0tta6bl4.wire.messages import (
    Counters,
    LinkState,
    ListenState,
    Notice,
    ProxyFact,
    SessionGone,
    SessionState,
)

if TYPE_CHECKING:
    from x0tta6bl4.app.agent import AgentProcess

RENEW_S: Final = 20.0
"""Longest wait for a renewal that an operator asked for."""


class Desk:
    """What `agent.sock` answers with."""

    def __init__(self, agent: AgentProcess) -> None:
        self._agent = agent
        self._events: deque[admin.EventView] = deque(maxlen=admin.EVENTS_MAX)
        self._counters: dict[str, int] = {}
        self._listeners: dict[str, admin.ListenerView] = {}
        self._since: dict[str, int] = {}
        self._states: dict[str, str] = {}
        self.refusals: dict[str, int] = {}
        self.renewals: dict[str, int] = {}
        self.renewal_failures = 0
        self.renewal_errors: dict[str, str] = {}
        """Why the last renewal of an ID failed, for those whose did."""
        self.duplicate_name = False
        self.control_ports: list[int] = []
        self.authority_error = ""
        self.draining = False
        self.plane = admin.PlaneView()
        """What passes data on where the kernel does not, and why."""
        self._heard_full = False

    # -------------------------------------------------------------- what happens
    def event(self, kind: str, text: str) -> None:
        """Note something for the events view and the log."""
        self.duplicate_name = self.duplicate_name or kind == "duplicate"
        self._events.append(admin.EventView(unix_us(), kind, text))
        self._agent.log.info(text, kind=kind)

    def refused(self, reason: str) -> None:
        """A TLS handshake of a link was refused."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        self.event("refused", f"link handshake: {reason}")

    def authority_said(self, update: Update) -> None:
        """The authority pushed something."""
        self._heard_full = self._heard_full or update.full

    def proxy_said(self, fact: ProxyFact) -> None:
        """Keep what views show of the proxy's facts."""
        kind = type(fact)
        if kind is Counters:
            self._counters = fact.values  # type: ignore[union-attr]
        elif isinstance(fact, LinkState):
            if self._states.get(fact.node) != fact.state:
                self._states[fact.node] = fact.state
                self._since[fact.node] = unix_us()
                why = f": {fact.reason}" if fact.reason else ""
                self.event("link", f"{fact.node} is {fact.state}{why}")
        elif isinstance(fact, SessionGone):
            self.event("session", f"{fact.source} -> {fact.target} at {fact.node}: {fact.reason}")
        elif isinstance(fact, Notice):
            self.event(fact.kind, fact.text)
        elif isinstance(fact, ListenState):
            self._listeners[fact.asked] = admin.ListenerView(fact.address, fact.kind, fact.name)
            if fact.problem:
                self.event("bound", f"can't listen at {fact.asked}: {fact.problem}")

    # -------------------------------------------------------------- views
    def status(self) -> admin.Status:
        """This node now."""
        agent, view = self._agent, self._agent.machine.view()
        s = agent.settings
        authority = getattr(agent, "authority", None)
        return admin.Status(
            node=agent.me,
            trust_domain=agent.domain,
            version=__version__,
            state=self._state(view),
            unix_us=unix_us(),
            uptime_ms=(unix_us() - agent.started_us) // 1000,
            agent_pid=os.getpid(),
            proxy_pid=agent.proxy.pid if agent.ready else 0,
            area=s.area,
            data_address=_with_port(s.data.listen, agent.ready.tcp_port if agent.ready else 0),
            control_address=_with_port(
                s.control.listen, self.control_ports[0] if self.control_ports else 0
            ),
            metrics_address=_with_port(s.metrics.listen, agent.metrics_port),
            workload_api=_unix(agent.workload_api.path),
            require_pq=s.require_pq,
            authority=admin.AuthorityView(
                address=(authority.address if authority else "") or s.authority.address,
                connected=view.authority_up,
                via=("mesh",) if authority and authority.via == "mesh" else (),
                heard_age_ms=view.heartbeat_age_s * 1000 if view.heartbeat_age_s >= 0 else -1,
                clock_offset_ms=authority.offset_ms if authority else 0,
                error=self.authority_error,
                away=tuple(sorted(authority.away)) if authority else (),
            ),
            links=self._links(view),
            members=tuple(
                admin.MemberView(
                    node=n.node,
                    generation=n.generation,
                    links=n.links,
                    endpoints=n.endpoints,
                    stub=n.stub,
                    expires_unix_s=n.expires_unix_s,
                )
                for n in view.nodes
            ),
            paths=tuple(
                admin.PathView(n.node, n.paths, (n.cost,), _disjoint(n.paths))
                for n in view.nodes
                if n.paths and n.node != agent.me
            ),
            services=self._services(view),
            listeners=tuple(self._listeners.values()),
            sessions=tuple(_session(x) for x in view.sessions[: admin.SESSIONS_MAX]),
            sessions_total=len(view.sessions),
            svids=self._svids(view),
            events=tuple(self._events),
            counters=self.counters(),
            records=view.records,
            plane=agent.kernel.view() if agent.kernel else self.plane,
            duplicate_name=self.duplicate_name,
        )

    def _state(self, view: words.View) -> str:
        if self.draining or self._agent.machine.draining:
            return "draining"
        if not view.proxy_up or self._agent.ready is None:
            return "alone" if self._heard_full else "starting"
        held = {id for id, _ in view.svids}
        wanted = {entry.id for entry in view.entries} | {self._agent.id}
        settled = self._heard_full or view.heartbeat_age_s >= 0
        return "ready" if settled and wanted <= held else "starting"

    def _links(self, view: words.View) -> tuple[admin.LinkView, ...]:
        """All configured neighbours, those never heard of included."""
        known = {link.node: self._link(link) for link in view.links}
        return tuple(
            known.get(link.node, admin.LinkView(link.node, "connecting"))
            for link in self._agent.settings.link
        )

    def _link(self, link: words.LinkView) -> admin.LinkView:
        state = link.state if link.connected or link.state == "up" else "connecting"
        group, signature = self._agent.links.tls(link.node)
        return admin.LinkView(
            node=link.node,
            state="connecting" if state == "unknown" else state,
            rtt_us=link.rtt_us,
            loss_ppm=link.loss_ppm,
            udp=self._counters.get(f"link_udp|{link.node}", 1) == 1,
            agent_alive=link.connected,
            since_ms=(unix_us() - self._since.get(link.node, unix_us())) // 1000,
            reason=link.reason,
            group=group,
            signature=signature,
        )

    def _services(self, view: words.View) -> tuple[admin.ServiceView, ...]:
        names = {id: name for name, id in view.names}
        where: dict[str, list[str]] = {}
        for node in view.nodes:
            for id in node.endpoints:
                where.setdefault(id, []).append(node.node)
        local = {e.id: e for e in view.entries if e.address}
        found = []
        for id in sorted({*names, *where, *local}):
            entry = local.get(id)
            found.append(
                admin.ServiceView(
                    name=names.get(id, ""),
                    id=id,
                    address=entry.address if entry else "",
                    nodes=tuple(sorted(where.get(id, ()))),
                    proxy_header=bool(entry and entry.proxy_header),
                    exposed=bool(entry and not entry.address.startswith("unix:")),
                )
            )
        return tuple(found)

    def _svids(self, view: words.View) -> tuple[admin.SvidView, ...]:
        found = []
        for id, _ in view.svids:
            item = self._agent.machine.svid(id)
            if item is None:
                continue
            fields = x509.parse(item.chain[0])
            found.append(
                admin.SvidView(
                    id=id,
                    serial=f"{fields.certificate.serial_number:x}",
                    not_before_unix_s=fields.fields.not_before_unix_s,
                    not_after_unix_s=item.not_after_unix_s,
                    renewals=self.renewals.get(id, 0),
                    error=self.renewal_errors.get(id, ""),
                    key=fields.fields.key,
                )
            )
        return tuple(found)

    def counters(self) -> dict[str, int]:
        """Sums of proxy and agent together, as `messages.Counters`."""
        links = getattr(self._agent, "links", None)
        own = {f"link_connections_total|{k}": v for k, v in (links.counts if links else {}).items()}
        own |= {f"handshakes_total|link|{k}": v for k, v in self.refusals.items()}
        own |= {
            "svid_renewals_total": sum(self.renewals.values()),
            "svid_renewal_failures_total": self.renewal_failures,
        }
        own |= self._agent.workload_api.statistics()
        own |= self._agent.kernel.counters() if self._agent.kernel else {}
        for group, count in (links.groups if links else {}).items():
            key = f"handshake_groups_total|{group}"
            own[key] = count + self._counters.get(key, 0)
        return {**self._counters, **own, **metrics.agent_counters(self._agent.machine)}

    # -------------------------------------------------------------- questions
    async def path(self, request: admin.GetPath) -> admin.PathAnswer:
        """Paths to a node, a name or an ID, as this node has them or would compute them."""
        view = self._agent.machine.view()
        source = request.source or self._agent.me
        target = self._node_for(view, request.target)
        paths, costs = self._agent.machine.paths(source, target)
        if not paths:
            raise NotFound(
                "X0-PTH-002",
                f"no path from {source} to {target}",
                "`x0 status` shows which links are up",
            )
        return admin.PathAnswer(source, target, paths, costs, _disjoint(paths))

    def _node_for(self, view: words.View, target: str) -> str:
        if any(node.node == target for node in view.nodes):
            return target
        ids = dict(view.names)
        id = ids.get(target.removesuffix(".mesh"), target)
        for node in sorted(view.nodes, key=lambda n: (n.cost < 0, n.cost)):
            if id in node.endpoints:
                return node.node
        raise NotFound(
            "X0-PTH-001", f"no node, name or ID {target!r} is known here", "`x0 status` lists them"
        )

    async def check(self) -> admin.CheckAnswer:
        """Findings about this node."""
        if self._agent.kernel is not None:
            self._agent.kernel.look()
        status = self.status()
        found = checks.findings(status, checks.host_facts(self._agent.state_dir))
        return admin.CheckAnswer(
            found, "" if status.plane == admin.PlaneView() else status.plane.text
        )

    async def serve_metrics(self) -> int:
        """Serve metrics of agent and proxy where node.toml says so.

        Returns:
            The port; 0: nowhere.
        Raises:
            Unavailable: the address is taken.
        """
        address = self._agent.settings.metrics.listen
        if not address:
            return 0
        server = metrics.MetricsServer(address, lambda: metrics.render(self.status()))
        try:
            return await server.start()
        except OSError as error:
            raise Unavailable(
                "X0-RUN-041",
                f"can't serve metrics at {address}: {error.strerror}",
                "set metrics.listen to a free address",
            ) from None

    async def metrics(self) -> admin.Text:
        """Prometheus text."""
        return admin.Text(metrics.render(self.status()))

    async def support(self) -> admin.Support:
        """Files of a support bundle."""
        status = msgspec.json.format(admin.STATUS_JSON.encode(self.status())).decode()
        findings = "\n".join(f"{f.id} {f.level}: {f.what}" for f in (await self.check()).findings)
        settings = msgspec.json.format(msgspec.json.encode(self._agent.settings)).decode()
        return admin.Support(
            {
                "status.json": status,
                "check.txt": findings + "\n",
                "settings.json": settings,
                "metrics.txt": (await self.metrics()).text,
            }
        )

    async def explain(self, request: admin.Explain) -> admin.Explanation:
        """What the gate of this node says."""
        return self._agent.machine.explain(request.source, request.target)

    async def explain_denied(self, request: admin.ExplainDenied) -> admin.CheckAnswer:
        """Why no program here has an identity."""
        agent, view, now_us = self._agent, self._agent.machine.view(), unix_us()
        id, api, now_s = spiffe_id(request.id), agent.workload_api, now_us // 1_000_000
        facts = denied.Facts(
            node=agent.me,
            serving=api.path is not None,
            node_denied=_reason(agent.trusts.counts(agent.id, now_s, agent.me)),
            authority_up=view.authority_up,
            authority_age_s=view.heartbeat_age_s,
            entries=tuple(entry for entry in view.entries if entry.id == id),
            svid_left_s=dict(view.svids).get(id, 0) - now_s,
            svid_denied=_reason(agent.trusts.counts(id, now_s, agent.me)),
            error=self.renewal_errors.get(id, ""),
            callers=tuple(
                denied.Caller(x.pid, x.uid, x.gid, (now_us - x.unix_us) // 1_000_000, x.looks)
                for x in api.identities.seen()
            ),
        )
        return admin.CheckAnswer(denied.findings(id, facts))

    # -------------------------------------------------------------- commands
    async def renew(self, request: admin.Renew) -> admin.Fine:
        """Renew now; returns when all are in use, or says which were not."""
        agent = self._agent
        view = agent.machine.view()
        wanted = [id for id, _ in view.svids if request.id in ("", id)]
        if not wanted:
            raise NotFound("X0-REN-001", f"no SVID {request.id!r} here", "`x0 status` lists them")
        before = {id: self.renewals.get(id, 0) for id in wanted}
        agent.driver.post(words.RenewNow(tuple(wanted)))
        end = asyncio.get_running_loop().time() + RENEW_S
        while missing := [id for id in wanted if self.renewals.get(id, 0) <= before[id]]:
            if asyncio.get_running_loop().time() > end:
                raise Unavailable(
                    "X0-REN-002",
                    f"{len(missing)} of {len(wanted)} not renewed",
                    self.authority_error or "see `x0 status`",
                )
            await asyncio.sleep(0.02)
        return admin.Fine(f"{len(wanted)} renewed")

    async def drain(self, request: admin.Drain) -> admin.Fine:
        """Stop being a way for others, refuse new streams, wait for the last to end."""
        self.draining = True
        self._agent.reconfigure()
        end = asyncio.get_running_loop().time() + request.timeout_ms / 1000
        while asyncio.get_running_loop().time() < end:
            left = sum(x.streams for x in self._agent.machine.view().sessions)
            if not left:
                return admin.Fine("drained")
            await asyncio.sleep(0.05)
        return admin.Fine(f"{left} streams were still open after {request.timeout_ms} ms")

    async def stop(self) -> admin.Fine:
        """Begin to stop."""
        asyncio.get_running_loop().call_later(0.05, self._agent.stopping.set)
        return admin.Fine("stopping")


def _reason(verdict: Verdict) -> str:
    return verdict.reason if isinstance(verdict, Denied) else ""


def _session(x: SessionState) -> admin.SessionView:
    return admin.SessionView(
        source=x.source,
        target=x.target,
        node=x.node,
        path=x.path,
        standby=x.standby,
        streams=x.streams,
        state=x.state,
        requests=x.requests,
        bytes_out=x.bytes_out,
        bytes_in=x.bytes_in,
        resent_bytes=x.resent_bytes,
        moves=x.moves,
        group=x.group,
        signature=x.signature,
    )


def _disjoint(paths: tuple[tuple[str, ...], ...]) -> bool:
    """Whether the second path shares no relay and no link with the first."""
    if len(paths) < 2:
        return False
    first, second = paths[0], paths[1]
    links = set(itertools.pairwise(first))
    return not set(first[1:-1]) & set(second[1:-1]) and not links & set(itertools.pairwise(second))


def _unix(path: Path | None) -> str:
    return f"unix:{path}" if path is not None else ""


def _with_port(address: str, port: int) -> str:
    host, _, asked = address.rpartition(":")
    return f"{host}:{port}" if asked == "0" and port else address
