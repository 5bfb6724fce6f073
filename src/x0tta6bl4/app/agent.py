"""The agent's process: wires the agent's machine to links, authority, proxy, disk and operators.

What decides is `core.agent`; this carries out its effects and tells it what happened.  It may die
at any moment: the proxy goes on with its last snapshot, and the next agent reads that back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.admin import AdminServer
from x0tta6bl4.app.admission import Admission, Admitted
from x0tta6bl4.app.authority_link import AuthorityLink
from x0tta6bl4.app.desk import Desk
from x0tta6bl4.app.kernel_plane import KernelPlane
from x0tta6bl4.app.planes import open_plane
from x0tta6bl4.app.process import begin
from x0tta6bl4.app.proxy_child import ProxyChild
from x0tta6bl4.app.resolver import Resolver
from x0tta6bl4.app.trust import Trusts
from x0tta6bl4.app.wallet import Wallet, note_pid, private_dir, read_private, write_private
from x0tta6bl4.app.workload_api import WorkloadApi
from x0tta6bl4.core.agent import words
from x0tta6bl4.core.agent.composite import Agent
from x0tta6bl4.core.identity.renewal import RenewWanted, SvidExpired
from x0tta6bl4.core.machine import Denied, Done, Effect, Failed, Received, Send
from x0tta6bl4.core.records.sets import SetChanged, SetGone
from x0tta6bl4.core.records.words import Held, Restore, Trust
from x0tta6bl4.core.routing.forwarding import WaysChanged
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.aio.driver import Driver, tidy_for_ever
from x0tta6bl4.runtime.aio.links import LinkConnections, LinkKeys
from x0tta6bl4.runtime.aio.proxy_port import ProxyPort
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.telemetry import log
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import BadMessage, Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, node_id
from x0tta6bl4.wire.messages import (
    LINK_VERSION,
    Intro,
    LinkMessage,
    ListenItem,
    NeighbourItem,
    ProxyFact,
    Ready,
    SvidItem,
)
from x0tta6bl4.wire.records import Bundle, decode_bundle
from x0tta6bl4.wire.token import Token, read_token

PROXY_UP_S: Final = 30.0
"""From the start of a proxy, or its hanging up, until one that can't be reached is ended."""
PROXY_LOOK_S: Final = 0.02
RETRY_FIRST_S: Final = 0.1
RETRY_LAST_S: Final = 5.0
RECORDS: Final = "records"
LATER_S: Final = 1 << 40


