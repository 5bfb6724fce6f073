"""Bundle endpoints: what ours serves, and whom its client believes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.fakes.authority_world import eventually, play, refusal, world
from x0tta6bl4.app.settings import BundleEndpointAt, FederationAt
from x0tta6bl4.edge import http as http_module
from x0tta6bl4.edge.authority_api.server import bind_tcp
from x0tta6bl4.edge.bundle import fetch as fetch_module
from x0tta6bl4.edge.bundle.document import encode, of_bundle, parse
from x0tta6bl4.edge.bundle.fetch import fetch, spiffe_tls, web_tls
from x0tta6bl4.edge.bundle.serve import BundleEndpoint
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import BadInput, Unavailable, X0Error
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain
from x0tta6bl4.wire.records import decode_federated, decode_manifest, decode_record

THEM = Domain("other.test")
ENDPOINT = SpiffeId("spiffe://other.test/endpoint")
DOCUMENT = THEM.document()
OTHERS = TrustDomain("other.test")


class Web:
    """A certificate of the web for 127.0.0.1, and the CA that vouches for it, as files."""

    def __init__(self, directory: Path, name: str = "127.0.0.1") -> None:
        self.roots, self.certificate, self.key = (
            str(directory / f"{what}-{name}.pem") for what in ("roots", "certificate", "key")
        )
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web CA")])
        now = datetime.now(UTC)

        def begun(subject: x509.Name, public: Any) -> x509.CertificateBuilder:
            return (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(ca_name)
                .public_key(public)
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - timedelta(hours=1))
                .not_valid_after(now + timedelta(hours=1))
            )

        ca = begun(ca_name, ca_key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        try:
            san: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            san = x509.DNSName(name)
        leaf = begun(x509.Name([]), key.public_key()).add_extension(
            x509.SubjectAlternativeName([san]), critical=True
        )
        pem = serialization.Encoding.PEM
        Path(self.roots).write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(pem))
        Path(self.certificate).write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem))
        Path(self.key).write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )


@contextlib.asynccontextmanager
async def endpoint(
    document: Callable[[], bytes] = lambda: DOCUMENT, web: Web | None = None
) -> AsyncIterator[tuple[BundleEndpoint, int]]:
    """Our own endpoint, serving as `other.test`."""
    made = BundleEndpoint(document)
    if web is not None:
        made.present_files(web.certificate, web.key)
    else:
        svid = THEM.svid("/endpoint")
        made.present_svid(svid.chain, svid.key)
    sock = bind_tcp("127.0.0.1", 0)
    port = sock.getsockname()[1]
    await made.serve(sock)
    try:
        yield made, port
    finally:
        await made.stop()


@contextlib.asynccontextmanager
async def hostile(answer: bytes, web: Web, wait: bool = False) -> AsyncIterator[int]:
    """An endpoint that says just this."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(web.certificate, web.key)

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if wait:
                await reader.read()
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def their_tls(id: SpiffeId = ENDPOINT, anchors: tuple[bytes, ...] | None = None) -> ssl.SSLContext:
    return spiffe_tls(id, THEM.anchors if anchors is None else anchors, unix_us)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await story()

    asyncio.run(bounded())


