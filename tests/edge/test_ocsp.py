"""OCSP: what the responder says, whom the verifier believes, and for how long."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.authority_world import World, eventually, play, wanted
from tests.fakes.ca import FakeClock, new_svid
from x0tta6bl4.app.settings import OcspAt
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.http import post
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.judge import Judge, allow_all
from x0tta6bl4.edge.tls.ocsp import (
    ANSWER_S,
    Answer,
    OcspCache,
    Responder,
    _names,
    judge_response,
    request_for,
    responder_of,
)
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain
from x0tta6bl4.wire.records import decode_bundle

DOMAIN = TrustDomain("example.org")
WEB = SpiffeId("spiffe://example.org/web")
NOW = 1_800_000_000
ISSUER = x509.new_anchor(DOMAIN, NOW)
OTHER = x509.new_anchor(DOMAIN, NOW, kind="P-256")
LEAF = new_svid(ISSUER, WEB, NOW).chain[0]
SECOND = new_svid(ISSUER, WEB, NOW).chain[0]
CA = ISSUER.certificate


class Said:
    """A responder, its clock, and what it takes for revoked."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW)
        self.revoked: frozenset[int] = frozenset()
        self.issued = {serial(LEAF), serial(SECOND)}
        self.responder = Responder(
            lambda: [OTHER, ISSUER], lambda: self.revoked, self.issued.__contains__, self.clock
        )

    def of(self, leaf: bytes = LEAF, issuer: bytes = CA, nonce: bytes = b"") -> bytes:
        return self.responder.answer(request_for(leaf, issuer, nonce))


def serial(leaf: bytes) -> int:
    return x509.parse(leaf).certificate.serial_number


def judge(data: bytes, leaf: bytes = LEAF, now: int = NOW, nonce: bytes = b"") -> Answer | Denied:
    return judge_response(data, leaf, CA, now * 1_000_000, nonce)


def forged(key: Any, certificates: list[cx509.Certificate], next_s: int | None = 600,
           start_s: int = 0, status: Any = ocsp.OCSPCertStatus.GOOD) -> bytes:  # fmt: skip
    """A response to LEAF signed by whoever has this key."""
    from datetime import UTC, datetime

    def at(seconds: int) -> datetime:
        return datetime.fromtimestamp(NOW + seconds, UTC)

    leaf, ca = x509.parse(LEAF).certificate, x509.parse(CA).certificate
    builder = ocsp.OCSPResponseBuilder().add_response(
        leaf, ca, hashes.SHA256(), status, at(start_s),
        at(next_s) if next_s is not None else None, None, None,
    )  # fmt: skip
    signer = certificates[0] if certificates else ca
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer)
    if certificates:
        builder = builder.certificates(certificates)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


# ------------------------------------------------------------------ answers
def test_good_and_revoked_are_told_apart_and_end_at_next_update() -> None:
    said = Said()
    assert judge(said.of()) == Answer(False, NOW + ANSWER_S)
    said.revoked = frozenset({serial(LEAF)})
    assert judge(said.of()) == Answer(True, NOW + ANSWER_S)
    assert judge(said.of(SECOND), SECOND) == Answer(False, NOW + ANSWER_S)


def test_B4_of_a_serial_that_was_never_issued_nothing_good_is_said() -> None:
    said = Said()
    forged_by_a_thief_of_the_key = new_svid(ISSUER, WEB, NOW).chain[0]
    answer = said.of(forged_by_a_thief_of_the_key)
    assert judge(answer, forged_by_a_thief_of_the_key) == Denied("unknown to its CA")
    said.issued.add(serial(forged_by_a_thief_of_the_key))
    answer = said.of(forged_by_a_thief_of_the_key)
    assert judge(answer, forged_by_a_thief_of_the_key) == Answer(False, NOW + ANSWER_S)


def test_B4_a_ca_of_ml_dsa_answers_with_ml_dsa() -> None:
    issuer = x509.new_anchor(DOMAIN, NOW, kind=x509.ML_DSA)
    leaf = new_svid(issuer, WEB, NOW).chain[0]
    clock = FakeClock(NOW)
    responder = Responder(lambda: [issuer], frozenset, lambda serial: True, clock)
    answer = responder.answer(request_for(leaf, issuer.certificate))
    found = judge_response(answer, leaf, issuer.certificate, clock())
    assert found == Answer(False, NOW + ANSWER_S)
    assert ocsp.load_der_ocsp_response(answer).signature_hash_algorithm is None
    bent = answer[:-1] + bytes((answer[-1] ^ 1,))
    assert isinstance(judge_response(bent, leaf, issuer.certificate, clock()), Denied)


