"""listen, dial, verify_peer: who gets in, what rotates, what is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.fakes.workload import WEB, echo, listening, source_of, to
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.sdk.identity import (
    BundleSource,
    Connection,
    X509Source,
    anyone,
    dial,
    exact,
    listen,
    matching,
    member_of,
    stdlib_context,
    verify_peer,
)
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.domain import Svid as Made
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadId, Refused, Unavailable

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


# ------------------------------------------------------------------------------------ who gets in
def test_both_ends_see_peer_group_and_signature(served: WorkloadApi, run: Run) -> None:
    async def story() -> None:
        seen: list[tuple[str, str, str, bool]] = []

        async def handler(connection: Connection) -> None:
            seen.append((connection.peer_id, connection.group, connection.signature, True))
            await echo(connection)

        async with source_of(served) as source, listening(source, handler) as listener:
            async with await dial(
                to(listener), source, authorize=exact(WEB), first_byte=True
            ) as connection:
                reader, writer = connection
                assert await reader.readline() == f"{WEB}\n".encode()
                writer.write(b"hello\n")
                assert await reader.readline() == b"hello\n"
                mine = (connection.peer_id, connection.group, connection.signature)
                assert connection.own_id == WEB
                assert connection.post_quantum
                assert len(source.connections) == 2
            assert [mine] == [one[:3] for one in seen]
            assert mine == (WEB, "X25519MLKEM768", "ecdsa_secp256r1_sha256")
            assert source.connections.groups == {"X25519MLKEM768": 2}

    run(story)


@pytest.mark.parametrize("key", ["P-384", "P-521", "RSA-2048", "ML-DSA-65"])
def test_SP_032_every_kind_of_key_is_taken_client(key: str) -> None:
    with WorkloadApi(Domain(key=key)) as api:
        api.issue("/web", key=key, hash="sha384" if key == "P-384" else "sha256")

        async def story() -> None:
            async with source_of(api) as source, listening(source) as listener:  # noqa: SIM117
                async with await dial(to(listener), source, authorize=exact(WEB)) as connection:
                    assert await connection.reader.readline() == f"{WEB}\n".encode()
                    assert connection.signature in (
                        "ecdsa_secp384r1_sha384",
                        "ecdsa_secp521r1_sha512",
                        "rsa_pss_rsae",
                        "mldsa65",
                    )

        asyncio.run(story())


_UNUSUAL: dict[str, dict[str, Any]] = {
    "SP_016 upper case": {"path": "SPIFFE://Example.ORG/Web"},
    "a year of life": {"life_s": 365 * 86_400, "start_s": -100 * 86_400},
    "SP_031 no EKU": {"extended": None},
    "SP_022 DNS names": {"dns": ("web.example.org", "*.example.org")},
    "SP_024 a subject": {"subject": "web", "san_critical": False},
    "an unknown extension": {"unknown": "plain"},
    "a long path": {"path": "/a/b/c.d/E_f-g/1"},
    "more usages": {"usages": ("digital_signature", "key_encipherment", "key_agreement")},
    "SP_042 intermediates": {"signers": ({}, {}, {})},
    "an IP-like name": {"path": "/10.0.0.1"},
}


@pytest.mark.parametrize("shape", _UNUSUAL.values(), ids=_UNUSUAL)
def test_SP_022_024_031_032_valid_but_unusual_svids_are_accepted_client(
    shape: dict[str, Any],
) -> None:
    with WorkloadApi() as api:
        api.issue(**shape)

        async def story() -> None:
            async with source_of(api) as source, listening(source) as listener:  # noqa: SIM117
                async with await dial(to(listener), source, authorize=anyone) as connection:
                    assert await connection.reader.readline() == f"{source.current().id}\n".encode()
                    assert connection.peer_id == source.current().id

        asyncio.run(story())


_BAD: dict[str, tuple[Callable[[Domain], Made], str]] = {
    "SP_026 signing certificate": (lambda d: d.anchor_as_svid(), "leaf is a CA"),
    "SP_033 cA": (lambda d: d.svid(ca=True), "leaf is a CA"),
    "SP_034 keyCertSign": (
        lambda d: d.svid(usages=("digital_signature", "key_cert_sign")),
        "leaf may sign certificates or CRLs",
    ),
    "SP_034 cRLSign": (
        lambda d: d.svid(usages=("digital_signature", "crl_sign")),
        "leaf may sign certificates or CRLs",
    ),
    "SP_035 scheme": (lambda d: d.svid(uris=("https://example.org/web",)), "not a SPIFFE ID"),
    "SP_036 no path": (lambda d: d.svid(uris=("spiffe://example.org",)), "ID without a path"),
    "SP_021 two URIs": (lambda d: d.svid(uris=(WEB, WEB + "2")), "more than one URI"),
    "SP_021 no URI": (lambda d: d.svid(uris=None), "no URI"),
    "SP_032 expired": (lambda d: d.svid(start_s=-7_200), "expired"),
    "SP_032 not yet valid": (lambda d: d.svid(start_s=60), "not yet valid"),
    "SP_032 bad signature": (lambda d: d.svid(spoilt=True), "bad signature"),
    "SP_032 critical extension": (
        lambda d: d.svid(unknown="critical"),
        "unknown critical extension",
    ),
    "SP_032 issuer is no CA": (lambda d: d.svid(signers=({"ca": False},)), "issuer is no CA"),
    "SP_032 path length": (
        lambda d: d.svid(signers=({"path_length": 0}, {})),
        "path length exceeded",
    ),
    "SP_032 foreign CA": (lambda d: Domain(d.name).svid(), "untrusted issuer"),
    "SP_111 no bundle": (lambda d: Domain("else.test").svid(), "foreign trust domain"),
}


class Fixed(X509Source):
    """A workload that presents whatever it has, as an attacker does."""

    def __init__(self, api: WorkloadApi, made: Made) -> None:
        super().__init__(api.endpoint)
        self.made = Svid(WEB, made.chain, made.key, 1 << 40)  # type: ignore[arg-type]

    def current(self, id: str | None = None, *, hint: str | None = None) -> Svid:
        return self.made


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize(("make", "reason"), _BAD.values(), ids=_BAD)
def test_SP_026_032_033_034_035_036_111_an_impostor_is_refused_in_both_roles_client(
    served: WorkloadApi, make: Callable[[Domain], Made], reason: str, role: str
) -> None:
    reached: list[Connection] = []

    async def handler(connection: Connection) -> None:
        reached.append(connection)

    async def story() -> None:
        async with source_of(served) as good, Fixed(served, make(served.domain)) as bad:
            await bad.wait(5)
            await bad.changed(0, 5)
            server, client = (good, bad) if role == "client" else (bad, good)
            async with listening(server, handler) as listener:
                with pytest.raises(Refused) as refused:
                    await dial(to(listener), client, authorize=anyone, first_byte=True)
                if role == "client":
                    assert listener.refused == {reason: 1}
                else:
                    assert getattr(refused.value, "reason", "") == reason
            with pytest.raises(Refused) as told:
                verify_peer(bad.made.chain, good, authorize=anyone)
            assert told.value.what == f"peer refused: {reason}"

    asyncio.run(story())
    assert reached == []


def test_SP_111_128_a_peer_is_judged_by_the_bundle_of_its_own_domain_client(
    served: WorkloadApi, other: WorkloadApi
) -> None:
    async def story() -> None:
        async with source_of(served) as ours, source_of(other) as theirs:
            async with listening(ours) as listener:
                with pytest.raises(Refused):  # Neither knows the other.
                    await dial(to(listener), theirs, authorize=anyone)
                served.federate(other.domain)
                other.federate(served.domain)
                await asyncio.gather(ours.changed(ours.version), theirs.changed(theirs.version))
                async with await dial(to(listener), theirs, authorize=exact(WEB)) as connection:
                    assert await connection.reader.readline() == b"spiffe://other.test/shop\n"
            # Their CA signs an ID of ours: never merged.
            forged = other.domain.svid(WEB)
            with pytest.raises(Refused) as refused:
                verify_peer(forged.chain, ours, authorize=anyone)
            assert refused.value.what == "peer refused: untrusted issuer"

    asyncio.run(story())


def test_SP_113_bundles_alone_are_enough_to_verify_client(
    served: WorkloadApi, other: WorkloadApi
) -> None:
    served.federate(other.domain)

    async def story() -> None:
        async with BundleSource(jwt=False) as bundles:
            await bundles.wait(5)
            for api in (served, other):
                assert verify_peer(api.svids[0].chain, bundles, authorize=anyone)
            with pytest.raises(Refused):
                verify_peer(Domain("x.test").svid().chain, bundles, authorize=anyone)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("authorize", "reason"),
    [
        (exact("spiffe://example.org/x", "spiffe://example.org/y"), "unexpected peer"),
        (member_of("x.test"), "unexpected trust domain"),
        (matching(lambda id: False), "not authorised"),
        (matching(lambda id: "yes"), "not authorised"),  # type: ignore[arg-type,return-value]
    ],
)
def test_whoever_is_not_authorised_is_refused_in_both_roles(
    served: WorkloadApi, authorize: Any, reason: str
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            async with listening(source) as listener:
                with pytest.raises(Refused) as refused:
                    await dial(to(listener), source, authorize=authorize)
                assert refused.value.reason == reason  # type: ignore[attr-defined]
            async with listening(source, authorize=authorize) as listener:
                with pytest.raises(Refused):
                    await dial(to(listener), source, authorize=anyone, first_byte=True)
                assert listener.refused == {reason: 1}

    asyncio.run(story())


def test_authorisers_allow_whom_they_name() -> None:
    for authorize in (
        exact(WEB, "spiffe://a.test/x"),
        member_of("spiffe://EXAMPLE.org", "a.test"),
        matching(lambda id: id.endswith("/web")),
        anyone,
    ):
        assert type(authorize(WEB)).__name__ == "Allowed"  # type: ignore[arg-type]
    with pytest.raises(BadId):
        exact("web")
    with pytest.raises(BadId):
        member_of("a b")


def test_in_tls_1_3_a_client_that_is_refused_hears_of_it_after_its_dial(
    served: WorkloadApi, run: Run
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            async with listening(source, authorize=member_of("x.test")) as listener:
                connection = await dial(to(listener), source, authorize=anyone)
                with pytest.raises(Refused):
                    await connection.first_byte(5)
                await connection.close()
            async with listening(source) as listener:  # noqa: SIM117
                async with await dial(to(listener), source, authorize=anyone) as connection:
                    await connection.first_byte(5)
                    assert (await connection.reader.readline()).startswith(b"spiffe")

    run(story)


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(served: WorkloadApi) -> None:
    async def silent(connection: Connection) -> None:
        await connection.reader.read()

    async def story() -> None:
        async with source_of(served) as source, listening(source, silent) as listener:
            with pytest.raises(Unavailable) as error:
                await dial(to(listener), source, authorize=anyone, first_byte=True, timeout_s=0.3)
            assert error.value.id in ("X0-SDK-031", "X0-SDK-033")

    asyncio.run(story())


def test_a_classical_key_exchange_is_counted_and_refused_where_asked(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            context = stdlib_context(source, authorize=anyone)  # It has no hybrid groups.
            async with listening(source) as listener:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", listener.port, ssl=context, server_hostname=""
                )
                assert await reader.readline() == f"{WEB}\n".encode()
                writer.close()
                assert source.connections.groups == {"X25519": 1}
            async with listening(source, require_pq=True) as listener:
                with pytest.raises((OSError, EOFError)):
                    await asyncio.open_connection(
                        "127.0.0.1", listener.port, ssl=context, server_hostname=""
                    )
                assert listener.refused == {"no common group": 1}
                async with await dial(
                    to(listener), source, authorize=anyone, require_pq=True
                ) as connection:
                    assert connection.post_quantum

    asyncio.run(story())


def test_a_unix_socket_and_application_protocols(served: WorkloadApi, tmp_path: Any) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            address = f"unix:{tmp_path}/s"
            made = await listen(address, source, echo, authorize=anyone, alpn=["h2", "x/1"])
            async with made as listener:
                assert listener.port == 0
                for offered, agreed in ((["x/1", "h2"], "h2"), ([], ""), (["x/1"], "x/1")):
                    async with await dial(
                        address, source, authorize=anyone, alpn=offered
                    ) as connection:
                        assert connection.alpn == agreed

    asyncio.run(story())