async def raw(port: int, request: bytes, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


def anybody(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


# ------------------------------------------------------------------ https_spiffe
def test_SP_130_135_137_the_endpoint_shows_its_svid_and_gives_the_newest_bundle() -> None:
    async def story() -> None:
        held = [b'{"keys":[]}']
        async with endpoint(lambda: held[0]) as (made, port):
            url = f"https://127.0.0.1:{port}/"
            assert await fetch(url, their_tls()) == b'{"keys":[]}'
            held[0] = DOCUMENT
            assert await fetch(url, their_tls()) == DOCUMENT
            new = Domain("other.test")
            svid = new.svid("/endpoint")
            made.present_svid(svid.chain, svid.key)
            assert await fetch(url, their_tls(anchors=new.anchors)) == DOCUMENT
            assert made.counts == {"bundles_served": 3, "bundle_requests_refused": 0}

    run(story)


@pytest.mark.parametrize(
    ("id", "anchors", "reason"),
    [
        ("spiffe://other.test/another", None, "unexpected peer"),
        (ENDPOINT, (), "no trust anchor"),
        (ENDPOINT, Domain("other.test").anchors, "untrusted"),
        ("spiffe://third.test/endpoint", None, "foreign trust domain"),
    ],
)
def test_SP_137_another_endpoint_is_refused(
    id: str, anchors: tuple[bytes, ...] | None, reason: str
) -> None:
    async def story() -> None:
        async with endpoint() as (_, port):
            error = await refusal(
                fetch(f"https://127.0.0.1:{port}/", their_tls(SpiffeId(id), anchors))
            )
            assert (error.id, type(error)) == ("X0-FED-011", Unavailable)
            assert reason in error.what

    run(story)


def test_SP_137_a_certificate_of_the_web_is_no_svid(tmp_path: Path) -> None:
    async def story() -> None:
        async with endpoint(web=Web(tmp_path)) as (_, port):
            url = f"https://127.0.0.1:{port}/"
            assert (await refusal(fetch(url, their_tls()))).id == "X0-FED-011"
        async with endpoint() as (_, port):
            url = f"https://127.0.0.1:{port}/"
            assert (await refusal(fetch(url, web_tls(Web(tmp_path).roots)))).id == "X0-FED-011"

    run(story)


# ------------------------------------------------------------------ https_web
def test_SP_130_136_https_web_checks_the_name_as_the_web_does(tmp_path: Path) -> None:
    async def story() -> None:
        web, other = Web(tmp_path), Web(tmp_path, "elsewhere.test")
        async with endpoint(web=web) as (_, port):
            url = f"https://127.0.0.1:{port}/"
            assert await fetch(url, web_tls(web.roots)) == DOCUMENT
            assert (await refusal(fetch(url, web_tls()))).id == "X0-FED-011"
        async with endpoint(web=other) as (_, port):
            url = f"https://127.0.0.1:{port}/"
            assert (await refusal(fetch(url, web_tls(other.roots)))).id == "X0-FED-011"

    run(story)


def test_files_that_are_none_are_refused_with_a_line(tmp_path: Path) -> None:
    web = Web(tmp_path)
    made = BundleEndpoint(lambda: b"")
    for certificate, key in ((web.key, web.key), ("/nowhere", web.key), (web.roots, web.key)):
        with pytest.raises(BadInput, match="X0-FED-020"):
            made.present_files(certificate, key)
    with pytest.raises(BadInput, match="X0-FED-021"):
        web_tls("/nowhere")
    with pytest.raises(BadInput, match="X0-FED-021"):
        web_tls(web.key)


# ------------------------------------------------------------------ the server
def test_SP_131_tls_is_of_the_intermediate_profile() -> None:
    async def story() -> None:
        async with endpoint() as (_, port):
            request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                assert DOCUMENT in await raw(port, request, anybody(version))
            old = anybody()
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, OSError)):
                await raw(port, request, old)
            weak = anybody(ssl.TLSVersion.TLSv1_2)
            weak.set_ciphers("ECDHE-ECDSA-AES256-SHA384:AES128-SHA:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, OSError)):
                await raw(port, request, weak)

    run(story)


def test_SP_134_no_client_is_asked_for_a_certificate(tmp_path: Path) -> None:
    async def story() -> None:
        web = Web(tmp_path)
        async with endpoint() as (_, port):
            asked = anybody()
            asked.load_cert_chain(web.certificate, web.key)
            request = b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n"
            assert DOCUMENT in await raw(port, request, asked)
            # A server that asks says so in its handshake; openssl prints which CAs it names.
            process = await asyncio.create_subprocess_exec(
                "openssl", "s_client", "-connect", f"127.0.0.1:{port}",
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            said, _ = await process.communicate()
            assert b"No client certificate CA names sent" in said
            assert b"Requested Signature Algorithms" not in said

    run(story)


def test_SP_135_only_get_and_head_of_the_document() -> None:
    async def story() -> None:
        async with endpoint() as (made, port):
            for request, status in (
                (b"GET / HTTP/1.1", b"200"), (b"HEAD /?x=y HTTP/1.1", b"200"),
                (b"GET /other HTTP/1.1", b"404"), (b"POST / HTTP/1.1", b"405"),
                (b"DELETE / HTTP/1.1", b"405"), (b"GET / HTTP/1.0", b"200"),
            ):  # fmt: skip
                answer = await raw(port, request + b"\r\nHost: x\r\n\r\n", anybody())
                head, _, body = answer.partition(b"\r\n\r\n")
                assert head.split()[1] == status, request
                assert body == (DOCUMENT if status == b"200" and request[:3] == b"GET" else b"")
                if status == b"200":
                    assert b"content-type: application/json" in head.lower()
                    body.decode()
            for nonsense in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100,
                             b"GET /" + b"a" * 20_000):  # fmt: skip
                assert await raw(port, nonsense, anybody()) == b""
            assert made.counts["bundles_served"] == 3

    run(story)


def test_a_client_that_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "REQUEST_S", 0.2)

    async def story() -> None:
        async with endpoint() as (made, port):
            assert await raw(port, b"GET / HT", anybody()) == b""
            assert made.counts["bundle_requests_refused"] == 1

    run(story)


