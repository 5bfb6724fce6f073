"""A real authority in this process, with real nodes that dial it over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from x0tta6bl4.app.admission import Admission, Admitted
from x0tta6bl4.app.authority import ADMIN_SOCKET, AuthorityProcess
from x0tta6bl4.app.settings import AuthoritySettings
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.core.identity.rules import AUTHORITY
from x0tta6bl4.edge.authority_api.client import AdminClient, AuthorityClient
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, TlsContext
from x0tta6bl4.edge.tls.judge import Judge, allow_all
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.records import decode_bundle
from x0tta6bl4.wire.token import Token, read_token

DOMAIN = TrustDomain("example.org")


class World:
    """One authority and what its nodes and operators do."""

    def __init__(self, process: AuthorityProcess, root: Path, admin: AdminClient) -> None:
        self.process = process
        self.root = root
        self.admin = admin

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.process.port}"

    async def token(self, node: str = "") -> Token:
        made = await self.admin.token_create(
            words.TokenCreate(node=node, authorities=(self.address,))
        )
        return read_token(made.token)

    def wallet(self, name: str) -> Wallet:
        return Wallet(self.root / f"node-{name}")

    def admission(self, name: str, direct: tuple[str, ...] = ()) -> Admission:
        return Admission(
            DOMAIN, NodeName(name), self.wallet(name), direct or (self.address,), (), self.root
        )

    async def enrol(self, name: str) -> Admitted:
        return await self.admission(name).admit(await self.token(name))

    def client(self, admitted: Admitted | None, bundle: bytes = b"") -> AuthorityClient:
        """A connection with this identity, or with none."""
        return client(
            self.address,
            admitted.svid if admitted else None,
            admitted.bundle if admitted else bundle,
        )

    async def entry(self, node: str, id: str = "web") -> words.Entry:
        entry = words.Entry(id=f"spiffe://{DOMAIN}/{id}", node=node, selectors=("unix:uid:1000",))
        return await self.admin.entry_create(entry)


def client(target: str, svid: Svid | None, bundle: bytes) -> AuthorityClient:
    judge = Judge(DOMAIN, decode_bundle(bundle).anchors, allow_all, unix_us)
    context = TlsContext(svid, judge, (ALPN_AUTHORITY,), AUTHORITY)
    return AuthorityClient(target, SslContext(context), unix_us)


def wanted(*keys: str) -> tuple[words.Wanted, ...]:
    csr = x509.new_csr(x509.new_key())
    return tuple(words.Wanted(entry=key, csr=csr) for key in keys)


def settings(root: Path, **changes: object) -> AuthoritySettings:
    plain = AuthoritySettings(
        trust_domain=DOMAIN, state_dir=str(root / "authority"), listen="127.0.0.1:0"
    )
    return msgspec.structs.replace(plain, **changes)


@contextlib.asynccontextmanager
async def world(root: Path, **changes: object) -> AsyncIterator[World]:
    """A serving authority in `root`, and an operator at its socket."""
    process = AuthorityProcess(settings(root, **changes))
    async with (
        process.serving(),
        AdminClient(str(root / "authority" / ADMIN_SOCKET)) as admin,
    ):
        yield World(process, root, admin)


async def eventually(
    check: Callable[[], Awaitable[bool]] | Callable[[], bool], seconds: float = 5.0
) -> None:
    """Poll until true, for what no event tells."""
    async with asyncio.timeout(seconds):
        while True:
            found = check()
            if await found if inspect.isawaitable(found) else found:
                return
            await asyncio.sleep(0.01)


Story = Callable[[World], Awaitable[None]]


def play(root: Path, story: Story, **changes: object) -> None:
    """Run a story in a world of its own."""

    async def run() -> None:
        async with asyncio.timeout(30), world(root, **changes) as here:
            await story(here)

    asyncio.run(run())


async def refusal(answer: Awaitable[Any]) -> X0Error:
    try:
        got = await answer
    except X0Error as error:
        return error
    raise AssertionError(f"not refused: {got}")
