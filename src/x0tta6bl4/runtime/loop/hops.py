"""The data port of a proxy: takes hops in, passes them on, and dials its own.

    accepted --setup frame--> HOP, path ends here   -> `on_circuit`, or the authority
                              HOP, path goes on     -> next leg -> relay (spliced, never parsed)
                              CHANNEL               -> the link's channel
                              DIALBACK              -> whoever asked for it
                              ENROL                 -> the authority, few, short and small

A frame that doesn't open is answered in general terms; the reason is for this node's operator.
What is refused after it opened is refused with its reason, which travels back to whoever dialled.

Bounds: HopLimits; at `pending_max` the oldest pending connection makes room for the newest.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import final

import msgspec

from x0tta6bl4.core.machine import Denied, Verdict
from x0tta6bl4.runtime.loop.accept import Acceptor
from x0tta6bl4.runtime.loop.authority import AuthorityWays, HopLimits
from x0tta6bl4.runtime.loop.carry import Cancellable, Way
from x0tta6bl4.runtime.loop.channel import Channels
from x0tta6bl4.runtime.loop.connect import Connecting, OnConnected, tune
from x0tta6bl4.runtime.loop.direct import DirectWays
from x0tta6bl4.runtime.loop.held import Held, HopSocket
from x0tta6bl4.runtime.loop.legs import Leg, Legs
from x0tta6bl4.runtime.loop.neighbours import Neighbours
from x0tta6bl4.runtime.loop.notices import Notices
from x0tta6bl4.runtime.loop.parting import Partings
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.runtime.loop.relay import Pipes, Relay
from x0tta6bl4.runtime.loop.setup import Setup, Setups
from x0tta6bl4.runtime.ports import SealMaker
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hop import (
    AUTHORITY,
    CHANNEL,
    DIAL_BACK,
    DIALBACK,
    ENDED,
    ENROL,
    HELLO,
    HOP,
    PATH_MAX,
    Header,
    Hop,
    pack_refusal,
    target_id,
    unpack_hop,
)
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import AuthorityPathItem, NeighbourItem, NodeItem


@final
class HopStatistics(msgspec.Struct, frozen=True, gc=False):
    """Sums since the start, but for the first four, which are now."""

    pending: int
    relays: int
    circuits: int
    channels: int
    accepted: int
    relayed: int
    bytes_relayed: int
    refused: int
    hostile: int
    """Setup frames that did not open, or were none."""
    evicted: int
    asked: int
    """Dial-backs asked for."""
    enrols: int


OnCircuit = Callable[[HopSocket, NodeName, SpiffeId, bytes], None]
OnNotice = Callable[[str, str], None]
OnHello = Callable[[NodeName, bytes], None]
Admit = Callable[[NodeName, NodeName], Verdict]
"""(the neighbour that it came from, where it goes: a neighbour, or this node) -> verdict."""


@final
class Hops:
    """Accepts on the data port, relays, and dials.

    Args:
        loop: the proxy's loop.
        listener: bound, listening TCP socket; owned from here on.
        me: this node.
        incarnation: of this proxy; random 63 bits, new at each start.
        maker: makes a link's seal from its keys (`edge.hop.setup.LinkSeal`).
        admit: whether a hop that came from the first node may go on to the second, or end here if
            that is this node: their links are confirmed, none is revoked.
        on_circuit: takes a connection whose path ends here, the neighbour it came from (this node
            for its own), the called workload, and bytes already read (none so far).
        on_notice: takes a kind and a text for the operator, at most one of a kind per second.
        limits: bounds.
        random: `random(n)` gives n unpredictable bytes.
    """

    __slots__ = (
        "_accepted",
        "_acceptor",
        "_admit",
        "_dialbacks",
        "_held",
        "_hostile",
        "_legs",
        "_limits",
        "_loop",
        "_notices",
        "_on_circuit",
        "_partings",
        "_pipes",
        "_refused",
        "_relayed",
        "_relayed_bytes",
        "_relays",
        "_setups",
        "authority",
        "channels",
        "direct",
        "me",
        "neighbours",
        "on_hello",
    )

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        *,
        me: NodeName,
        incarnation: int,
        maker: SealMaker,
        admit: Admit,
        on_circuit: OnCircuit,
        on_notice: OnNotice,
        limits: HopLimits = HopLimits(),  # noqa: B008 - frozen
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._loop = loop
        self.me = me
        self._admit = admit
        self._on_circuit = on_circuit
        self._notices = Notices(loop, on_notice)
        self._limits = limits
        self.neighbours = Neighbours(loop, maker)
        self.channels = Channels(loop, me, incarnation, self._message)
        self.on_hello: OnHello = _nobody
        """Takes the neighbour and the body of a channel's HELLO; set by `Hellos`."""
        self._legs = Legs(loop, self.neighbours, self.channels, random)
        self._held = Held(limits.per_neighbour_max)
        self._pipes = Pipes()
        self._relays: dict[Relay, tuple[NodeName, ...]] = {}
        self._setups = Setups(
            loop,
            limits.pending_max,
            limits.setup_us,
            self._complete,
            lambda why: self._notices.say("setup", why),
        )
        self._partings = Partings(loop)
        self._dialbacks: set[Cancellable] = set()
        self.authority = AuthorityWays(
            loop,
            limits,
            self._notices,
            lambda path, on_done: self.dial(path, AUTHORITY, on_done),
            lambda one, two, over, bytes_max: self._relay(one, two, (), over, bytes_max),
        )
        """Ways to the authority; `authority.listen(path)` opens this node's own socket to it."""
        self.direct = DirectWays(
            loop,
            limits,
            self._held,
            self._notices,
            lambda node: admit(node, me),
            lambda sock, node, target: on_circuit(sock, node, target, b""),
            lambda sock, why: self._refuse(sock, f"{me}: {why}"),
        )
        """Circuits over mesh addresses."""
        self._accepted = self._relayed = self._relayed_bytes = self._refused = 0
        self._hostile = 0
        """Frames that did not open."""
        self._acceptor = Acceptor(
            loop, listener, self._accept, lambda why: self._notices.say("accept", why)
        )

    # ------------------------------------------------------------------ what the agent says
    def node_set(self, item: NodeItem) -> None:
        """Learn where the authority is, as this node dials it (an address, or empty)."""
        self.authority.where = item.authority

    def authority_paths(self, item: AuthorityPathItem) -> None:
        """Learn paths to nodes that can reach the authority, best first, each from this node."""
        self.authority.paths = item.paths[:4]

    def neighbour_set(self, item: NeighbourItem) -> None:
        """Take a neighbour in, or its new endpoints or keys.

        Raises:
            BadMessage: keys of a wrong form.
        """
        neighbour = self.neighbours.set(item)
        if neighbour is None:
            self._notices.say("neighbours", f"no room for {item.node}: 256 neighbours")
        else:
            self.channels.neighbour_set(neighbour)

    def neighbour_gone(self, node: NodeName, reason: str = "link withdrawn") -> int:
        """Forget a neighbour: its keys, its channel, and every hop to or from it.

        Nothing new comes from it before `neighbour_set`.

        Returns:
            How many hops there were.
        """
        count = self.cut(node, reason)
        self.neighbours.gone(node)
        self.channels.neighbour_gone(node)
        self._legs.neighbour_gone(node)
        return count

    def cut(self, node: NodeName, reason: str) -> int:
        """Reset every hop to or from a neighbour, which may set up new ones at once.

        For a neighbour whose older SVIDs are revoked; one that is banned is gone.

        Returns:
            How many there were.
        """
        return self._held.cut(node, reason)

    # ------------------------------------------------------------------ dialling
    def dial(
        self, path: Sequence[NodeName], target: SpiffeId | str, on_done: OnConnected
    ) -> Cancellable:
        """Set up a hop of our own.

        Args:
            path: from this node to the target's node inclusive; `(me,)` for this node itself.
            target: the called workload, or `wire.hop.AUTHORITY`.
            on_done: takes the socket (a HopSocket for circuits), on which TLS is to be spoken at
                once, or None and the reason.  Where the first TLS record should be, a refusal may
                come: see `wire.hop.unpack_refusal`.  Never called before `dial` has returned.
        Returns:
            Something to cancel it with, until `on_done` was called.
        """
        if not path or path[0] != self.me or len(path) > PATH_MAX + 1:
            return _Later(self._loop, on_done, None, "path does not begin here")
        if len(path) == 1:
            if target == AUTHORITY:
                return self.authority.direct(on_done)
            return self._dial_self(SpiffeId(target), on_done)
        node = path[1]
        if not self._held.room(node):
            return _Later(self._loop, on_done, None, f"too many hops to {node}")
        if len(path) == 2 and target != AUTHORITY and self.direct.knows(node):
            return self.direct.dial(node, SpiffeId(target), on_done)
        hop = Hop(tuple(path[1:]), target)

        def reached(sock: socket.socket | None, why: str) -> None:
            on_done(None if sock is None else self._held.own(sock, node), why)

        return self._legs.open(node, hop, reached)

    def _dial_self(self, target: SpiffeId, on_done: OnConnected) -> Cancellable:
        """A circuit of this node to itself: a pair of sockets, the same TLS and checks."""
        if not self._held.room(self.me):
            return _Later(self._loop, on_done, None, "too many circuits of this node to itself")
        near, far = socket.socketpair()
        mine, other = self._held.own(near, self.me), self._held.own(far, self.me)

        def answer(sock: socket.socket | None, why: str) -> None:
            self._on_circuit(other, self.me, target, b"")
            on_done(sock, why)

        def dropped() -> None:
            mine.close()
            other.close()

        return _Later(self._loop, answer, mine, "", dropped)

    # ------------------------------------------------------------------ accepting
    def _accept(self, sock: socket.socket) -> None:
        self._accepted += 1
        tune(sock)
        self._setups.expect(sock, None)

    def _complete(self, setup: Setup, sock: socket.socket, header: Header) -> None:
        """A whole frame is there: open it and do what it says."""
        if header.kind == ENROL:
            if self.authority.enrol(sock):
                return None
            return self._refuse(sock, f"{self.me}: too many enrolments at once")
        found = self.neighbours.find(header.link)
        if found is None or setup.node not in (None, found[0].node):
            return self._not_opened(sock, "setup frame under unknown keys")
        neighbour, seal = found
        body = seal.open(setup.header, setup.body)
        if isinstance(body, Denied):
            return self._not_opened(sock, f"{body.reason}, link to {neighbour.node}")
        if header.kind == HOP:
            return self._hop(sock, neighbour.node, body)
        if setup.node is not None:
            return self._refuse(sock, f"{self.me}: only hops are taken on a dial-back")
        if header.kind == CHANNEL:
            return self.channels.accepted(neighbour, seal, setup.header, sock)
        assert header.kind == DIALBACK
        if not self._legs.answered(neighbour.node, body, sock):
            self._refuse(sock, f"{self.me}: nobody waits for this dial-back")
        return None

    def _hop(self, sock: socket.socket, previous: NodeName, body: bytes) -> None:
        try:
            hop = unpack_hop(body, self.me)
        except BadMessage as error:
            return self._refuse(sock, f"{self.me}: {error.what}")
        if previous in hop.path:
            return self._refuse(sock, f"{self.me}: path goes back to {previous}")
        following = NodeName(hop.path[1]) if len(hop.path) > 1 else self.me
        verdict = self._admit(previous, following)
        if isinstance(verdict, Denied):
            return self._refuse(sock, f"{self.me}: {verdict.reason}")
        if not self._held.room(previous):
            return self._refuse(sock, f"{self.me}: too many hops from {previous}")
        if following != self.me:
            return self._onward(sock, previous, following, hop)
        target = target_id(hop)
        if target is not None:
            return self._on_circuit(self._held.own(sock, previous), previous, target, b"")
        if not self.authority.where:
            return self._refuse(sock, f"{self.me}: no authority is dialled from here")
        return self._join(sock, previous, self.me, self.authority.direct)

    def _onward(self, sock: socket.socket, previous: NodeName, node: NodeName, hop: Hop) -> None:
        """Relay: open the next leg and splice."""
        if not self._held.room(node):
            return self._refuse(sock, f"{self.me}: too many hops to {node}")
        rest = Hop(hop.path[1:], hop.target)

        def way(on_done: OnConnected) -> Leg:
            return self._legs.open(node, rest, on_done)

        return self._join(sock, previous, node, way)

    def _join(self, sock: socket.socket, previous: NodeName, node: NodeName, way: Way) -> None:
        """Splice a hop to what `way` opens; a cut of either neighbour ends it before, too."""
        waiting = _Waiting(self, sock, (previous, node))
        waiting.dialling = way(waiting.reached)

    def _relay(
        self,
        one: socket.socket,
        two: socket.socket,
        ends: tuple[NodeName, ...],
        over: Callable[[], None],
        bytes_max: int,
    ) -> Relay:
        def ended(relay: Relay, reason: str) -> None:
            del self._relays[relay]
            self._held.drop(relay, ends)
            self._relayed_bytes += relay.bytes_moved
            if reason:
                self._say_ended(ends, reason)
            over()

        relay = Relay(self._loop, self._pipes, one, two, ended, bytes_max)
        self._relays[relay] = ends
        self._relayed += 1
        self._held.add(relay, ends)
        return relay

    def _say_ended(self, ends: tuple[NodeName, ...], reason: str) -> None:
        """Tell both neighbours why a hop of theirs was reset, as the hop itself can't."""
        self._notices.say("relay", reason)
        text = f"{self.me}: {reason}".encode("ascii", "replace")[:200]
        for node in ends:
            self.channels.send(node, ENDED, text)

    # ------------------------------------------------------------------ refusing
    def _not_opened(self, sock: socket.socket, reason: str) -> None:
        self._hostile += 1
        self._notices.say("setup", reason)
        self._refuse(sock, f"{self.me}: setup frame not opened")

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        """Say why and close, without a reset that could overtake the reason."""
        self._refused += 1
        self._partings.say(sock, pack_refusal(reason))

    # ------------------------------------------------------------------ channels
    def _message(self, node: NodeName, kind: int, body: bytes) -> None:
        """A message of a neighbour's channel."""
        if kind == HELLO:
            self.on_hello(node, body)
        elif kind == DIAL_BACK:
            self._dial_back(node, body)
        elif kind == ENDED:
            text = "".join(chr(c) if 32 <= c < 127 else "?" for c in body[:200])
            self._notices.say("relay", f"{node} says: {text}")

    def _dial_back(self, node: NodeName, token: bytes) -> None:
        """A neighbour can't dial us: dial it, show the token, and take its hop."""
        neighbour = self.neighbours.get(node)
        if neighbour is None or len(self._dialbacks) >= self._limits.pending_max:
            return

        def reached(sock: socket.socket | None, why: str) -> None:
            self._dialbacks.discard(connecting)
            known = self.neighbours.get(node)
            if sock is None or known is None:
                self._notices.say("dial-back", f"{node} not dialled: {why or 'link withdrawn'}")
                return
            try:
                sock.send(known.seal.seal(DIALBACK, token))
            except OSError:
                sock.close()
            else:
                self._setups.expect(sock, node)

        connecting = Connecting(self._loop, neighbour.item.endpoints, reached)
        self._dialbacks.add(connecting)

    # ------------------------------------------------------------------ numbers, and the end
    def statistics(self) -> HopStatistics:
        """Snapshot for metrics."""
        return HopStatistics(
            pending=len(self._setups) + len(self.direct.setups),
            relays=len(self._relays),
            circuits=self._held.sockets,
            channels=sum(self.channels.has(n.node) for n in self.neighbours),
            accepted=self._accepted,
            relayed=self._relayed,
            bytes_relayed=self._relayed_bytes + sum(r.bytes_moved for r in self._relays),
            refused=self._refused,
            hostile=self._hostile + self._setups.broken + self.direct.setups.broken,
            evicted=self._setups.evicted + self.direct.setups.evicted,
            asked=self._legs.asks,
            enrols=self.authority.enrols,
        )

    def close(self) -> None:
        """Stop accepting and reset every hop; sockets handed out see their end."""
        self._acceptor.close()
        self.direct.close()
        self.authority.close()
        for neighbour in self.neighbours:
            self.neighbour_gone(neighbour.node)
        self.cut(self.me, "proxy stops")
        for relay in tuple(self._relays):
            relay.reset("proxy stops")
        self._setups.close()
        for dialling in tuple(self._dialbacks):
            dialling.cancel()
        self._partings.close()
        self._pipes.close()


