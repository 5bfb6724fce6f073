"""The Workload API for tests: what it serves, what it does wrong when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import mldsa
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.exceptions import StreamClosedError

from x0tta6bl4.edge.tls.recipes import Recipe
from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.sdk.testing import faults
from x0tta6bl4.sdk.testing.domain import Domain, Shape
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

METADATA = dict([schema.METADATA])


@pytest.fixture
def api() -> Any:
    with WorkloadApi() as made:
        made.issue("/web", hint="main")
        yield made


class Client:
    """A client that checks nothing."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @asynccontextmanager
    async def stream(
        self, method: str, metadata: Any = METADATA, **fields: Any
    ) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
        request, response, _ = schema.METHODS[method]
        async with self._channel.request(
            schema.path(method), Cardinality.UNARY_STREAM, request, response, metadata=metadata
        ) as stream:
            await stream.send_message(request(**fields), end=True)

            async def read() -> Any:
                async with asyncio.timeout(5):
                    message = await stream.recv_message()
                    if message is None:
                        await stream.recv_trailing_metadata()  # Raises what the server said.
                    return message

            yield read
            with contextlib.suppress(StreamClosedError, StreamTerminatedError):
                await stream.cancel()

    async def ask(self, method: str, **fields: Any) -> Any:
        async with self.stream(method, **fields) as read:
            return await read()