def test_both_hashes_of_requests_are_understood() -> None:
    said = Said()
    leaf, ca = x509.parse(LEAF).certificate, x509.parse(CA).certificate
    for algorithm in (hashes.SHA1(), hashes.SHA256()):
        request = ocsp.OCSPRequestBuilder().add_certificate(leaf, ca, algorithm).build()
        answer = said.responder.answer(request.public_bytes(serialization.Encoding.DER))
        assert judge(answer) == Answer(False, NOW + ANSWER_S)


def test_a_nonce_comes_back() -> None:
    said = Said()
    assert judge(said.of(nonce=b"n" * 16), nonce=b"n" * 16) == Answer(False, NOW + ANSWER_S)
    assert judge(said.of(nonce=b"m" * 16), nonce=b"n" * 16) == Denied(
        "OCSP response to another request"
    )
    assert judge(said.of(), nonce=b"n") == Denied("OCSP response to another request")


def test_a_delegate_is_no_svid_and_is_remade_in_time() -> None:
    said = Said()
    first = ocsp.load_der_ocsp_response(said.of()).certificates[0]
    verdict = Judge(DOMAIN, (CA,), allow_all, said.clock).judge(
        (first.public_bytes(serialization.Encoding.DER),), ANYBODY
    )
    assert type(verdict.verdict) is Denied
    assert ocsp.load_der_ocsp_response(said.of()).certificates[0] == first
    said.clock.unix_us += 13 * 3600 * 1_000_000
    assert ocsp.load_der_ocsp_response(said.of()).certificates[0] != first


@pytest.mark.parametrize("data", [b"", b"\x30", b"x" * 5000])
def test_a_request_that_is_none_gets_malformed(data: bytes) -> None:
    answer = ocsp.load_der_ocsp_response(Said().responder.answer(data))
    assert answer.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


def test_a_foreign_ca_gets_unauthorized() -> None:
    stranger = x509.new_anchor(TrustDomain("other.test"), NOW, kind="P-256")
    leaf = new_svid(stranger, SpiffeId("spiffe://other.test/x"), NOW).chain[0]
    answer = ocsp.load_der_ocsp_response(Said().of(leaf, stranger.certificate))
    assert answer.response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED
    assert judge(Said().of(leaf, stranger.certificate)) == Denied("OCSP responder refuses")


# ------------------------------------------------------------------ who is believed
def test_an_answer_of_the_ca_itself_is_believed() -> None:
    assert judge(forged(ISSUER.key, [])) == Answer(False, NOW + 600)


def test_only_the_ca_and_its_delegates_are_believed() -> None:
    key = x509.new_key()
    stranger, _ = x509.issue_ocsp_delegate(OTHER, key, NOW, 600)
    workload = new_svid(ISSUER, WEB, NOW)
    workload_key = x509.load_key(workload.key)
    leaf = x509.parse(workload.chain[0]).certificate
    wrong = Denied("OCSP response not signed by the CA")
    assert judge(forged(key, [stranger])) == wrong
    assert judge(forged(workload_key, [leaf])) == wrong  # Issued by the CA, but for TLS.
    assert judge(forged(OTHER.key, [OTHER.parsed.certificate])) == wrong
    delegate, _ = x509.issue_ocsp_delegate(ISSUER, key, NOW, 600)
    assert judge(forged(key, [delegate])) == Answer(False, NOW + 600)
    made = forged(key, [delegate])
    signature = ocsp.load_der_ocsp_response(made).signature
    bent = signature[:-1] + bytes([signature[-1] ^ 1])
    assert judge(made.replace(signature, bent)) == wrong
    old, _ = x509.issue_ocsp_delegate(ISSUER, key, NOW - 600, 600)
    assert judge(forged(key, [old])) == wrong
    assert (
        ExtendedKeyUsageOID.OCSP_SIGNING
        in delegate.extensions.get_extension_for_class(cx509.ExtendedKeyUsage).value
    )