@final
class _Waiting:
    """A hop whose next leg is not there yet; it lets go of everything when that is settled.

    Args:
        hops: who has accepted it.
        sock: of the hop; owned until then.
        ends: the neighbours that it is counted at, and whose cut ends it.
    """

    __slots__ = ("_ends", "_hops", "_sock", "dialling")

    def __init__(self, hops: Hops, sock: socket.socket, ends: tuple[NodeName, ...]) -> None:
        self._hops, self._sock, self._ends = hops, sock, ends
        self.dialling: Cancellable | None = None
        hops._held.add(self, ends)

    def reached(self, up: socket.socket | None, why: str) -> None:
        """The next leg is there, or there is none."""
        hops, ends = self._hops, self._ends
        hops._held.drop(self, ends)
        self.dialling = None  # It has called its last, and may hold this.
        if up is None:
            hops._refuse(self._sock, f"{hops.me}: {why}")
        else:
            hops._relay(self._sock, up, ends, _nothing, 0)

    def reset(self, reason: str) -> None:
        """See `Resettable`."""
        dialling, self.dialling = self.dialling, None
        assert dialling is not None
        dialling.cancel()
        self._hops._held.drop(self, self._ends)
        self._hops._refuse(self._sock, f"{self._hops.me}: {reason}")


@final
class _Later:
    """An answer that is known already, given when the batch is over."""

    __slots__ = ("_dropped", "_on_done", "_sock", "_why")

    def __init__(
        self,
        loop: Loop,
        on_done: OnConnected,
        sock: socket.socket | None,
        why: str,
        dropped: Callable[[], None] | None = None,
    ) -> None:
        self._on_done: OnConnected | None = on_done
        self._sock = sock
        self._why = why
        self._dropped = dropped
        loop.after_batch(self._answer)

    def cancel(self) -> None:
        """Answer nothing, and close what would have been the answer."""
        if self._on_done is not None:
            self._on_done = None
            if self._dropped is not None:
                self._dropped()

    def _answer(self) -> None:
        call, self._on_done = self._on_done, None
        if call is not None:
            call(self._sock, self._why)


def _nothing() -> None:
    """Nothing is to be done at its end."""


def _nobody(node: NodeName, body: bytes) -> None:
    """Nobody listens for hellos."""


__all__ = ["HopLimits", "HopSocket", "HopStatistics", "Hops"]
