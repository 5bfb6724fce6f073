#!/usr/bin/env python3
"""Many nodes in one process: the real protocol to a real authority, over sockets of their own.

    bench/fleet.py --authority HOST:PORT --tokens FILE --workloads N

Each node enrols with its token over TLS, watches over TLS with its SVID, and asks for every entry
that it is told of, in batches of at most 64, as an agent does; each has its own connections, keys
and requests.  What a process of its own would add (its proxy, its disk, the sockets of workloads)
is left out.  Told by JSON lines on standard output:

    {"served": seconds, "at": monotonic}      every node has so many SVIDs
    {"came": {id: monotonic}}                 SVIDs of entries made later, when told to "say"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from x0tta6bl4.app.admission import Unjudged, walk
from x0tta6bl4.core.identity.rules import ANYBODY, AUTHORITY
from x0tta6bl4.edge.authority_api.client import AuthorityClient
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, TlsContext
from x0tta6bl4.edge.tls.judge import Judge, allow_all
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain
from x0tta6bl4.wire.records import decode_bundle
from x0tta6bl4.wire.token import Token, read_token

ENROL_AT_ONCE = 32
"""Nodes that start in the same moment; the authority takes 256."""
DEADLINE_S = 60.0


class Node:
    """One node.

    Args:
        name: of it.
        token: to enrol with.
        target: of the authority.
        fleet: is told what it has.
    """

    def __init__(self, name: str, token: Token, target: str, fleet: Fleet) -> None:
        self.name, self._token, self._target, self._fleet = name, token, target, fleet
        self.svids: dict[str, tuple[bytes, ...]] = {}
        self._waiting: dict[str, words.Entry] = {}
        self._wake = asyncio.Event()

    async def run(self, starting: asyncio.Semaphore) -> None:
        """Enrol, watch, ask."""
        async with starting:
            svid, judge = await self._enrol()
            context = TlsContext(svid, judge, (ALPN_AUTHORITY,), AUTHORITY)
            client = AuthorityClient(self._target, SslContext(context), unix_us, DEADLINE_S)
            watching = client.watch()
            self._take(await anext(watching))
        async with client:
            asking = asyncio.create_task(self._ask(client))
            try:
                async for update in watching:
                    self._take(update)
            finally:
                asking.cancel()

    async def _enrol(self) -> tuple[Svid, Judge]:
        domain = TrustDomain(self._token.trust_domain)
        held = self._token.bundle_sha256
        unjudged = TlsContext(None, Unjudged(), (ALPN_AUTHORITY,), ANYBODY)
        async with AuthorityClient(
            self._target, SslContext(unjudged), unix_us, DEADLINE_S
        ) as client:
            body = walk(await client.trust(held), held)
        judge = Judge(domain, decode_bundle(body).anchors, allow_all, unix_us)
        judged = TlsContext(None, judge, (ALPN_AUTHORITY,), AUTHORITY)
        long_lived, key = x509.new_key(), x509.new_key()
        request = words.EnrolRequest(
            token=self._token.id,
            secret=self._token.secret,
            node=self.name,
            key=x509.public_point(long_lived),
            csr=x509.new_csr(key),
            proof=b"",
            unix_us=unix_us(),
        )
        proof = x509.sign(long_lived, words.enrol_signed_part(request))
        async with AuthorityClient(self._target, SslContext(judged), unix_us, DEADLINE_S) as client:
            admission = await client.enrol(msgspec.structs.replace(request, proof=proof))
        svid = Svid(
            SpiffeId(admission.id), admission.chain, x509.key_bytes(key), admission.not_after_unix_s
        )
        return svid, judge

    def _take(self, update: words.Update) -> None:
        for entry in update.entries:
            self._waiting[entry.key] = entry
        if update.entries:
            self._wake.set()

    async def _ask(self, client: AuthorityClient) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = dict(list(self._waiting.items())[: words.ISSUE_MAX])
                for key in batch:
                    del self._waiting[key]
                await self._issue(client, batch)

    async def _issue(self, client: AuthorityClient, batch: dict[str, words.Entry]) -> None:
        wanted = tuple(words.Wanted(key, x509.new_csr(x509.new_key())) for key in batch)
        now = time.monotonic()
        for entry, issued in zip(batch.values(), await client.issue(wanted), strict=True):
            assert issued.id == entry.id, issued.refused
            now = time.monotonic()
            self.svids[entry.id] = issued.chain
            self._fleet.came(self, entry.id, now)


class Fleet:
    """All nodes of this process.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._workloads = options.workloads
        tokens = json.loads(Path(options.tokens).read_text())
        self.nodes = [
            Node(name, read_token(text), options.authority, self) for name, text in tokens.items()
        ]
        self._left = len(self.nodes)
        self._began = time.monotonic()
        self._came: dict[str, float] = {}

    def came(self, node: Node, id: str, now: float) -> None:
        """An SVID is there."""
        if self._left:
            if len(node.svids) == self._workloads:
                self._left -= 1
                if not self._left:
                    say({"served": round(now - self._began, 3), "at": now})
        else:
            self._came[id] = now

    async def run(self) -> None:
        """Until standard input says `end`, or a node fails."""
        starting = asyncio.Semaphore(ENROL_AT_ONCE)
        tasks = [asyncio.create_task(node.run(starting)) for node in self.nodes]
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        listening = asyncio.create_task(self._listen(reader))
        done, _ = await asyncio.wait((*tasks, listening), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := (await reader.readline()).strip():
            if line == b"end":
                return
            say({"came": self._came})
            self._came = {}


def say(told: dict[str, object]) -> None:
    """One line."""
    print(json.dumps(told), flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--authority", required=True)
    parser.add_argument("--tokens", required=True, help="JSON file: node name -> token")
    parser.add_argument("--workloads", type=int, required=True)
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Fleet(options).run())
    except X0Error as error:
        say({"failed": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
