"""Impostors for the demo and the tests of a running mesh: every door is tried with every fault.

The certificates come from `edge.tls.impostors`, signed by the trust domain's own CA where a fault
needs that: even what the CA were tricked into signing is refused.  The doors: the link port of a
node's agent, the authority's port, and the data port of a proxy, which answers nobody without a
link's keys.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Final

from x0tta6bl4.app.admission import Unjudged
from x0tta6bl4.app.mesh import Mesh
from x0tta6bl4.app.story import Impostors
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.authority_api.client import AuthorityClient
from x0tta6bl4.edge.store.store import FILE
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, ALPN_LINK, TlsContext
from x0tta6bl4.edge.tls.impostors import IMPOSTORS
from x0tta6bl4.edge.tls.recipes import Presented
from x0tta6bl4.edge.tls.x509 import Issuer, Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import hop
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain

TRY_S: Final = 3.0
AT_ONCE_MAX: Final = 8

Attempt = Callable[[], Awaitable[str]]
"""Answers why it was refused; an empty text means that it was let in."""


def try_all(mesh: Mesh) -> Impostors:
    """Try every impostor at the authority, at the first node's link port and at its data port."""
    return asyncio.run(_try_all(mesh))


async def _try_all(mesh: Mesh) -> Impostors:
    found = Impostors()
    free = asyncio.Semaphore(AT_ONCE_MAX)

    async def one(name: str, attempt: Attempt) -> None:
        async with free:
            try:
                async with asyncio.timeout(TRY_S):
                    why = await attempt()
            except TimeoutError:
                why = "no answer"
            except (OSError, X0Error) as error:
                why = _short(error)
            found.tried += 1
            if not why:
                found.accepted += 1
                why = f"ACCEPTED {name}"
            found.reasons[why] = found.reasons.get(why, 0) + 1

    async with asyncio.TaskGroup() as group:
        for name, attempt in _attempts(mesh):
            group.create_task(one(name, attempt))
    return found


def _attempts(mesh: Mesh) -> list[tuple[str, Attempt]]:
    node = mesh.settings(mesh.plan.nodes[0])
    link, data = node.control.listen, node.data.listen
    authority = node.authority.address
    now = int(time.time())  # noqa: TID251 - an impostor may look at any clock
    issuer = issuer_of(mesh)
    attempts: list[tuple[str, Attempt]] = []
    for case in IMPOSTORS:
        if not case.presentable:
            continue
        shown = case.make(issuer, now)
        attempts.append((f"{case.name} at a link", _link(link, shown)))
        attempts.append((f"{case.name} at the authority", _watch(authority, shown)))
    attempts.append(("nobody at a link", _link(link, None)))
    attempts.append(("nobody at the authority", _watch(authority, None)))
    attempts += [(f"{name} at the data port", _data(data, first)) for name, first in _FIRST]
    return attempts


def issuer_of(mesh: Mesh) -> Issuer:
    """The mesh's own CA, read from its database: the worst that an impostor could use."""
    path = mesh.state("authority") / FILE
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        row = database.execute(
            "SELECT certificate, private FROM ca_keys WHERE state = 'active'"
        ).fetchone()
    return Issuer(TrustDomain(mesh.plan.trust_domain), x509.load_key(row[1]), row[0])


def _context(shown: Presented | None, alpn: str) -> SslContext:
    svid = None if shown is None else Svid(SpiffeId(""), shown.chain, shown.key, 0)
    return SslContext(TlsContext(svid, Unjudged(), (alpn,), ANYBODY))


def _link(address: str, shown: Presented | None) -> Attempt:
    """Dial a node's agent; its greeting would mean that we were let in."""

    async def attempt() -> str:
        host, port = split_address(address)
        reader, writer = await asyncio.open_connection(
            host, port, ssl=_context(shown, ALPN_LINK), server_hostname=""
        )
        try:
            return "" if await reader.read(1) else "closed"
        finally:
            writer.transport.abort()

    return attempt


def _watch(address: str, shown: Presented | None) -> Attempt:
    """Ask the authority for this node's entries; any update would mean that we were let in."""

    async def attempt() -> str:
        async with AuthorityClient(address, _context(shown, ALPN_AUTHORITY), unix_us) as client:
            async for _ in client.watch():
                return ""
        return "closed"

    return attempt


def _data(address: str, first: bytes) -> Attempt:
    """Say something to a proxy's data port; anything but a refusal would be an acceptance."""

    async def attempt() -> str:
        host, port = split_address(address)
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(first)
            writer.write_eof()
            answer = await reader.read(4096)
            return hop.unpack_refusal(answer) or "" if answer else "closed"
        finally:
            writer.transport.abort()

    return attempt


def _short(error: BaseException) -> str:
    text = error.what if isinstance(error, X0Error) else str(error) or type(error).__name__
    return text.rpartition(": ")[2][:60] or type(error).__name__


_FIRST: Final = (
    ("garbage", os.urandom(512)),
    ("TLS", bytes.fromhex("1603010200010001fc0303") + os.urandom(500)),
    ("a forged hop", hop.pack_header(hop.Header(hop.HOP, 7, 1, 64)) + os.urandom(64)),
    ("a forged channel", hop.pack_header(hop.Header(hop.CHANNEL, 7, 1, 64)) + os.urandom(64)),
    ("a forged dial-back", hop.pack_header(hop.Header(hop.DIALBACK, 7, 1, 32)) + os.urandom(32)),
)