def test_handshakes_that_never_end_have_a_bound_and_a_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_module, "CONNECTIONS_MAX", 2)
    monkeypatch.setattr(http_module, "REQUEST_S", 0.5)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with endpoint() as (made, port):
            began = loop.time()
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            with contextlib.suppress(ConnectionResetError):
                assert await silent[2][0].read() == b""
            assert loop.time() - began < 0.4
            assert made.counts["bundle_requests_refused"] == 1
            for reader, _ in silent[:2]:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            assert made.counts["bundle_requests_refused"] == 3
            assert (await raw(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", anybody()))[:12] == (
                b"HTTP/1.1 200"
            )
            for _, writer in silent:
                writer.transport.abort()

    run(story)


# ------------------------------------------------------------------ the client
def test_SP_133_138_redirects_are_followed_under_the_same_checks(tmp_path: Path) -> None:
    async def story() -> None:
        web = Web(tmp_path)

        def to(where: str, status: str = "302 Found") -> bytes:
            return f"HTTP/1.1 {status}\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()

        tls = web_tls(web.roots)
        async with endpoint(web=web) as (_, port), endpoint() as (_, spiffe):
            good = f"https://127.0.0.1:{port}/"
            for status in ("301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"):
                async with hostile(to(good, status), web) as first:
                    assert await fetch(f"https://127.0.0.1:{first}/x", tls) == DOCUMENT
            for where, id in (
                (f"http://127.0.0.1:{port}/", "X0-FED-001"),
                (f"https://u:p@127.0.0.1:{port}/", "X0-FED-001"),
                (f"https://127.0.0.1:{spiffe}/", "X0-FED-011"),  # Not judged by the web's rules.
                ("", "X0-FED-012"),
                ("https://[::1", "X0-FED-012"),
                ("https://a..b/", "X0-FED-012"),
                ("https://" + "a" * 64 + ".test/", "X0-FED-012"),
                ("/again", "X0-FED-012"),  # For ever.
            ):
                async with hostile(to(where), web) as first:
                    error = await refusal(fetch(f"https://127.0.0.1:{first}/x", tls))
                    assert error.id == id, where

    run(story)


@pytest.mark.parametrize(
    ("answer", "id"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "X0-FED-012"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "X0-FED-012"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b" " * 900_000, "X0-FED-012"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "X0-FED-01"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "X0-FED-012"),
        (b"", "X0-FED-01"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, "X0-FED-012"),
    ],
)
def test_what_is_no_document_is_refused(answer: bytes, id: str, tmp_path: Path) -> None:
    async def story() -> None:
        web = Web(tmp_path)
        async with hostile(answer, web) as port:
            error = await refusal(fetch(f"https://127.0.0.1:{port}/", web_tls(web.roots)))
            assert error.id.startswith(id), error

    run(story)