def test_it_is_of_this_certificate_and_of_now() -> None:
    assert judge(Said().of(SECOND)) == Denied("OCSP response of another certificate")
    for response, now in (
        (Said().of(), NOW + ANSWER_S + 61),
        (Said().of(), NOW - 61),
        (forged(ISSUER.key, [], next_s=None), NOW),
        (forged(ISSUER.key, [], start_s=120), NOW),
    ):
        assert judge(response, now=now) == Denied("OCSP response not of now")
    unknown = forged(ISSUER.key, [], status=ocsp.OCSPCertStatus.UNKNOWN)
    assert judge(unknown) == Denied("unknown to its CA")


def test_an_answer_about_a_ca_of_other_keys_is_believed_too() -> None:
    for kind in ("RSA-2048", "P-384"):
        domain = Domain("example.org", key=kind, now_unix_s=lambda: NOW)
        leaf, ca = domain.svid().chain[0], domain.anchors[0]
        name = x509.parse(ca).certificate
        assert judge_response(b"", leaf, ca, NOW * 1_000_000) == Denied("malformed OCSP response")
        request = ocsp.load_der_ocsp_request(request_for(leaf, ca))
        assert request.serial_number == serial(leaf)
        builder = ocsp.OCSPResponseBuilder().add_response(
            x509.parse(leaf).certificate, name, hashes.SHA256(), ocsp.OCSPCertStatus.GOOD,
            name.not_valid_before_utc, name.not_valid_after_utc, None, None,
        ).responder_id(ocsp.OCSPResponderEncoding.NAME, name)  # fmt: skip
        key = domain._anchors[0][0]
        data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        assert isinstance(judge_response(data, leaf, ca, NOW * 1_000_000), Answer)


def test_a_serial_number_that_no_certificate_has_gets_malformed() -> None:
    """Found by a search: an answer about a negative number can't be signed."""
    good = request_for(LEAF, CA)
    written = serial(LEAF).to_bytes(serial(LEAF).bit_length() // 8 + 1, "big")
    assert good.count(written) == 1
    negative = good.replace(written, bytes([written[0] | 0x80]) + written[1:])
    for request, status in (
        (good, ocsp.OCSPResponseStatus.SUCCESSFUL),
        (negative, ocsp.OCSPResponseStatus.MALFORMED_REQUEST),
    ):
        answer = ocsp.load_der_ocsp_response(Said().responder.answer(request))
        assert answer.response_status is status


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 900), put=st.binary(min_size=1, max_size=3), junk=st.binary(max_size=80))
def test_fuzz_what_is_bent_is_not_believed_and_raises_nothing(
    at: int, put: bytes, junk: bytes
) -> None:
    good = GOOD
    bent = good[:at] + put + good[at + len(put) :]
    for attempt in (bent, junk, good + junk):
        found = judge(attempt)
        assert isinstance(found, Denied) or found == Answer(False, NOW + ANSWER_S)
        Said().responder.answer(attempt[:100])


GOOD = Said().of()


# ------------------------------------------------------------------ the cache
def test_an_answer_counts_until_its_next_update_and_a_revocation_for_ever() -> None:
    said, clock = Said(), FakeClock(NOW)
    hard, soft = OcspCache(True, clock), OcspCache(False, clock)
    assert hard.judge(LEAF, CA) == Denied("no OCSP response")
    assert soft.judge(LEAF, CA) is None
    good = said.of()
    for cache in (hard, soft):
        assert cache.judge(LEAF, CA, good) is None
        assert cache.judge(LEAF, CA) is None
    clock.unix_us += (ANSWER_S - 1) * 1_000_000
    assert hard.judge(LEAF, CA) is None
    clock.unix_us += 62_000_000
    assert hard.judge(LEAF, CA) == Denied("no OCSP response")
    assert hard.judge(LEAF, CA, good) == Denied("OCSP response not of now")
    assert soft.judge(LEAF, CA, good) is None
    said.clock.unix_us = clock.unix_us
    said.revoked = frozenset({serial(LEAF)})
    for cache in (hard, soft):
        assert cache.judge(LEAF, CA, said.of()) == Denied("revoked")
        said_good = Said()
        said_good.clock.unix_us = clock.unix_us
        assert cache.judge(LEAF, CA, said_good.of()) == Denied("revoked")
        assert cache.judge(SECOND, CA, said.of(SECOND)) is None


