"""The Workload API's server over a real socket, with a directory that says what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpclib.client import StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status

from tests.fakes.workload_client import METADATA, WorkloadClient, end_of
from tests.fakes.workload_directory import (
    CA,
    DB,
    FOREIGN,
    GOOD_REQUESTS,
    OWN,
    STREAMS,
    WEB,
    WIT,
    Told,
    refused,
    run,
    socket_path,
    until,
)
from x0tta6bl4.edge.workload_api import reflection, schema
from x0tta6bl4.edge.workload_api.server import WorkloadServer
from x0tta6bl4.edge.workload_api.words import (
    TrustBundle,
)
from x0tta6bl4.wire.errors import Refused, Unavailable


@pytest.fixture
def path() -> Iterator[Path]:
    with socket_path() as made:
        yield made


# ------------------------------------------------------------------ the endpoint
@pytest.mark.parametrize("method", sorted(schema.METHODS))
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("workload.spiffe.io", "false"),),
        (("workload.spiffe.io", "TRUE"),),
        (*METADATA, *METADATA),
    ],
    ids=["none", "false", "capital", "twice"],
)
def test_SP_092_call_without_metadata_is_invalid_argument_server(
    path: Path, method: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        client._metadata = metadata
        ask = client.first if schema.METHODS[method][2] else client.call
        assert await refused(ask(method, GOOD_REQUESTS.get(method))) == Status.INVALID_ARGUMENT
        client._metadata = METADATA
        if "WIT" not in method:
            assert await ask(method, GOOD_REQUESTS.get(method))

    run(path, Told(WEB), story)


def test_SP_088_089_090_093_it_is_grpc_on_a_unix_socket_without_tls_for_every_user(
    path: Path,
) -> None:
    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o666
        assert await client.first("FetchX509SVID")

    run(path, Told(WEB), story)
    assert not path.exists()


def test_SP_096_a_caller_says_nothing_of_itself_server() -> None:
    """No request has a field that could name the caller; a wanted ID only narrows."""
    fields = {
        name: [f.name for f in request.DESCRIPTOR.fields]
        for name, (request, _, _) in schema.METHODS.items()
    }
    assert fields == {
        "FetchX509SVID": [],
        "FetchX509Bundles": [],
        "FetchJWTSVID": ["audience", "spiffe_id"],
        "FetchJWTBundles": [],
        "ValidateJWTSVID": ["audience", "svid"],
        "FetchWITSVID": ["spiffe_id"],
        "FetchWITBundles": [],
    }


@pytest.mark.parametrize(
    "method", sorted(set(schema.METHODS) - {"FetchWITSVID", "FetchWITBundles"})
)
def test_SP_099_114_without_an_identity_it_is_permission_denied_server(
    path: Path, method: str
) -> None:
    async def story(client: WorkloadClient, made: WorkloadServer) -> None:
        ask = client.first if schema.METHODS[method][2] else client.call
        status = await refused(ask(method, GOOD_REQUESTS.get(method)))
        assert status == Status.PERMISSION_DENIED
        assert made.calls == {f"{method}|permission_denied": 1}

    run(path, Told(), story, hold_s=0.05)


def test_SP_100_101_health_and_reflection_are_services_of_their_own_server(path: Path) -> None:
    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        check = UnaryUnaryMethod(
            client.channel,
            "/grpc.health.v1.Health/Check",
            reflection.HealthCheckRequest,
            reflection.HealthCheckResponse,
        )
        for name in ("", "SpiffeWorkloadAPI"):
            assert (await check(reflection.HealthCheckRequest(service=name))).status == 1
        status = await refused(check(reflection.HealthCheckRequest(service="none")))
        assert status == Status.NOT_FOUND
        watch = UnaryStreamMethod(
            client.channel,
            "/grpc.health.v1.Health/Watch",
            reflection.HealthCheckRequest,
            reflection.HealthCheckResponse,
        )
        for name, expected in (("", 1), ("none", 3)):
            async with watch.open() as stream:
                await stream.send_message(reflection.HealthCheckRequest(service=name), end=True)
                answer = await stream.recv_message()
                assert answer is not None
                assert answer.status == expected
                await stream.cancel()
        for service in reflection.REFLECTION:
            request, response = reflection.reflection_types(service)
            ask = StreamStreamMethod(
                client.channel, f"/{service}/ServerReflectionInfo", request, response
            )
            answers = await ask(
                [
                    request(list_services=""),
                    request(file_containing_symbol="SpiffeWorkloadAPI.FetchX509SVID"),
                    request(file_by_filename="google/protobuf/struct.proto"),
                    request(file_containing_symbol="no.such.Thing"),
                    request(all_extension_numbers_of_type="X509SVID"),
                    request(host="h"),
                ]
            )
            assert {s.name for s in answers[0].list_services_response.service} == set(
                reflection.SERVICES
            )
            files = answers[1].file_descriptor_response.file_descriptor_proto
            assert b"FetchWITBundles" in files[0]
            assert len(files) == 2
            assert len(answers[2].file_descriptor_response.file_descriptor_proto) == 1
            assert answers[3].error_response.error_code == Status.NOT_FOUND.value
            assert answers[4].all_extension_numbers_response.base_type_name == "X509SVID"
            assert answers[5].error_response.error_code == Status.NOT_FOUND.value
            assert answers[5].valid_host == "h"

    run(path, Told(), story)


def test_SP_103_a_method_that_the_specification_does_not_know_is_unimplemented(path: Path) -> None:
    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        request, response, _stream = schema.METHODS["FetchX509SVID"]
        ask = UnaryUnaryMethod(
            client.channel, "/SpiffeWorkloadAPI/FetchEverything", request, response
        )
        status = await refused(ask(request(), metadata=METADATA))
        assert status == Status.UNIMPLEMENTED

    run(path, Told(WEB), story)


# ------------------------------------------------------------------ X.509
def test_SP_112_124_leaf_first_der_and_a_plain_key_the_default_first_server(path: Path) -> None:
    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        answer = await client.first("FetchX509SVID")
        assert [svid.spiffe_id for svid in answer.svids] == [WEB.id, DB.id]
        for told, svid in zip(answer.svids, (WEB, DB), strict=True):
            assert told.x509_svid == b"".join(svid.chain)
            leaf = x509.load_der_x509_certificate(told.x509_svid)
            key = serialization.load_der_private_key(told.x509_svid_key, None)
            assert leaf.public_key() == key.public_key()
            assert x509.load_der_x509_certificate(told.bundle).subject
            assert told.hint == svid.hint

    run(path, Told(WEB, DB), story)


def test_SP_105_106_every_message_is_the_full_set_and_the_first_comes_at_once_server(
    path: Path,
) -> None:
    directory = Told(WEB)

    async def story(client: WorkloadClient, made: WorkloadServer) -> None:
        async with client.stream("FetchX509SVID") as stream:
            first = await stream.recv_message()
            assert [x.spiffe_id for x in first.svids] == [WEB.id]
            directory.say(WEB, DB, federated=(FOREIGN,), crl=(b"crl",))
            second = await stream.recv_message()
            assert [x.spiffe_id for x in second.svids] == [WEB.id, DB.id]
            assert dict(second.federated_bundles) == {"spiffe://other.test": b"foreign"}
            assert list(second.crl) == [b"crl"]
            directory.say(DB)
            third = await stream.recv_message()
            assert [x.spiffe_id for x in third.svids] == [DB.id]
            assert not third.federated_bundles  # SP-108: what is left out is gone.
            assert not third.crl
            assert made.pushes == {"FetchX509SVID": 3}

    run(path, directory, story)


def test_SP_117_bundles_hold_our_own_trust_domain_and_the_federated_ones_server(
    path: Path,
) -> None:
    directory = Told()
    directory.say(WEB, federated=(FOREIGN, TrustBundle("bare.test", ())), crl=(b"crl",))

    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        answer = await client.first("FetchX509Bundles")
        assert dict(answer.bundles) == {
            "spiffe://mesh.test": CA.issuer.certificate,
            "spiffe://other.test": b"foreign",
        }
        assert list(answer.crl) == [b"crl"]

    run(path, directory, story)


@pytest.mark.parametrize("method", STREAMS)
def test_SP_116_who_loses_the_last_identity_hears_permission_denied_server(
    path: Path, method: str
) -> None:
    directory = Told()
    directory.say(WEB, wit=WIT)

    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        async with client.stream(method) as stream:
            assert await stream.recv_message()
            directory.say(wit=())
            assert await refused(end_of(stream)) == Status.PERMISSION_DENIED

    run(path, directory, story, hold_s=60)


def test_a_first_answer_is_held_until_the_identity_is_there(path: Path) -> None:
    directory = Told()

    async def story(client: WorkloadClient, made: WorkloadServer) -> None:
        waiting = asyncio.create_task(client.first("FetchX509SVID"))
        token = asyncio.create_task(client.call("FetchJWTSVID", GOOD_REQUESTS["FetchJWTSVID"]))
        await until(lambda: made.statistics()["open"] == 2)
        directory.say()  # Something else has changed.
        await asyncio.sleep(0)
        assert not waiting.done()
        directory.say(WEB)
        assert [x.spiffe_id for x in (await waiting).svids] == [WEB.id]
        assert [x.spiffe_id for x in (await token).svids] == [WEB.id]

    run(path, directory, story, hold_s=60)


def test_what_says_nothing_new_is_not_sent_and_what_is_the_same_is_encoded_once(
    path: Path,
) -> None:
    directory = Told(WEB)

    async def story(client: WorkloadClient, made: WorkloadServer) -> None:
        async with (
            client.stream("FetchX509SVID") as one,
            client.stream("FetchX509SVID") as other,
            client.stream("FetchJWTBundles") as keys,
        ):
            for stream in (one, other, keys):
                assert await stream.recv_message()
            directory.say(WEB)  # The same again, as another object.
            turned = TrustBundle("mesh.test", OWN.x509, b'{"keys":["new"]}')
            directory.say(WEB, own=turned)
            answer = await keys.recv_message()
            assert answer.bundles["spiffe://mesh.test"] == b'{"keys":["new"]}'
            directory.say(WEB, DB, own=turned)
            for stream in (one, other):
                assert len((await stream.recv_message()).svids) == 2
            assert made.pushes == {"FetchX509SVID": 4, "FetchJWTBundles": 2}
            assert directory.snapshot._encoded.keys() == {"FetchX509SVID", "FetchJWTBundles"}

    run(path, directory, story)


# ------------------------------------------------------------------ JWT
def test_SP_118_an_unset_id_means_all_identities_and_the_audience_is_passed_on_server(
    path: Path,
) -> None:
    directory = Told(WEB, DB)

    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        request = schema.JWTSVIDRequest(audience=["a", "b"])
        answer = await client.call("FetchJWTSVID", request)
        assert [(x.spiffe_id, x.svid, x.hint) for x in answer.svids] == [
            (WEB.id, f"token of {WEB.id}", "external"),
            (DB.id, f"token of {DB.id}", ""),
        ]
        request = schema.JWTSVIDRequest(audience=["a"], spiffe_id="SPIFFE://Mesh.Test/db")
        answer = await client.call("FetchJWTSVID", request)
        assert [x.spiffe_id for x in answer.svids] == [DB.id]
        assert directory.minted == [((WEB.id, DB.id), ("a", "b")), ((DB.id,), ("a",))]

    run(path, directory, story)


@pytest.mark.parametrize(
    ("method", "request_", "expected"),
    [
        ("FetchJWTSVID", schema.JWTSVIDRequest(), Status.INVALID_ARGUMENT),
        ("FetchJWTSVID", schema.JWTSVIDRequest(audience=["a", ""]), Status.INVALID_ARGUMENT),
        ("FetchJWTSVID", schema.JWTSVIDRequest(audience=["a"] * 17), Status.INVALID_ARGUMENT),
        ("FetchJWTSVID", schema.JWTSVIDRequest(audience=["a" * 1025]), Status.INVALID_ARGUMENT),
        (
            "FetchJWTSVID",
            schema.JWTSVIDRequest(audience=["a"], spiffe_id="web"),
            Status.INVALID_ARGUMENT,
        ),
        (
            "FetchJWTSVID",
            schema.JWTSVIDRequest(audience=["a"], spiffe_id="spiffe://mesh.test/not-mine"),
            Status.PERMISSION_DENIED,
        ),
        ("ValidateJWTSVID", schema.ValidateJWTSVIDRequest(svid="good"), Status.INVALID_ARGUMENT),
        ("ValidateJWTSVID", schema.ValidateJWTSVIDRequest(audience="a"), Status.INVALID_ARGUMENT),
        (
            "ValidateJWTSVID",
            schema.ValidateJWTSVIDRequest(audience="a", svid="forged"),
            Status.INVALID_ARGUMENT,
        ),
        ("FetchWITSVID", schema.WITSVIDRequest(spiffe_id="web"), Status.INVALID_ARGUMENT),
        (
            "FetchWITSVID",
            schema.WITSVIDRequest(spiffe_id="spiffe://mesh.test/not-mine"),
            Status.PERMISSION_DENIED,
        ),
        ("ValidateJWTSVID", b"\xff\xff", Status.INVALID_ARGUMENT),
        ("ValidateJWTSVID", b"\x0a" * 65_537, Status.INVALID_ARGUMENT),
    ],
)
def test_SP_110_119_bad_requests_and_others_identities_are_refused_server(
    path: Path, method: str, request_: Any, expected: Status
) -> None:
    directory = Told()
    directory.say(WEB, wit=WIT)

    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        ask = client.first if schema.METHODS[method][2] else client.call
        assert await refused(ask(method, request_)) == expected
        assert not directory.minted

    run(path, directory, story)


def test_SP_120_jwt_bundles_hold_our_own_trust_domain_and_no_other_keys_server(path: Path) -> None:
    directory = Told()
    without = TrustBundle("x509.test", (b"only",))
    directory.say(WEB, federated=(FOREIGN, without))

    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        answer = await client.first("FetchJWTBundles")
        assert dict(answer.bundles) == {
            "spiffe://mesh.test": b'{"keys":["ours"]}',
            "spiffe://other.test": b'{"keys":["theirs"]}',
        }

    run(path, directory, story)


def test_SP_121_claims_of_a_valid_token_come_back_server(path: Path) -> None:
    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        answer = await client.call("ValidateJWTSVID", GOOD_REQUESTS["ValidateJWTSVID"])
        assert answer.spiffe_id == WEB.id
        assert answer.claims["sub"] == WEB.id
        assert answer.claims["exp"] == 1
        assert list(answer.claims["aud"]) == ["db"]
        assert list(answer.claims["x"]["y"]) == [None]

    run(path, Told(WEB), story)


def test_an_authority_that_is_away_or_refuses_is_told_apart(path: Path) -> None:
    directory = Told(WEB)

    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        for error, expected in (
            (Unavailable("X0-A-1", "away"), Status.UNAVAILABLE),
            (Refused("X0-A-2", "no"), Status.PERMISSION_DENIED),
        ):
            directory.error = error
            call = client.call("FetchJWTSVID", GOOD_REQUESTS["FetchJWTSVID"])
            assert await refused(call) == expected

    run(path, directory, story)


# ------------------------------------------------------------------ WIT
@pytest.mark.parametrize("method", ["FetchWITSVID", "FetchWITBundles"])
def test_SP_123_without_the_wit_profile_it_is_unimplemented_server(path: Path, method: str) -> None:
    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        assert await refused(client.first(method)) == Status.UNIMPLEMENTED

    run(path, Told(WEB), story)


def test_wit_svids_come_with_their_keys_one_or_all(path: Path) -> None:
    directory = Told()
    directory.say(WEB, DB, wit=WIT, own=TrustBundle("mesh.test", OWN.x509, wit='{"keys":["w"]}'))

    async def story(client: WorkloadClient, _: WorkloadServer) -> None:
        answer = await client.first("FetchWITSVID")
        assert [(x.spiffe_id, x.wit_svid, x.hint) for x in answer.svids] == [
            (WEB.id, "token", "h"),
            (DB.id, "other", ""),
        ]
        one = await client.first("FetchWITSVID", schema.WITSVIDRequest(spiffe_id=DB.id))
        assert [x.wit_svid for x in one.svids] == ["other"]
        bundles = await client.first("FetchWITBundles")
        assert dict(bundles.bundles) == {"spiffe://mesh.test": '{"keys":["w"]}'}

    run(path, directory, story)