def test_an_endpoint_that_is_slow_or_away_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "DEADLINE_S", 0.3)

    async def story() -> None:
        web = Web(tmp_path)
        tls = web_tls(web.roots)
        async with hostile(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", web, wait=True) as port:
            started = time.monotonic()
            assert (await refusal(fetch(f"https://127.0.0.1:{port}/", tls))).id == "X0-FED-010"
            assert time.monotonic() - started < 3
        with contextlib.closing(bind_tcp("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        assert (await refusal(fetch(f"https://127.0.0.1:{port}/", tls))).id == "X0-FED-010"

    run(story)


# ------------------------------------------------------------------ two authorities
def federated(here: Any) -> dict[str, bytes]:
    """What nodes are told of foreign trust domains."""
    row = here.process._machine.state.sets["federated"]
    body = decode_manifest(decode_record(row.records[0]).body).inline
    return {one.trust_domain: one.document for one in decode_federated(body)}


def test_SP_126_127_129_an_authority_polls_another_and_tells_its_nodes(tmp_path: Path) -> None:
    def theirs(sequence: int) -> bytes:
        found = json.loads(THEM.document(refresh_hint_s=1))
        return json.dumps(found | {"spiffe_sequence": sequence}).encode()

    async def story(here: Any) -> None:
        held = [theirs(5)]
        async with endpoint(lambda: held[0]) as (made, port):
            wanted = words.Federation(
                trust_domain="other.test",
                url=f"https://127.0.0.1:{port}/",
                profile="https_spiffe",
                endpoint_id=ENDPOINT,
                bundle=theirs(1),
            )
            await here.admin.federation_create(wanted)
            await eventually(lambda: federated(here).get("other.test") == theirs(5))
            (row,) = (await here.admin.federation_list(words.Page())).federations
            assert (row.sequence, row.failed, row.bundle) == (5, "", b"")
            assert 5 < row.next_unix_s - row.fetched_unix_s <= 10
            held[0] = theirs(4)
            await here.admin.federation_refresh("other.test")
            await eventually(lambda: made.counts["bundles_served"] == 2)

            async def failed() -> bool:
                row = await here.admin.federation_show("other.test")
                return bool(row.failed.startswith("X0-FED-005"))

            await eventually(failed)
            assert federated(here)["other.test"] == theirs(5)
            await here.admin.federation_delete("other.test")
            await eventually(lambda: federated(here) == {})

    play(tmp_path, story)


def test_SP_139_an_endpoint_that_is_away_leaves_the_bundle_and_waits(tmp_path: Path) -> None:
    async def story(here: Any) -> None:
        with contextlib.closing(bind_tcp("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        wanted = words.Federation(
            trust_domain="other.test", url=f"https://127.0.0.1:{port}/", profile="https_web",
            bundle=DOCUMENT,
        )  # fmt: skip
        await here.admin.federation_create(wanted)

        async def failed() -> bool:
            return bool((await here.admin.federation_show("other.test")).failed)

        await eventually(failed)
        row = await here.admin.federation_show("other.test")
        assert (row.failed[:10], row.bundle) == ("X0-FED-010", DOCUMENT)
        assert row.next_unix_s > unix_us() // 1_000_000 + 100
        assert here.process.statistics()["polls_failed"] == 1

    play(tmp_path, story)


def test_SP_017_130_two_of_our_authorities_federate_with_each_other(tmp_path: Path) -> None:
    async def story() -> None:
        at = BundleEndpointAt(listen="127.0.0.1:0")
        for name in ("ours", "theirs"):
            (tmp_path / name).mkdir()
        async with (
            world(tmp_path / "ours", bundle_endpoint=at) as ours,
            world(tmp_path / "theirs", bundle_endpoint=at, trust_domain="other.test") as theirs,
        ):
            documents = {}
            for here in (ours, theirs):
                info = await here.admin.bundle_show()
                documents[here] = encode(of_bundle(info.bundle))
            for here, there in ((ours, theirs), (theirs, ours)):
                domain = (await there.admin.health()).trust_domain
                await here.admin.federation_create(
                    words.Federation(
                        trust_domain=domain,
                        url=f"https://127.0.0.1:{there.process.endpoint.port}/",
                        profile="https_spiffe",
                        endpoint_id=(await there.admin.health()).id,
                        bundle=documents[there],
                    )
                )
            for here, there in ((ours, theirs), (theirs, ours)):
                await eventually(lambda here=here: here.process.statistics()["polls"] == 1)
                domain = (await there.admin.health()).trust_domain
                document = parse(federated(here)[domain], TrustDomain(domain))
                assert document.x509 == (await there.admin.bundle_show()).bundle.anchors
                assert document.refresh_hint_s == 60  # SP-126: five of them before a CA signs.
                assert document.jwt

    run(story)


def test_SP_131_136_our_authority_serves_with_files_of_the_web(tmp_path: Path) -> None:
    web = Web(tmp_path)

    async def story(here: Any) -> None:
        url = f"https://127.0.0.1:{here.process.endpoint.port}/"
        got = await fetch(url, web_tls(web.roots))
        assert parse(got, TrustDomain("example.org")).x509

    play(
        tmp_path,
        story,
        bundle_endpoint=BundleEndpointAt(
            listen="127.0.0.1:0", profile="https_web", certificate=web.certificate, key=web.key
        ),
        federation=FederationAt(roots=web.roots),
    )


def test_an_authority_whose_endpoint_cant_start_says_why(tmp_path: Path) -> None:
    at = BundleEndpointAt(
        listen="127.0.0.1:0", profile="https_web", certificate="/nowhere", key="/nowhere"
    )

    async def story() -> None:
        with pytest.raises(X0Error, match="X0-FED-020"):
            async with world(tmp_path, bundle_endpoint=at):
                pass

    run(story)
