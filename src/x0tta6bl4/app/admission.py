"""How a node gets its first SVID of this life: by token, or by its long-lived key.

    1. over an unjudged connection ask for the way from the bundle hash that we hold (in the token,
       or of the bundle on disk) to the newest bundle; every step is signed by a record key of the
       one before, so whoever answers can't lie
    2. over a new connection, judge the authority by that bundle
    3. Enrol (token) or Challenge + Attest (key)

The authority is tried directly, then through each neighbour's data port by an `enrol` frame, which
that neighbour carries to the authority and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, final

import msgspec

from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.core.identity.rules import ANYBODY, AUTHORITY, Expect
from x0tta6bl4.core.machine import Allowed
from x0tta6bl4.edge.authority_api.client import AuthorityClient
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, GROUPS, GROUPS_PQ, TlsContext
from x0tta6bl4.edge.tls.judge import Judge, Judgement, allow_all
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire import hop
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import BadMessage, Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain
from x0tta6bl4.wire.records import (
    KIND_CHUNK,
    KIND_MANIFEST,
    Bundle,
    decode_bundle,
    decode_manifest,
    decode_record,
    signed_part,
)
from x0tta6bl4.wire.token import Token

Ask = Callable[[AuthorityClient, bytes], Awaitable[words.Admission]]
CARRY_S: Final = 10.0
STEPS_MAX: Final = 1000


@final
class Unjudged:
    """Lets anybody through, for the one question whose answer proves itself: the bundle's way."""

    def judge(
        self, chain: Sequence[bytes], expect: Expect, now_unix_us: int | None = None
    ) -> Judgement:
        """Allowed, as nobody in particular."""
        return Judgement(Allowed(SpiffeId("spiffe://unjudged")), not_after_unix_s=2**40)


@final
class Admitted(msgspec.Struct, frozen=True):
    """A node's identity, and how it was got."""

    svid: Svid
    bundle: bytes
    how: str
    """`kept`, `enrolled` or `attested`."""


class Admission:
    """Gets this node in.

    Args:
        domain: trust domain.
        node: this node's name.
        wallet: where key, SVID and bundle are.
        direct: `host:port` of the authority; empty if this host can't reach it.
        through: data ports of neighbours, `host:port`, tried after it.
        scratch: directory for the Unix socket of a carried connection.
        require_pq: refuse key exchanges that are not post-quantum.
    """

    def __init__(
        self,
        domain: TrustDomain,
        node: NodeName,
        wallet: Wallet,
        direct: Sequence[str],
        through: Sequence[str],
        scratch: Path,
        require_pq: bool = False,
    ) -> None:
        self._domain = domain
        self._node = node
        self._wallet = wallet
        self._direct = tuple(direct)
        self._through = tuple(through)
        self._scratch = scratch
        self._groups = GROUPS_PQ if require_pq else GROUPS

    async def admit(self, token: Token | None) -> Admitted:
        """An SVID that is good for at least another 10 s, from disk or from the authority.

        Raises:
            Refused: token used or expired, node evicted, authority not genuine, clocks differ.
            Unavailable: no way to the authority just now.
        """
        kept = self._wallet.svid
        if kept is not None and kept.not_after_unix_s * 1_000_000 > unix_us() + 10_000_000:
            return Admitted(kept, self._wallet.bundle, "kept")
        if not self._wallet.bundle and token is None:
            raise Refused(
                "X0-RUN-030",
                f"{self._node} has not been enrolled",
                "make a token with `x0 token create` and name its file in node.toml",
            )
        problem: X0Error = Unavailable(
            "X0-RUN-031",
            "no way to the authority is configured",
            "set authority.address, or a link to dial",
        )
        for way in self._ways(token):
            try:
                async with way as target:
                    return await self._over(target, token)
            except (Unavailable, BadMessage) as error:
                problem = error
        raise problem

    async def again(self, target: str) -> Admitted:
        """Attest anew over one way, although the SVID of now may be good.

        For a node whose SVID the authority does not take: it has ended, or was revoked.

        Args:
            target: of the authority's client.
        Raises:
            Refused: with the authority's reason, such as an eviction.
            Unavailable: it can't be reached this way.
        """
        return await self._over(target, None)

    def _ways(self, token: Token | None) -> list[contextlib.AbstractAsyncContextManager[str]]:
        direct = dict.fromkeys((*self._direct, *(token.authorities if token else ())))
        ways: list[contextlib.AbstractAsyncContextManager[str]] = [
            contextlib.nullcontext(address) for address in direct
        ]
        ways += [carried(address, self._scratch / "enrol.sock") for address in self._through]
        return ways

    async def _over(self, target: str, token: Token | None) -> Admitted:
        held = hashlib.sha256(self._wallet.bundle).digest() if self._wallet.bundle else b""
        if not held:
            assert token is not None
            held = token.bundle_sha256
        unjudged = TlsContext(None, Unjudged(), (ALPN_AUTHORITY,), ANYBODY, self._groups)
        async with AuthorityClient(target, SslContext(unjudged), unix_us) as client:
            body = walk(await client.trust(held), held)
        bundle = decode_bundle(body)
        if bundle.trust_domain != self._domain:
            raise Refused(
                "X0-RUN-032",
                f"the authority is of {bundle.trust_domain}",
                f"this node is of {self._domain}",
            )
        judge = Judge(self._domain, bundle.anchors, allow_all, unix_us)
        judged = TlsContext(None, judge, (ALPN_AUTHORITY,), AUTHORITY, self._groups)
        async with AuthorityClient(target, SslContext(judged), unix_us) as client:
            key = x509.new_key(x509.svid_kind(bundle.anchors))
            known = bool(self._wallet.bundle)
            ask: Ask = self._attest if known or token is None else self._enrol(token)
            admission = await ask(client, x509.new_csr(key))
        svid = Svid(
            SpiffeId(admission.id), admission.chain, x509.key_bytes(key), admission.not_after_unix_s
        )
        self._wallet.keep(svid, admission.bundle)
        return Admitted(svid, admission.bundle, "attested" if known else "enrolled")

    def _enrol(self, token: Token) -> Ask:
        async def enrol(client: AuthorityClient, csr: bytes) -> words.Admission:
            request = words.EnrolRequest(
                token=token.id,
                secret=token.secret,
                node=self._node,
                key=x509.public_point(self._wallet.key),
                csr=csr,
                proof=b"",
                unix_us=unix_us(),
            )
            proof = x509.sign(self._wallet.key, words.enrol_signed_part(request))
            request = msgspec.structs.replace(request, proof=proof)
            try:
                return await client.enrol(request)
            except (Refused, Unavailable) as error:
                # The answer to an earlier try may have been lost after the token was spent.
                with contextlib.suppress(X0Error):
                    return await self._attest(client, csr)
                raise error

        return enrol

    async def _attest(self, client: AuthorityClient, csr: bytes) -> words.Admission:
        nonce = await client.challenge()
        request = words.AttestRequest(node=self._node, csr=csr, proof=b"", unix_us=unix_us())
        proof = x509.sign(self._wallet.key, words.attest_signed_part(nonce, request))
        return await client.attest(msgspec.structs.replace(request, proof=proof))