class AgentProcess:
    """One node's agent, from its settings to its end.

    Args:
        settings: of the node.
        config: path of their file, for the proxy that this agent starts.
    """

    def __init__(self, settings: cfg.NodeSettings, config: Path) -> None:
        self.settings = settings
        self.state_dir = Path(settings.state_dir)
        self.me = NodeName(settings.node)
        self.domain = TrustDomain(settings.trust_domain)
        self.id = node_id(self.domain, self.me)
        self.ready: Ready | None = None
        self.started_us = unix_us()
        self.stopping = asyncio.Event()
        self._greeted = asyncio.Event()
        """Neighbours can be told what this node is: it has an SVID and a proxy."""
        self.log = log.logger("agent", self.me)
        self.desk = Desk(self)
        self.trusts = Trusts(self.domain, settings.require_pq)
        self.proxy = ProxyPort(str(self.state_dir / "proxy.sock"), self._proxy_said)
        self.resolver = Resolver(self._names_changed)
        self._linked: dict[NodeName, NeighbourItem] = {}
        """What was told of each neighbour that is connected, its endpoints as it names them."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._child = ProxyChild(config, self.state_dir / "out.log")

    # -------------------------------------------------------------- life
    async def run(self) -> None:
        """Serve until `stopping`; then proxy and kernel's plane are ended, too.

        They go on for the next agent if this one is killed, or ends by a bug.

        Raises:
            X0Error: something that a retry can't mend: bad files, a taken port, an eviction.
        """
        private_dir(self.state_dir)
        self.wallet = Wallet(self.state_dir)
        admin = AdminServer(self.state_dir / "agent.sock", self.desk)
        await admin.start()
        note_pid(self.state_dir / "agent.pid")
        try:
            self.kernel, self.desk.plane = open_plane(self.settings, self.desk.event)
            self._start_machine()
            self._spawn(self.resolver.run())
            self._spawn(self._keep_proxy())
            self._spawn(self.workload_api.run())
            await self._admit()
            await self._work()
        except Exception as error:
            self.failure = self.failure or error
            raise
        finally:
            for_good = self._is_over()
            await self._end(for_good=for_good)
            if for_good:  # Else `x0 node stop` finds it as it finds one that was killed.
                await admin.close()
                (self.state_dir / "agent.pid").unlink(missing_ok=True)

    def _start_machine(self) -> None:
        self.machine = Agent(
            self.me,
            self.domain,
            crypto=self.trusts.crypto(),
            seed=os.urandom(16).hex(),
            forwards=self.kernel is not None,
        )
        self.driver = Driver(self.machine, self._carry_out)
        self.workload_api = WorkloadApi(self)
        held = Held()
        path = self.state_dir / RECORDS
        if path.exists():
            try:
                held = msgspec.msgpack.decode(read_private(path), type=Held)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.desk.event("node", f"{path} was damaged; the mesh will tell it all again")
        known = self.wallet.known_bundle
        if known is not None:
            self._trust(known)  # First: `records` may be older, it is written once a second.
        self.driver.post(Restore(held))
        self._spawn(self.driver.watch_clock())
        self._spawn(tidy_for_ever())
        self.driver.post(words.Configured(self._node_config()))

    def reconfigure(self) -> None:
        """Tell the machine what the configuration is now (draining makes a stub router)."""
        self.driver.post(words.Configured(self._node_config()))

    def _node_config(self) -> words.NodeConfig:
        s = self.settings
        return words.NodeConfig(
            neighbours=tuple(link.node for link in s.link),
            listens=tuple(
                ListenItem(x.address, x.kind, x.name, x.sessions == "own") for x in s.listen
            ),
            authority=next(iter(self.resolver.literals(self._authorities())), ""),
            revocation_max_age_s=s.revocation_max_age_s,
            area=s.area,
            draining=self.desk.draining,
        )

    def _names_changed(self) -> None:
        """A host name stands for other addresses: tell the proxy those."""
        self.reconfigure()
        for item in self._linked.values():
            self._tell_neighbour(item)

    async def _admit(self) -> None:
        """Come by an SVID of this node's own; waits for the authority as long as it takes."""
        token, admission = self._token(), self._admission()
        wait = RETRY_FIRST_S
        while True:
            try:
                admitted = await admission.admit(token)
                break
            except (Unavailable, BadMessage) as error:
                self.desk.authority_error = str(error)
                self.desk.event("authority", str(error))
            if await self._stops_within(wait):
                raise asyncio.CancelledError
            wait = min(wait * 2, RETRY_LAST_S)
        self._take_in(admitted)

    def _take_in(self, admitted: Admitted) -> None:
        """Be who the authority says, and believe the bundle that came with it."""
        self._trust(decode_bundle(admitted.bundle))
        self._use_svid(admitted.svid)
        self.desk.event("svid", f"{admitted.how} as {admitted.svid.id}")

    def _trust(self, bundle: Bundle) -> None:
        """Believe a bundle from the disk or an admission, unless a newer one is known."""
        self.driver.post(Trust(bundle, unix_us() // 1_000_000 + LATER_S))

    def _authorities(self) -> list[str]:
        """Addresses of the authorities, the one first that has answered last."""
        at, link = self.settings.authority, getattr(self, "authority", None)
        known = [at.address, *at.also] if at.address else []
        return sorted(known, key=lambda one: link is None or one != link.address)

    def _admission(self) -> Admission:
        authority = self.settings.authority
        ways = self._authorities(), authority.through
        pq = self.settings.require_pq
        return Admission(self.domain, self.me, self.wallet, *ways, self.state_dir, pq)

    async def attest_again(self, target: str) -> None:
        """Come by a new SVID and the newest bundle by the long-lived key.

        For a node whose SVID of now the authority does not take, or that was away while the
        authority's CA changed and believes it no more.

        Raises:
            Refused: why this node is not to have one.
            Unavailable, BadMessage: not this way, not now.
        """
        self._take_in(await self._admission().again(target))

    def _token(self) -> Token | None:
        path = Path(self.settings.authority.token_file)
        if self.wallet.bundle or not self.settings.authority.token_file or not path.exists():
            return None
        return read_token(read_private(path).decode("ascii", "replace").strip())

    async def _work(self) -> None:
        """Links and authority, until the end."""
        s = self.settings
        self.links = LinkConnections(
            self.me,
            self,
            self.trusts.link_client(),
            self.trusts.link_server(self.desk.refused),
            lambda: unix_us() / 1e6,
            random.Random(os.urandom(8)),
            self.kernel,
        )
        if self.kernel is not None:
            self.kernel.run(self.links, self.driver.post, self.machine.sets, self._spawn)
        self.trusts.on_new_svid = self.links.redial
        listen = [split_address(s.control.listen)] if s.control.listen else []
        neighbours = {NodeName(link.node): link.address for link in s.link}
        self.authority = AuthorityLink(self)
        try:
            self._greet()
            self._recall()
            self._spawn(self.authority.watch())
            self._spawn(self.authority.knock())
            self.metrics_port = await self.desk.serve_metrics()
            await self._greeted_or_stopping()
            async with self.links.running(listen, neighbours) as ports:
                self.desk.control_ports = ports
                await self.stopping.wait()
                if self._is_over():
                    self.driver.post(words.Stopping())
        except OSError as error:
            raise Unavailable(
                "X0-RUN-040",
                f"can't listen at {s.control.listen}: {error.strerror}",
                "set control.listen to a free address",
            ) from None

    def _recall(self) -> None:
        """Go on with the workloads of the life before, except those that no longer count."""
        try:
            kept = self.wallet.workloads()
        except X0Error as error:
            self.desk.event("svid", str(error))
            return
        good, left_out = [], Counter[str]()
        for item in kept.svids:
            verdict = self.trusts.judge_kept(item)
            if type(verdict) is Denied:
                left_out[verdict.reason] += 1
            else:
                good.append(item)
        for reason, count in left_out.items():
            self.desk.event("svid", f"{count} kept on the disk, left out: {reason}")
        self.driver.post(words.Workloads(kept.entries, tuple(good)))

    async def _greeted_or_stopping(self) -> None:
        """Wait for the proxy: neighbours are told its port and incarnation first of all."""
        waits = [asyncio.create_task(event.wait()) for event in (self._greeted, self.stopping)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _is_over(self) -> bool:
        """Whether proxy and kernel's plane end, too; a bug leaves them to the next agent."""
        if self.failure is not None and not isinstance(self.failure, X0Error):
            return False
        return self.stopping.is_set() or self.trusts.svid is None

    async def _end(self, *, for_good: bool) -> None:
        while self._tasks:  # Again: grpclib may put its own error in a cancellation's place.
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(list(self._tasks), timeout=0.1)
        if for_good:
            self._end_proxy()
        if self.kernel is not None:
            self.kernel.end(for_good=for_good)
        self.proxy.hang_up()
        if hasattr(self, "driver"):
            self.driver.close()
            self.workload_api.close()

    def _end_proxy(self) -> None:
        """End the proxy with the node, and one that was started for a node that never got in."""
        adopted = self.proxy.pid if self.stopping.is_set() else 0
        for pid in {self._child.pid, adopted} - {0}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        try:
            task.result()
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.log.error("a task of the agent failed", error=repr(error), exc_info=True)
            self.failure = self.failure or error
            self.stopping.set()

    failure: BaseException | None = None
    kernel: KernelPlane | None = None
    metrics_port = 0

    async def _stops_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        return self.stopping.is_set()

    # -------------------------------------------------------------- the proxy
    async def _keep_proxy(self) -> None:
        """Have a proxy, adopt one that runs, start one where there is none; for ever."""
        now = asyncio.get_running_loop().time
        wait, up_by = RETRY_FIRST_S, now()
        while True:
            try:
                await self.proxy.run()
            except Unavailable:
                if self._child.pid and now() < up_by:
                    await asyncio.sleep(PROXY_LOOK_S)  # It is on its way up, or out.
                    continue
                ended = await self._child.start()
                if ended:
                    self.desk.event("node", ended)
                up_by = now() + PROXY_UP_S
            except (BadMessage, Refused) as error:
                self.desk.event("node", str(error))
            else:
                self.driver.post(words.ProxyGone())
                self.ready = None
                self.desk.event("node", "the proxy hung up")
                wait, up_by = RETRY_FIRST_S, now() + PROXY_UP_S
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_LAST_S)

    def _proxy_said(self, fact: ProxyFact) -> None:
        if type(fact) is Ready:
            self.ready = fact
            self._greet()
        self.desk.proxy_said(fact)
        if self.kernel is None or not self.kernel.heard(fact):
            self.driver.post(words.ProxySaid(fact))

    def _greet(self) -> None:
        """Tell neighbours what this node's proxy is, once there is one and an SVID."""
        if self.ready is None or self.trusts.svid is None or not hasattr(self, "links"):
            return
        self._greeted.set()
        self.links.greet(
            Intro(
                version=LINK_VERSION,
                node=self.me,
                agent_incarnation=self.started_us,
                proxy_incarnation=self.ready.incarnation,
                endpoints=self._endpoints(self.ready),
                hello_us=min((link.hello_ms for link in self.settings.link), default=cfg.HELLO_MS)
                * 1000,
                unix_us=unix_us(),
                area=self.settings.area,
            ),
            self.trusts.svid.not_after_unix_s,
        )

    def _endpoints(self, ready: Ready) -> tuple[str, ...]:
        ports = []
        for text in self.settings.data.advertise:
            host, _, port = text.rpartition(":")
            ports.append(f"{host}:{ready.tcp_port}" if port == "0" else text)
        return tuple(ports)

    # -------------------------------------------------------------- links
    def link_up(self, node: NodeName, intro: Intro, keys: LinkKeys) -> None:
        """A link came up or has new keys."""
        hello_us = (
            next((x.hello_ms for x in self.settings.link if x.node == node), cfg.HELLO_MS) * 1000
        )
        self._linked[node] = item = NeighbourItem(
            node=node,
            link=keys.link,
            endpoints=intro.endpoints,
            incarnation=intro.proxy_incarnation,
            hello_us=hello_us,
            tx_hello=keys.tx_hello,
            rx_hello=keys.rx_hello,
            tx_setup=keys.tx_setup,
            rx_setup=keys.rx_setup,
            udp=self.settings.data.udp,
        )
        self._tell_neighbour(item)

    def _tell_neighbour(self, item: NeighbourItem) -> None:
        endpoints = self.resolver.literals(item.endpoints)
        self.driver.post(words.NeighbourUp(msgspec.structs.replace(item, endpoints=endpoints)))

    def link_down(self, node: NodeName, reason: str) -> None:
        """A link's connection is gone."""
        self._linked.pop(node, None)
        self.resolver.wake()  # It may have moved.
        self.desk.event("link", f"connection to {node} lost: {reason}")
        self.driver.post(words.NeighbourDown(node))

    def link_message(self, node: NodeName, message: LinkMessage) -> None:
        """A neighbour's agent says something."""
        self.driver.post(Received(node, message))

    def link_refused(self, who: str, reason: str) -> None:
        """A link connection was refused or failed."""
        self.desk.event("refused", f"link with {who}: {reason}")

    # -------------------------------------------------------------- effects
    def _carry_out(self, effect: Effect) -> None:
        kind = type(effect)
        if kind is Send:
            self.links.send(effect.dst, effect.message)  # type: ignore[attr-defined]
            return
        handler = self._EFFECTS.get(kind)
        if handler is not None:
            handler(self, effect)

    def _order(self, effect: words.Order) -> None:
        self.proxy.send(effect.message)

    def _renew(self, effect: RenewWanted) -> None:
        self.authority.renew(effect.token, effect.id)

    def _expired(self, effect: SvidExpired) -> None:
        self.desk.event("svid", f"{effect.id} has expired without a renewal")

    def _hang_up(self, effect: words.HangUp) -> None:
        self.links.cut(NodeName(effect.node), effect.reason)

    def _set_changed(self, effect: SetChanged) -> None:
        if self.trusts.set_changed(effect.set, effect.body):
            wallet = self.wallet
            if wallet.svid is not None and wallet.bundle != effect.body:
                self._keep(wallet.svid, effect.body)
        if effect.set in ("bundle", "crls", "federated", "revocations"):
            self.workload_api.identities.changed()

    def _identities_changed(self, _effect: SetGone | words.WorkloadsChanged) -> None:
        self.workload_api.identities.changed()

    def _ways_changed(self, effect: WaysChanged) -> None:
        if self.kernel is not None:
            self.kernel.ways(effect)

    def _table_complete(self, _effect: words.TableComplete) -> None:
        if self.kernel is not None:
            self.kernel.complete()

    def _noticed(self, effect: words.Noticed) -> None:
        self.desk.event(effect.kind, effect.text)

    def _persist(self, _effect: words.PersistWanted) -> None:
        try:
            write_private(self.state_dir / RECORDS, msgspec.msgpack.encode(self.machine.held()))
        except X0Error as error:
            self.desk.event("bound", str(error))

    def _keep_workloads(self, _effect: words.KeepWanted) -> None:
        try:
            self.wallet.keep_workloads(self.machine.workloads())
        except X0Error as error:
            self.desk.event("bound", str(error))

    _EFFECTS: Final[dict[type, Callable[..., None]]] = {
        words.Order: _order,
        RenewWanted: _renew,
        SvidExpired: _expired,
        words.HangUp: _hang_up,
        SetChanged: _set_changed,
        SetGone: _identities_changed,
        words.WorkloadsChanged: _identities_changed,
        WaysChanged: _ways_changed,
        words.TableComplete: _table_complete,
        words.Noticed: _noticed,
        words.PersistWanted: _persist,
        words.KeepWanted: _keep_workloads,
    }

    # -------------------------------------------------------------- identity
    def _use_svid(self, svid: Svid) -> None:
        """This node's own SVID from now on: TLS of links and authority, records."""
        self.trusts.present(svid)
        self._greet()
        self.driver.post(words.SvidHeld(_item(svid)))

    def renewed(self, token: int, svid: Svid) -> None:
        """The authority issued what `RenewWanted` asked for."""
        if svid.id == self.id:
            self.trusts.present(svid)
            self._greet()
            self._keep(svid, self.wallet.bundle)
        self.desk.renewal_errors.pop(svid.id, None)
        self.desk.renewals[svid.id] = self.desk.renewals.get(svid.id, 0) + 1
        self.driver.post(Done(token, _item(svid)))

    def not_renewed(self, token: int, id: SpiffeId, reason: str) -> None:
        """It did not."""
        self.desk.renewal_failures += 1
        self.desk.renewal_errors[id] = reason
        self.desk.event("svid", f"{id} was not renewed: {reason}")
        self.driver.post(Failed(token, reason))

    def _keep(self, svid: Svid, bundle: bytes) -> None:
        try:
            self.wallet.keep(svid, bundle)
        except X0Error as error:
            self.desk.event("bound", str(error))


def _item(svid: Svid) -> SvidItem:
    return SvidItem(
        id=svid.id, chain=svid.chain, key=svid.key, not_after_unix_s=svid.not_after_unix_s
    )


def run(settings: cfg.NodeSettings, config: Path) -> None:
    """Run a node's agent until SIGTERM or SIGINT.

    Raises:
        X0Error: it can't go on.
    """
    begin(settings.log)

    async def main() -> None:
        agent = AgentProcess(settings, config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stopping.set)
        with contextlib.suppress(asyncio.CancelledError):
            await agent.run()
        if agent.failure is not None:
            raise agent.failure

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