def against(api: WorkloadApi, story: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        channel = Channel(path=api.endpoint.removeprefix("unix://"))
        try:
            await story(Client(channel))
        finally:
            channel.close()

    asyncio.run(main())


def test_what_it_serves_is_proper_and_pushed(api: WorkloadApi) -> None:
    other = Domain("other.test")

    async def story(client: Client) -> None:
        async with client.stream("FetchX509SVID") as read:
            first = await read()
            (svid,) = first.svids
            assert (svid.spiffe_id, svid.hint) == ("spiffe://example.org/web", "main")
            leaf = x509.load_der_x509_certificate(svid.x509_svid)
            key = serialization.load_der_private_key(svid.x509_svid_key, None)
            assert key.public_key() == leaf.public_key()
            leaf.verify_directly_issued_by(x509.load_der_x509_certificate(svid.bundle))
            (renewed,) = api.rotate()
            assert (await read()).svids[0].x509_svid == renewed.chain[0] != svid.x509_svid
            api.federate(other)
            assert dict((await read()).federated_bundles) == {
                "spiffe://other.test": other.anchors[0]
            }
            api.revoke(renewed)
            (crl,) = (await read()).crl
            parsed = x509.load_der_x509_crl(crl)
            assert parsed.get_revoked_certificate_by_serial_number(renewed.leaf.serial_number)
            api.rotate_anchor()
            assert len((await read()).svids[0].bundle) > len(svid.bundle)
            api.issue("/admin")
            assert [one.spiffe_id for one in (await read()).svids] == [
                "spiffe://example.org/web",
                "spiffe://example.org/admin",
            ]
            api.redact("/web")
            assert [s.spiffe_id for s in (await read()).svids] == ["spiffe://example.org/admin"]
            api.withdraw()
            with pytest.raises(GRPCError) as denied:
                await read()
            assert denied.value.status is Status.PERMISSION_DENIED

    against(api, story)


def test_tokens_and_their_bundles(api: WorkloadApi) -> None:
    api.federate(Domain("other.test"))

    async def story(client: Client) -> None:
        bundles = dict((await client.ask("FetchJWTBundles")).bundles)
        assert set(bundles) == {"spiffe://example.org", "spiffe://other.test"}
        (key,) = json.loads(bundles["spiffe://example.org"])["keys"]
        assert key["use"] == "jwt-svid"
        assert key["kid"] == api.domain.token_keys[0][1]
        (made,) = (await client.ask("FetchJWTSVID", audience=["db"])).svids
        assert made.spiffe_id == "spiffe://example.org/web"
        assert made.svid.count(".") == 2
        for fields, code in (
            ({}, Status.INVALID_ARGUMENT),
            ({"audience": ["db"], "spiffe_id": "spiffe://example.org/x"}, Status.PERMISSION_DENIED),
        ):
            with pytest.raises(GRPCError) as refused:
                await client.ask("FetchJWTSVID", **fields)
            assert refused.value.status is code

    against(api, story)


def test_it_validates_tokens_as_an_agent_does(api: WorkloadApi) -> None:
    other = Domain("other.test")
    api.federate(other)

    async def story(client: Client) -> None:
        for domain in (api.domain, other):
            token = domain.token("/peer", ["web"], claims={"own": 1})
            answer = await client.ask("ValidateJWTSVID", audience="web", svid=token)
            assert answer.spiffe_id == domain.id("/peer")
            assert answer.claims["own"] == 1
            with pytest.raises(GRPCError) as refused:
                await client.ask("ValidateJWTSVID", audience="db", svid=token)
            assert refused.value.status is Status.INVALID_ARGUMENT

    against(api, story)


def test_calls_are_remembered_and_want_the_header(api: WorkloadApi) -> None:
    async def story(client: Client) -> None:
        async with client.stream("FetchX509SVID", metadata={}) as read:
            with pytest.raises(GRPCError) as refused:
                await read()
        assert refused.value.status is Status.INVALID_ARGUMENT
        await client.ask("FetchX509SVID")

    against(api, story)
    first, second = api.calls
    assert "workload.spiffe.io" not in first.metadata
    assert second.metadata["workload.spiffe.io"] == "true"
    api.wait_for_calls("FetchX509SVID", 2)
    api.wait_for_streams("FetchX509SVID", 0)
    with pytest.raises(TimeoutError):
        api.wait_for_calls("FetchX509SVID", 3, timeout_s=0.01)


def test_faults_count_answers_and_come_in_turn(api: WorkloadApi) -> None:
    api.inject("FetchX509SVID", Fault(code="UNAVAILABLE"), times=2)
    api.inject("FetchX509SVID", Fault(delay_s=0.05, end=True), times=1)

    async def story(client: Client) -> None:
        for _ in range(2):
            with pytest.raises(GRPCError) as refused:
                await client.ask("FetchX509SVID")
            assert refused.value.status is Status.UNAVAILABLE
        async with client.stream("FetchX509SVID") as read:
            assert (await read()).svids
            assert await read() is None
        async with client.stream("FetchX509SVID") as read:
            assert (await read()).svids
            api.inject("FetchX509SVID", Fault(code="INTERNAL"))
            api.push()
            with pytest.raises(GRPCError):
                await read()
        api.clear()
        assert (await client.ask("FetchX509SVID")).svids

    against(api, story)


@pytest.mark.parametrize("fault", [Fault(reset=True), Fault(disconnect=True)])
def test_a_stream_that_breaks(api: WorkloadApi, fault: Fault) -> None:
    api.inject("FetchX509SVID", fault, times=1)

    async def story(client: Client) -> None:
        with pytest.raises((StreamTerminatedError, GRPCError)):
            await client.ask("FetchX509SVID")
        assert (await client.ask("FetchX509SVID")).svids

    against(api, story)


def test_a_call_that_hangs_and_a_server_that_restarts(api: WorkloadApi) -> None:
    api.inject("FetchX509SVID", Fault(hang=True), times=1)

    async def story(client: Client) -> None:
        async with client.stream("FetchX509SVID") as read:
            await asyncio.to_thread(api.wait_for_streams, "FetchX509SVID", 1)
            api.restart()
            with pytest.raises((StreamTerminatedError, GRPCError)):
                await read()
        assert (await client.ask("FetchX509SVID")).svids
        api.stop()
        with pytest.raises((OSError, StreamTerminatedError)):
            await client.ask("FetchX509SVID")
        api.start()
        async with client.stream("FetchX509SVID") as read:
            await read()
            api.disconnect()
            with pytest.raises((StreamTerminatedError, GRPCError)):
                await read()

    against(api, story)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (faults.pem, lambda a: a.svids[0].x509_svid.startswith(b"-----BEGIN CERT")),
        (faults.trailing, lambda a: a.svids[0].x509_svid.endswith(b"trailing")),
        (faults.foreign_key, lambda a: not _fits(a.svids[0])),
        (faults.empty("bundle"), lambda a: not a.svids[0].bundle),
        (faults.other_id("spiffe://a/b"), lambda a: a.svids[0].spiffe_id == "spiffe://a/b"),
        (faults.no_svids, lambda a: not a.svids),
        (faults.same_hints, lambda a: {s.hint for s in a.svids} == {"twice"}),
        (faults.foreign_bundle, lambda a: b"elsewhere" in a.svids[0].bundle),
        (faults.huge(5_000_000), lambda a: len(a.federated_bundles["huge.test"]) == 5_000_000),
    ],
)
def test_spoilt_answers(api: WorkloadApi, change: Any, wrong: Callable[[Any], bool]) -> None:
    api.inject("FetchX509SVID", Fault(change=change), times=1)

    async def story(client: Client) -> None:
        async with client.stream("FetchX509SVID") as read:
            assert wrong(await read())
            api.push()
            assert not wrong(await read())

    against(api, story)