def walk(reply: words.TrustReply, held: bytes) -> bytes:
    """Follow the chain of bundles from the one we know by hash to the newest.

    Returns:
        Body of the newest bundle.
    Raises:
        Refused: the first is not the one we know, or a step is not signed by the one before.
    """
    if hashlib.sha256(reply.first).digest() != held:
        raise Refused(
            "X0-RUN-033",
            "the authority does not have the bundle that the token names",
            "it may be an impostor; make a new token if the authority was set up anew",
        )
    body = reply.first
    steps = reply.steps[:STEPS_MAX]
    for number, step in enumerate(steps, 1):
        body = _next_bundle(decode_bundle(body), step, last=number == len(steps))
    return body


def _next_bundle(known: Bundle, step: Sequence[bytes], last: bool) -> bytes:
    forged = Refused(
        "X0-RUN-034",
        "a bundle is not signed by the one before it",
        "whoever answers is not this trust domain's authority",
    )
    keys = {key.id.encode(): key.point for key in known.record_keys}
    records = [decode_record(data) for data in step]
    for record in records:
        point = keys.get(record.signer[0]) if len(record.signer) == 1 else None
        if point is None or not x509.verify(point, signed_part(record), record.signature):
            raise forged
    manifests = [r for r in records if r.kind == KIND_MANIFEST and r.name == "bundle"]
    if len(manifests) != 1:
        raise forged
    manifest = decode_manifest(manifests[0].body)
    chunks = {hashlib.sha256(r.body).digest(): r.body for r in records if r.kind == KIND_CHUNK}
    try:
        body = manifest.inline or b"".join(chunks[digest] for digest in manifest.chunks)
    except KeyError:
        raise forged from None
    if last and manifests[0].expires_unix_s * 1_000_000 < unix_us():
        raise Refused(
            "X0-RUN-035",
            "the newest bundle of the authority has expired",
            "an old answer is replayed, or this host's clock is ahead",
        )
    new = decode_bundle(body)
    if new.trust_domain != known.trust_domain or new.sequence <= known.sequence:
        raise forged
    return body


@contextlib.asynccontextmanager
async def carried(address: str, path: Path) -> AsyncIterator[str]:
    """A Unix socket whose connections a neighbour carries to the authority (`enrol` frame).

    Args:
        address: the neighbour's data port.
        path: where the socket is made; removed at the end.
    Yields:
        `unix:<path>`, a target for the authority's client.
    """
    host, port = split_address(address)
    frame = hop.pack_header(hop.Header(hop.ENROL, 0, 0, 0))
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            async with asyncio.timeout(CARRY_S):
                far_reader, far_writer = await asyncio.open_connection(host, port)
                far_writer.write(frame)
                await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # A cancelled one would be an ERROR line of asyncio's; it ends here anyway.
        finally:
            tasks.discard(task)
            writer.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(accept, path)
    try:
        yield f"unix:{path}"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        path.unlink(missing_ok=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