# ------------------------------------------------------------------ over the wire
def test_the_authority_answers_over_http(tmp_path: Path) -> None:
    async def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return head, body

    async def story(here: World) -> None:
        alpha = await here.enrol("alpha")
        entry = await here.entry("alpha")
        (ca,) = decode_bundle(alpha.bundle).anchors
        async with here.client(alpha) as mine:
            (issued,) = await mine.issue(wanted(entry.key))
        leaf = issued.chain[0]
        assert responder_of(leaf) == "http://127.0.0.1:9/"
        asked = request_for(leaf, ca)

        async def answer(by: str) -> Answer | Denied:
            length = f"Content-Length: {len(asked)}\r\n\r\n".encode()
            request = {
                "POST": b"POST / HTTP/1.1\r\nHost: x\r\n" + length + asked,
                "GET": b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
                % quote(b64encode(asked).decode(), safe="").encode(),
            }[by]
            head, body = await ask(here.process.ocsp.port, request)
            assert b"application/ocsp-response" in head
            return judge_response(body, leaf, ca, unix_us())

        for by in ("POST", "GET"):
            found = await answer(by)
            assert isinstance(found, Answer), found
            assert not found.revoked
        for name, der in (("ca", ca), ("leaf", leaf)):
            (tmp_path / f"{name}.pem").write_text(ssl.DER_cert_to_PEM_cert(der))

        async def openssl() -> list[str]:
            """What OpenSSL's own client makes of it."""
            process = await asyncio.create_subprocess_exec(
                "openssl", "ocsp", "-issuer", "ca.pem", "-cert", "leaf.pem", "-CAfile", "ca.pem",
                "-url", f"http://127.0.0.1:{here.process.ocsp.port}/", cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            said, _ = await process.communicate()
            return said.decode().splitlines()

        lines = await openssl()
        assert "leaf.pem: good" in lines
        assert "Response verify OK" in lines
        await here.admin.revoke(words.Revoke(subject=entry.id))

        async def revoked() -> bool:
            found = await answer("POST")
            return isinstance(found, Answer) and found.revoked

        await eventually(revoked)
        lines = await openssl()
        assert "leaf.pem: revoked" in lines
        assert "Response verify OK" in lines
        port = here.process.ocsp.port
        for request, status in (
            (b"GET /%%% HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
            (b"PUT / HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
            (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000, b"413"),
        ):
            head, _ = await ask(port, request)
            assert head.split()[1] == status
        assert here.process.statistics()["ocsp_answered"] >= 3

    play(tmp_path, story, ocsp=OcspAt(listen="127.0.0.1:0", url="http://127.0.0.1:9/"))


def test_B4_the_authority_knows_what_it_has_issued_and_itself(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        url = f"http://127.0.0.1:{here.process.ocsp.port}/"
        (ca,) = [one.certificate for one in here.process._machine.state.cas.values()]
        own = here.process._own_svid().chain[0]  # Not in the store.

        async def said(request: bytes) -> bytes:
            return await post(url, "application/ocsp-request", request, 8192)

        found = judge_response(await said(request_for(own, ca)), own, ca, unix_us())
        assert isinstance(found, Answer), found
        names = _names(x509.parse(ca).certificate, "sha256")
        strange = ocsp.OCSPRequestBuilder().add_certificate_by_hash(*names, 4711, hashes.SHA256())
        answer = await said(strange.build().public_bytes(serialization.Encoding.DER))
        status = ocsp.load_der_ocsp_response(answer).certificate_status
        assert status is ocsp.OCSPCertStatus.UNKNOWN
        for wrong in (f"{url}x", "https://127.0.0.1/", "http:///x", "http://[x/", f"{url[:-2]}0/"):
            with pytest.raises(Unavailable):
                await post(wrong, "text/plain", b"x" * 9000, 8192)
        with pytest.raises(Unavailable, match="too large"):
            await post(url, "application/ocsp-request", request_for(own, ca), 10)

    play(tmp_path, story, ocsp=OcspAt(listen="127.0.0.1:0"))
