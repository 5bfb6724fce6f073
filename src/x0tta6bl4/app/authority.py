"""The authority's process: store, machine, TLS and the two servers, wired and run.

    state_dir/  0700   admin.sock (0600)   authority.pid
    store/      0700   authority.db (0600, with the keys)   lock*   leader   bell-*

Both are one directory where nothing else is said; several authorities of one machine have their
own `state_dir` and `name`, and one `store`.  The CA of a new trust domain is made at the first
start.  Everything that is wrong is refused
before a socket is bound, with an id and what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

from x0tta6bl4 import __version__
from x0tta6bl4.app.authority_keys import Keys
from x0tta6bl4.app.federation import OwnEndpoint, Poller, own_document
from x0tta6bl4.app.ocsp import OcspEndpoint
from x0tta6bl4.app.process import begin
from x0tta6bl4.app.settings import AuthoritySettings
from x0tta6bl4.app.wallet import note_pid
from x0tta6bl4.core.authority.desk import AuthorityConfig
from x0tta6bl4.core.authority.life import genesis
from x0tta6bl4.core.authority.machine import Authority
from x0tta6bl4.core.authority.rows import (
    Caller,
    NodeCut,
    OwnSvid,
    PollWanted,
    Published,
    Withdrawn,
)
from x0tta6bl4.core.identity.rules import NODE
from x0tta6bl4.core.machine import Allowed, Denied, Effect, Verdict
from x0tta6bl4.edge.authority_api.server import ApiServer, bind_tcp
from x0tta6bl4.edge.authority_api.service import Service
from x0tta6bl4.edge.store.serials import Serials
from x0tta6bl4.edge.store.store import FILE, Store
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, GROUPS, GROUPS_PQ, TlsContext
from x0tta6bl4.edge.tls.judge import Judge
from x0tta6bl4.runtime.clocks import clock, unix_us
from x0tta6bl4.runtime.local import listen_private
from x0tta6bl4.telemetry import log
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import BadConfig, Conflict, Refused, X0Error
from x0tta6bl4.wire.ids import NodeName, SpiffeId, node_id, trust_domain

if TYPE_CHECKING:
    from x0tta6bl4.telemetry.metrics import MetricsServer

ADMIN_SOCKET: Final = "admin.sock"
PID_FILE: Final = "authority.pid"
RELEASED_UNIX_S: Final = 1_780_000_000
"""A clock that stands before the release of this code is wrong."""
_OWN: Final = Caller(own=True)
CRL_ENTRIES_MAX: Final = 32_768
"""Most certificates in a revocation list, those that end last; others end by subject."""
CRL_EVERY_S: Final = 3600.0
"""Revocation lists are made anew so often, and whenever something is revoked."""


class AuthorityProcess:
    """One authority, from its directory to its sockets.

    Args:
        settings: a judged `authority.toml`.

    Attributes:
        stopping: set it to end `run`.
        port: TCP port of the nodes' server, once it serves.
        service: for tests and metrics.
        endpoint: the bundle endpoint, with its port where it serves.
        ocsp: the OCSP responder, likewise.
    """

    def __init__(self, settings: AuthoritySettings) -> None:
        self._settings = settings
        self._dir = Path(settings.state_dir)
        self._log = log.logger("authority")
        self.stopping = asyncio.Event()
        self.port = 0
        self._started_unix_us = unix_us()
        self._refused: dict[str, int] = {}
        self._context: TlsContext | None = None
        self._svid: x509.Svid | None = None
        self._bundle_changed = asyncio.Event()
        self._revocations_changed = asyncio.Event()
        check_clock(self._started_unix_us)
        domain = trust_domain(settings.trust_domain)
        self._domain, keys, config = domain, Keys(domain, settings), machine_config(settings)
        place = Path(settings.store or settings.state_dir)
        if not (place / FILE).exists():
            self._found(place, keys, config)
        self._store = Store(place, settings.name)
        try:
            self._machine = Authority(
                self._store.load(self._started_unix_us // 1_000_000), keys, config
            )
            self._check_state()
        except BaseException:
            self._store.close()
            raise
        self._issued = Serials(place)
        self._own_serials: deque[int] = deque(maxlen=8)
        self._executor = ThreadPoolExecutor(1, "store")
        self.service = Service(
            self._machine,
            self._store,
            self._executor,
            clock,
            unix_us,
            self._on_fact,
            self._on_state,
            self._on_lead,
        )
        self.endpoint = OwnEndpoint(
            settings.bundle_endpoint, lambda: own_document(self._machine.state, config.ca_advance_s)
        )
        self.ocsp = OcspEndpoint(
            settings.ocsp,
            lambda: [keys.issuer(ca) for ca in self._machine.state.cas.values()],
            lambda serial: serial in self._own_serials or self._issued.has(serial),
            unix_us,
        )
        self._poller = Poller(
            settings.federation,
            self._machine.state,
            unix_us,
            lambda: self.service.leading,
            lambda polled: self.service.ask(_OWN, "Polled", polled),
            self._log,
        )
        self._api = ApiServer(
            self.service, unix_us, self._health, self._on_refused, self._on_operator
        )

    def _found(self, place: Path, keys: Keys, config: AuthorityConfig) -> None:
        """Make the trust domain; another authority of it may do so in the same moment."""
        settings, began = self._settings, self._started_unix_us
        try:
            Store.create(place, genesis(self._domain, settings.name, began, keys, config))
        except Conflict as error:
            if error.id != "X0-STO-006":
                raise
        else:
            self._log.info("trust domain made", trust_domain=self._domain)

    def _check_state(self) -> None:
        row = self._machine.state.the_domain()
        if row.trust_domain != self._domain:
            raise Conflict(
                "X0-AUT-100",
                f"the authority in {self._dir} is of trust domain "
                f"{row.trust_domain}, the settings say {self._domain}",
                "correct trust_domain, or use another state_dir",
            )
        if self._started_unix_us + words.CLOCK_SKEW_US_MAX < row.floor_unix_us:
            raise Refused(
                "X0-AUT-011",
                "the clock stands before the last time that this authority signed",
                "set it right (NTP), then start again",
            )

    # -------------------------------------------------------------- running
    async def run(self) -> None:
        """Serve until `stopping`.

        Raises:
            X0Error: it can't start; what was bound is given back.
        """
        async with self.serving():
            await self.stopping.wait()
            self._log.info("stopping")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[AuthorityProcess]:
        """Serve while the context is open."""
        host, port = split_address(self._settings.listen)
        sockets = []
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            sockets.append(bind_tcp(host, port))
            sockets.append(listen_private(self._dir / ADMIN_SOCKET, "an authority", 1024))
        except BaseException:
            for sock in sockets:
                sock.close()
            self._close()
            raise
        nodes, operators = sockets
        self.port = nodes.getsockname()[1]
        loop, bell = asyncio.get_running_loop(), self._store.neighbours
        loop.add_reader(bell.fileno(), self._on_bell)
        tasks = [asyncio.create_task(self.service.run())]
        metrics: MetricsServer | None = None
        try:
            await self._renew()
            await self._api.serve_nodes(nodes, SslContext(self._tls, self._on_refused))
            await self._api.serve_operators(operators)
            await self.endpoint.start(self._own_svid())
            await self.ocsp.start()
            note_pid(self._dir / PID_FILE)
            metrics = await self._serve_metrics()
            for running in (self._renew_for_ever(), self._poller.run(), self._list_revoked()):
                tasks.append(asyncio.create_task(running))
            for task in tasks:
                task.add_done_callback(self._end_with)
            self._log.info(
                "serving",
                listen=self._settings.listen,
                port=self.port,
                ms=(unix_us() - self._started_unix_us) // 1000,
            )
            yield self
        finally:
            if metrics is not None:
                await metrics.close()
            await self._api.stop()
            await self.endpoint.stop()
            await self.ocsp.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            loop.remove_reader(bell.fileno())
            for path in (self._dir / ADMIN_SOCKET, self._dir / PID_FILE):
                path.unlink(missing_ok=True)
            self._close()

    def _on_bell(self) -> None:
        self._store.neighbours.silence()
        self.service.wake()

    async def _serve_metrics(self) -> MetricsServer | None:
        address = self._settings.metrics.listen
        if not address:
            return None
        from x0tta6bl4.telemetry.metrics import MetricsServer  # 50 ms that few need.

        server = MetricsServer(address, self._metrics)
        try:
            await server.start()
        except OSError as error:
            raise Conflict(
                "X0-AUT-102",
                f"can't serve metrics on {address}: {error.strerror}",
                "choose another metrics.listen",
            ) from None
        return server

    def _metrics(self) -> str:
        from x0tta6bl4.telemetry.metrics import authority_sums, text_of

        health = self._health(self._machine.health(clock()))
        return text_of(authority_sums(health, self.statistics()))

    def _end_with(self, task: asyncio.Task[None]) -> None:
        """A part that has failed ends the process: systemd starts it anew."""
        if not task.cancelled() and task.exception() is not None:
            self._log.error("a part failed", error=repr(task.exception()))
            self.stopping.set()

    def _close(self) -> None:
        self._executor.shutdown()
        self._issued.close()
        self._store.close()

    # -------------------------------------------------------------- TLS of its own
    async def _renew(self) -> None:
        key = x509.new_key(x509.svid_kind((self._machine.state.active().certificate,)))
        issued: words.Issued = await self.service.ask(_OWN, "OwnSvid", OwnSvid(x509.new_csr(key)))
        self._svid = x509.Svid(
            SpiffeId(issued.id), issued.chain, x509.key_bytes(key), issued.not_after_unix_s
        )
        self._context = None
        self._own_serials.append(x509.parse(issued.chain[0]).certificate.serial_number)
        if self.endpoint.port:
            self.endpoint.renew(self._svid)

    def _own_svid(self) -> x509.Svid:
        assert self._svid is not None
        return self._svid

    async def _renew_for_ever(self) -> None:
        while True:
            assert self._svid is not None
            left_s = self._svid.not_after_unix_s - unix_us() / 1e6
            try:
                async with asyncio.timeout(max(1.0, min(60.0, left_s / 3))):
                    await self._bundle_changed.wait()
            except TimeoutError:
                pass
            changed = self._bundle_changed.is_set()
            self._bundle_changed.clear()
            half_s = self._settings.svid.node_ttl_s / 2
            if changed or left_s < half_s:
                try:
                    await self._renew()
                except X0Error as error:  # The one in use stays good; tried again soon.
                    self._log.warning("own SVID not renewed", error=str(error))

    async def _list_revoked(self) -> None:
        """Have revocation lists made when they are wanted, for ever, by the one that leads."""
        loop = asyncio.get_running_loop()
        while True:
            self._revocations_changed.clear()
            now_s = unix_us() // 1_000_000
            wait_s = CRL_EVERY_S
            try:
                serials = await loop.run_in_executor(
                    self._executor, self._store.withdrawn, now_s, CRL_ENTRIES_MAX
                )
                self.ocsp.withdrawn = frozenset(int(serial, 16) for serial in serials)
                if self.service.leading:
                    await self.service.ask(_OWN, "Withdrawn", Withdrawn(serials))
            except X0Error as error:  # The lists that are out stay good for a day.
                self._log.warning("revocation lists not made", error=str(error))
                wait_s = 5.0
            try:
                async with asyncio.timeout(wait_s):
                    await self._revocations_changed.wait()
            except TimeoutError:
                pass

    def _tls(self) -> TlsContext:
        if self._context is None:
            assert self._svid is not None
            anchors = [ca.certificate for ca in self._machine.state.cas.values()]
            judge = Judge(self._domain, anchors, self._revoked, unix_us)
            groups = GROUPS_PQ if self._settings.require_pq else GROUPS
            self._context = TlsContext(
                self._svid, judge, (ALPN_AUTHORITY,), NODE, groups, demand=False
            )
        return self._context

    def _revoked(self, id: SpiffeId, issued_unix_s: int, via: NodeName | None) -> Verdict:
        state = self._machine.state
        row = state.nodes.get(via) if via else None
        if id in state.bans or (row is not None and row.evicted_unix_s):
            return Denied("banned")
        floor = max(state.floor(id), state.floor(node_id(self._domain, via)) if via else 0)
        return Denied("revoked") if issued_unix_s < floor else Allowed(id)

    # -------------------------------------------------------------- what it hears and says
    def _on_fact(self, effect: Effect) -> None:
        if type(effect) is NodeCut:
            self._log.info("node cut off", node=effect.node, reason=effect.reason)
            self._api.cut(effect.node, effect.reason)
        elif type(effect) is Published and effect.set == "bundle":
            self._context = None
            self._bundle_changed.set()
            self._revocations_changed.set()
        elif type(effect) is Published and effect.set == "revocations":
            self._revocations_changed.set()
        elif type(effect) is PollWanted:
            self._poller.wake.set()

    def _on_state(self, line: str) -> None:
        self._log.warning("store", state=line)

    def _on_lead(self, on: bool) -> None:
        self._log.info("leading" if on else "not leading", name=self._settings.name)
        self._revocations_changed.set()
        self._poller.wake.set()

    def _on_refused(self, reason: str) -> None:
        if reason in self._refused or len(self._refused) < 64:
            self._refused[reason] = self._refused.get(reason, 0) + 1

    def _on_operator(self, method: str, thing: str) -> None:
        self._log.info("operator", method=method, thing=thing)

    def _health(self, health: words.Health) -> words.Health:
        return msgspec.structs.replace(
            health,
            version=__version__,
            started_unix_us=self._started_unix_us,
            listen=(self._settings.listen,),
            read_only=self.service.read_only,
            watchers=self.service.watchers(),
            leading=self.service.leading,
            others=self._store.neighbours.ring(),
        )

    def statistics(self) -> dict[str, int]:
        """Plain sums and levels for metrics; labels after a `|`."""
        state = self._machine.state
        heartbeat = state.sets.get("heartbeat")
        return {
            **self._machine.statistics(),
            **self.service.counts,
            **self._api.statistics(),
            **self.endpoint.statistics(),
            **self.ocsp.statistics(),
            **self._poller.counts,
            **{f"handshakes_refused|{reason}": n for reason, n in self._refused.items()},
            "watchers": self.service.watchers(),
            "read_only": bool(self.service.read_only),
            "behind": self.service.is_behind(),
            "entries": len(state.entries),
            "nodes": len(state.nodes),
            "names": len(state.names),
            "rules": len(state.rules),
            "revocations": len(state.revocations),
            "ca_not_after_unix_s": state.active().not_after_unix_s,
            "heartbeat_unix_s": heartbeat.generation if heartbeat else 0,
        }


def machine_config(settings: AuthoritySettings) -> AuthorityConfig:
    """What the settings say to the machine."""
    host, port = split_address(settings.listen)
    anywhere = host in ("0.0.0.0", "::", "")
    own = () if anywhere or not port else (settings.listen,)
    return AuthorityConfig(
        name=settings.name,
        svid_ttl_s=settings.svid.ttl_s,
        node_ttl_s=settings.svid.node_ttl_s,
        token_ttl_s=settings.token_ttl_s,
        ca_ttl_s=settings.ca.ttl_s,
        heartbeat_s=settings.heartbeat_s,
        authorities=settings.advertise or own,
    )


def check_clock(now_unix_us: int) -> None:
    """Refuse a clock that is obviously off.

    Raises:
        BadConfig: X0-AUT-101.
    """
    if now_unix_us < RELEASED_UNIX_S * 1_000_000:
        when = time.strftime("%Y-%m-%d", time.gmtime(now_unix_us // 1_000_000))
        raise BadConfig(
            "X0-AUT-101",
            f"the clock says {when}, before this program was made",
            "set it (NTP), then start again",
        )


def main(settings: AuthoritySettings) -> int:
    """Run an authority until SIGTERM or SIGINT; exit status.

    Raises:
        X0Error: it can't start.
    """
    begin(settings.log)

    async def serve() -> None:
        process = AuthorityProcess(settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.stopping.set)
        await process.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    return 0
