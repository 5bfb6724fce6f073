"""A directory of the Workload API that says what a test wants, and a server with a client on it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.fakes.ca import FakeCa
from tests.fakes.workload_client import WorkloadClient
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.peer import PeerAttestor
from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.edge.workload_api.server import Bounds, WorkloadServer
from x0tta6bl4.edge.workload_api.words import (
    Caller,
    Snapshot,
    Svid,
    TrustBundle,
    Validated,
    WitSvid,
)
from x0tta6bl4.wire.errors import X0Error

CA = FakeCa()
FOREIGN = TrustBundle("other.test", (b"foreign",), b'{"keys":["theirs"]}')
OWN = TrustBundle("mesh.test", (CA.issuer.certificate,), b'{"keys":["ours"]}')
STREAMS = sorted(name for name, (_, _, stream) in schema.METHODS.items() if stream)
GOOD_REQUESTS: dict[str, Any] = {
    "FetchJWTSVID": schema.JWTSVIDRequest(audience=["db"]),
    "ValidateJWTSVID": schema.ValidateJWTSVIDRequest(audience="db", svid="good"),
}


def made(path: str, hint: str = "") -> Svid:
    svid = CA.svid(path)
    return Svid(svid.id, svid.chain, svid.key, hint)


WEB, DB = made("web", "external"), made("db")
WIT = (WitSvid(WEB.id, "token", '{"kty":"EC"}', "h"), WitSvid(DB.id, "other", "{}"))


class Told:
    """A directory: everybody has `snapshot`; `say` replaces it."""

    def __init__(self, *svids: Svid) -> None:
        self.snapshot = Snapshot(svids, OWN)
        self.bells: list[asyncio.Event] = []
        self.minted: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self.error: X0Error | None = None

    def say(self, *svids: Svid, **others: Any) -> None:
        self.snapshot = Snapshot(svids, others.pop("own", OWN), **others)
        for bell in self.bells:
            bell.set()

    async def subscribe(self, caller: Caller) -> AsyncIterator[Snapshot]:
        bell = asyncio.Event()
        self.bells.append(bell)
        try:
            while True:
                bell.clear()
                yield self.snapshot
                await bell.wait()
        finally:
            self.bells.remove(bell)

    async def mint(
        self, caller: Caller, svids: tuple[Svid, ...], audience: tuple[str, ...]
    ) -> tuple[str, ...]:
        if self.error is not None:
            raise self.error
        self.minted.append((tuple(svid.id for svid in svids), audience))
        return tuple(f"token of {svid.id}" for svid in svids)

    def validate(self, snapshot: Snapshot, token: str, audience: str) -> Validated | Denied:
        if token != "good":
            return Denied("bad signature")
        return Validated(WEB.id, {"sub": WEB.id, "aud": [audience], "exp": 1, "x": {"y": [None]}})


@contextlib.contextmanager
def socket_path() -> Iterator[Path]:
    directory = tempfile.mkdtemp(prefix="x0wl")
    try:
        yield Path(directory) / "sock"
    finally:
        shutil.rmtree(directory)


def run(
    path: Path,
    directory: Told,
    story: Callable[[WorkloadClient, WorkloadServer], Awaitable[None]],
    hold_s: float = 5.0,
    bounds: Bounds | None = None,
) -> WorkloadServer:
    async def main() -> WorkloadServer:
        attestor = PeerAttestor()
        made = WorkloadServer(directory, attestor, hold_s, bounds)
        await made.start(path)
        try:
            async with asyncio.timeout(20), WorkloadClient(path) as client:
                await story(client, made)
        finally:
            await made.stop()
            attestor.close()
        assert not directory.bells, "a subscription was left open"
        assert made.statistics() == {"connections": 0, "open": 0}
        return made

    return asyncio.run(main())


async def refused(call: Awaitable[Any]) -> Status:
    with pytest.raises(GRPCError) as caught:
        await call
    return caught.value.status


async def until(what: Callable[[], bool]) -> None:
    """Bounded by the timeout of the story."""
    while not what():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