def _fits(svid: Any) -> bool:
    key = serialization.load_der_private_key(svid.x509_svid_key, None)
    return key.public_key() == x509.load_der_x509_certificate(svid.x509_svid).public_key()


def test_bytes_that_are_no_message(api: WorkloadApi) -> None:
    api.inject("FetchX509SVID", Fault(change=faults.garbage))

    async def story(client: Client) -> None:
        with pytest.raises(Exception, match="parsing message"):
            await client.ask("FetchX509SVID")

    against(api, story)


def test_bundles_as_a_test_writes_them(api: WorkloadApi) -> None:
    api.write_bundle("example.org", jwks=b"{", x509=b"\x30")

    async def story(client: Client) -> None:
        assert (await client.ask("FetchJWTBundles")).bundles["spiffe://example.org"] == b"{"
        assert (await client.ask("FetchX509Bundles")).bundles["spiffe://example.org"] == b"\x30"
        assert (await client.ask("FetchX509SVID")).svids[0].bundle == b"\x30"

    against(api, story)


def test_an_endpoint_that_is_taken_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not start"):
        WorkloadApi(endpoint=f"unix:{tmp_path}/missing/api.sock").start()


def test_a_shape_can_say_all_that_a_recipe_can() -> None:
    assert set(Shape.__annotations__) == set(Recipe.__struct_fields__)


def test_odd_certificates_are_made(api: WorkloadApi) -> None:
    domain = Domain(key="ML-DSA-65")
    assert isinstance(domain.svid(key="ML-DSA-65").leaf.public_key(), mldsa.MLDSA65PublicKey)
    made = domain.svid(signers=[{}, {"path_length": 0}])
    assert len(made.chain) == 3
    assert "PRIVATE" not in repr(made)
    assert made.key_pem.startswith(b"-----BEGIN PRIVATE")
    assert made.chain_pem.count(b"BEGIN CERTIFICATE") == 3
    own = domain.anchor_as_svid()
    assert own.leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_other_projects_can_use_it(pytester_folder: Path) -> None:
    (pytester_folder / "conftest.py").write_text('pytest_plugins = ["x0tta6bl4.sdk.testing"]\n')
    (pytester_folder / "test_it.py").write_text(
        "import os\n"
        "def test_it(workload_api):\n"
        "    assert os.environ['SPIFFE_ENDPOINT_SOCKET'] == workload_api.endpoint\n"
        "    assert workload_api.svids[0].id == 'spiffe://example.org/web'\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=pytester_folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_costs_nothing_before_it_is_used() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import sys, x0tta6bl4.sdk.testing; print('h2' in sys.modules)"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert said.stdout == "False\n"


@pytest.fixture
def pytester_folder(tmp_path: Path) -> Path:
    """A project of somebody else."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path
