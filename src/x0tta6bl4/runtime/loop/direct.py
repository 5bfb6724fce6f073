"""Circuits in one TCP connection, over mesh addresses, where the kernel passes data on.

    client's proxy --TCP, DIRECT frame, TLS--> mesh address of the server's proxy

The two need not be neighbours, so there are no link keys to seal a frame with, and the DIRECT frame
has only the called workload's ID, in the clear: hosts on the way learn it.  Who may do what does
not rest on it:

    who is calling       the circuit's own mutual TLS, as on every path
    who may connect      the source is the mesh address of a node that this kernel's own table leads
                         to; the membership filter drops all others, and those that come over no
                         watched link, before TCP sees them
    how much             setups at once, time of a setup, circuits and handshakes of one node: the
                         same bounds as for neighbours

What a cut swallows before the kernel diverts, TCP sends again: how soon, the routes say
(`edge/kernel/rtnetlink.py`).

A member on the way can pretend another node's address: it takes that node's share of handshakes,
and gets no further than its own SVIDs do.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import Denied, Verdict
from x0tta6bl4.runtime.loop.accept import Acceptor
from x0tta6bl4.runtime.loop.authority import HopLimits
from x0tta6bl4.runtime.loop.connect import Connecting, OnConnected, begin, tune
from x0tta6bl4.runtime.loop.held import Held, HopSocket
from x0tta6bl4.runtime.loop.notices import Notices
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.runtime.loop.setup import Setup, Setups
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hop import DIRECT, Header, pack_direct, unpack_direct
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.mesh_address import MESH_PORT
from x0tta6bl4.wire.messages import DirectItem

_FREEBIND: Final = 78
"""IPV6_FREEBIND: the agent may not have set the address yet."""


@final
class DirectWays:
    """Nodes that the kernel's routes lead to, and circuits to and from them.

    Args:
        loop: the proxy's loop.
        limits: of the data port.
        held: circuits by node.
        notices: where failures are told.
        admit: whether a circuit from a node may end here.
        on_circuit: takes a socket whose DIRECT frame was read, the node, and the called workload.
        refuse: says why and closes.
    """

    __slots__ = (
        "_acceptor", "_admit", "_by_address", "_by_node", "_held", "_loop", "_notices",
        "_on_circuit", "_refuse", "accepted", "dialled", "setups", "silent", "strangers",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        limits: HopLimits,
        held: Held,
        notices: Notices,
        admit: Callable[[NodeName], Verdict],
        on_circuit: Callable[[HopSocket, NodeName, SpiffeId], None],
        refuse: Callable[[socket.socket, str], None],
    ) -> None:
        self._loop, self._held, self._notices = loop, held, notices
        self._admit, self._on_circuit, self._refuse = admit, on_circuit, refuse
        self._by_node: dict[NodeName, str] = {}
        """Mesh addresses; as bounded as the snapshot."""
        self._by_address: dict[str, NodeName] = {}
        self.setups = Setups(
            loop,
            limits.pending_max,
            limits.setup_us,
            self._complete,
            lambda why: notices.say("setup", why),
        )
        """Connections that have not said yet whom they call."""
        self._acceptor: Acceptor | None = None
        self.dialled = self.accepted = 0
        self.silent: dict[NodeName, int] = {}
        """Calls in vain since the last answer; as bounded as the snapshot."""
        self.strangers = 0
        """Connections from addresses to which the kernel's table does not lead."""

    def listen(self, address: str) -> None:
        """Take circuits at this node's mesh address; what listens already goes on.

        Raises:
            OSError: the port is taken, or this host has no IPv6.
        """
        if self._acceptor is not None:
            return
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _FREEBIND, 1)
            sock.bind((address, MESH_PORT))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
            sock.listen(1024)
        except OSError:
            sock.close()
            raise
        self._acceptor = Acceptor(
            self._loop, sock, self._accept, lambda why: self._notices.say("accept", why)
        )

    def set(self, item: DirectItem) -> None:
        """The kernel's routes lead to a node."""
        node = NodeName(item.node)
        self._by_node[node] = item.address
        self._by_address[item.address] = node

    def gone(self, node: NodeName) -> None:
        """They do no more; circuits that are there end by themselves, if at all."""
        address = self._by_node.pop(node, None)
        self.silent.pop(node, None)
        if address is not None:
            self._by_address.pop(address, None)

    def knows(self, node: NodeName) -> bool:
        """Whether circuits to a node need no relay."""
        return node in self._by_node

    def dial(self, node: NodeName, target: SpiffeId, on_done: OnConnected) -> Connecting:
        """Connect to a node that is known and say which workload is called.

        Args:
            node: where.
            target: the called workload.
            on_done: takes the socket or None and the reason; never called before this returns.
        """
        self.dialled += 1
        frame = pack_direct(target)

        def reached(sock: socket.socket | None, why: str) -> None:
            if sock is not None:
                why = begin(sock, frame)
                self.silent.pop(node, None)
            elif node in self._by_node:
                self.silent[node] = self.silent.get(node, 0) + 1
            on_done(None if sock is None or why else self._held.own(sock, node), why)

        return Connecting(self._loop, (f"[{self._by_node[node]}]:{MESH_PORT}",), reached)

    def _accept(self, sock: socket.socket) -> None:
        try:
            node = self._by_address.get(sock.getpeername()[0])
        except OSError:
            sock.close()
            return
        if node is None:
            self.strangers += 1
            sock.close()
            return
        tune(sock)
        self.setups.expect(sock, node)

    def _complete(self, setup: Setup, sock: socket.socket, header: Header) -> None:
        node = setup.node
        assert node is not None
        if header.kind != DIRECT:
            return self._refuse(sock, "only circuits are taken here")
        try:
            target = unpack_direct(setup.body)
        except BadMessage as error:
            return self._refuse(sock, error.what)
        verdict = self._admit(node)
        if isinstance(verdict, Denied):
            return self._refuse(sock, verdict.reason)
        if not self._held.room(node):
            return self._refuse(sock, f"too many circuits from {node}")
        self.accepted += 1
        return self._on_circuit(self._held.own(sock, node), node, target)

    def close(self) -> None:
        """Stop accepting."""
        if self._acceptor is not None:
            self._acceptor.close()
        self.setups.close()
