"""Sources against a scriptable Workload API: what is taken, refused, kept, withdrawn."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from tests.fakes.ca import FakeClock
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.sdk.identity.answers import Seen, read_x509, split
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.identity.follow import PAUSE_S_MAX, Follow
from x0tta6bl4.sdk.identity.source import LISTENERS_MAX, BundleSource, X509Source
from x0tta6bl4.sdk.testing import faults
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadInput, BadMessage, NotFound, Refused, Unavailable, X0Error

WEB = "spiffe://example.org/web"
DB = "spiffe://example.org/db"
X509 = "FetchX509SVID"


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


@asynccontextmanager
async def source_of(api: WorkloadApi, **options: Any) -> AsyncIterator[X509Source]:
    async with X509Source(api.endpoint, **options) as source:
        await source.wait(5)
        yield source


async def heard(source: X509Source | BundleSource, what: str) -> None:
    """Wait until the source has heard of a problem."""
    async with asyncio.timeout(5):
        while not any(what in problem for problem in source.problems):
            await source._changed.wait()


# ------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("field", ["spiffe_id", "x509_svid", "x509_svid_key", "bundle"])
def test_SP_110_a_message_without_a_mandatory_field_is_reported_and_discarded_client(
    served: WorkloadApi, field: str
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            held = source.svids
            served.inject(X509, Fault(change=faults.empty(field)), times=1)
            served.rotate()
            await heard(source, f"no {field}")
            assert source.svids == held  # Discarded whole: what came before stays.
            version = source.version
            served.push()
            await source.changed(version, 5)
            assert source.svids != held
            assert source.error is None

    run(story)


def test_SP_114_a_message_without_svids_is_discarded_client(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            served.inject(X509, Fault(change=faults.no_svids), times=1)
            served.push()
            await heard(source, "no SVID")
            assert source.current().id == WEB

    run(story)


def pem_key(answer: Any) -> Any:
    for svid in answer.svids:
        svid.x509_svid_key = b"-----"
    return answer


_BAD_SVIDS: dict[str, tuple[Any, str]] = {
    "SP_112 PEM": (faults.pem, "DER"),
    "SP_112 trailing bytes": (faults.trailing, "DER"),
    "key of another": (faults.foreign_key, "not that of its certificate"),
    "ID of another": (faults.other_id(DB), "somebody else"),
    "not an ID": (faults.other_id("https://example.org/web"), "SPIFFE ID"),
    "foreign bundle": (faults.foreign_bundle, "untrusted issuer"),
    "PEM key": (lambda answer: pem_key(answer), "PKCS#8"),
}


@pytest.mark.parametrize(("spoil", "says"), _BAD_SVIDS.values(), ids=_BAD_SVIDS)
def test_SP_112_a_bad_svid_of_the_workload_api_is_never_used_client(
    served: WorkloadApi, spoil: Any, says: str
) -> None:
    served.inject(X509, Fault(change=spoil))

    async def story() -> None:
        async with X509Source() as source:
            await heard(source, says)
            with pytest.raises(X0Error):
                await source.wait(0.01)
            with pytest.raises(Unavailable):
                source.current()

    run(story)


_SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "SP_036 no path": ({"uris": ("spiffe://example.org",)}, "without a path"),
    "SP_033 cA": ({"ca": True}, "is a CA"),
    "SP_034 keyCertSign": ({"usages": ("digital_signature", "key_cert_sign")}, "may sign"),
    "SP_034 cRLSign": ({"usages": ("digital_signature", "crl_sign")}, "may sign"),
    "SP_021 two URIs": ({"uris": (WEB, DB)}, "more than one URI"),
    "SP_035 https": ({"uris": ("https://example.org/web",)}, "SPIFFE ID"),
    "no URI": ({"uris": None}, "no URI"),
    "expired": ({"start_s": -7_200, "life_s": 3_600}, "expired"),
    "not yet": ({"start_s": 3_600}, "not yet valid"),
    "spoilt": ({"spoilt": True}, "signature"),
    "foreign": ({"uris": ("spiffe://elsewhere.test/web",)}, "foreign trust domain"),
}


@pytest.mark.parametrize(("shape", "says"), _SHAPES.values(), ids=_SHAPES)
def test_SP_026_033_034_035_036_an_svid_that_is_none_is_never_used_client(
    served: WorkloadApi, shape: dict[str, Any], says: str
) -> None:
    served.serve(served.domain.svid("/web", **shape))

    async def story() -> None:
        async with X509Source() as source:
            await heard(source, says)
            assert not source.ready

    run(story)


def test_one_bad_svid_discards_the_message_lest_another_identity_becomes_the_default(
    served: WorkloadApi,
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            bad = served.domain.svid("/web", ca=True)
            served.serve(bad, served.domain.svid("/db"))
            await heard(source, "is a CA")
            assert [svid.id for svid in source.svids] == [WEB]

    run(story)


@pytest.mark.parametrize(
    ("written", "says"),
    [(b"\x30\x82\xff", "DER"), (b"garbage", "DER"), (b"\x30\x03abc", "not a certificate")],
)
def test_a_malformed_federated_bundle_makes_its_domain_unknown_and_no_other(
    served: WorkloadApi, written: bytes, says: str
) -> None:
    served.federate(Domain("good.test"), Domain("bad.test"))
    served.write_bundle("bad.test", x509=written)

    async def story() -> None:
        async with source_of(served) as source:
            assert set(source.bundles) == {"example.org", "good.test"}
            assert any("bad.test" in p and says in p for p in source.problems)

    run(story)


def test_a_name_of_a_trust_domain_that_is_none_is_left_out(served: WorkloadApi) -> None:
    def spoil(answer: Any) -> Any:
        answer.federated_bundles["spiffe://a.test/path"] = served.domain.anchors[0]
        answer.federated_bundles["spiffe://Example.org"] = Domain("other.test").anchors[0]
        answer.federated_bundles["b.test"] = b""
        return answer

    served.inject(X509, Fault(change=spoil))

    async def story() -> None:
        async with source_of(served) as source:
            assert source.bundles["example.org"] == served.domain.anchors  # type: ignore[index]
            assert set(source.bundles) == {"example.org", "b.test"}
            assert len(source.problems) == 2

    run(story)


def test_a_row_of_certificates_is_cut_where_they_end() -> None:
    anchor = Domain().anchors[0]
    assert split(anchor * 3, 3) == (anchor,) * 3
    assert split(b"", 3) == ()
    for bad in (anchor * 4, anchor[:-1], anchor + b"\0", b"\x30", b"\x30\x80", b"\x30\x85" * 4):
        with pytest.raises(BadMessage):
            split(bad, 3)


def test_what_has_not_changed_is_not_judged_again() -> None:
    api = WorkloadApi()
    api.issue("/web")
    api.issue("/db")
    looks: list[int] = []
    seen: Seen = {}

    def clock() -> int:
        looks.append(1)
        return time.time_ns() // 1000  # noqa: TID251  # The real one.

    read_x509(api.answer(X509, None), clock, seen)
    first = len(looks)
    again = read_x509(api.answer(X509, None), clock, seen)
    assert len(looks) == first == 2
    assert len(again.svids) == len(seen) == 2


# ---------------------------------------------------------------------------------- the full set
def test_SP_105_each_message_replaces_the_set_client(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            version = source.version
            served.serve(served.domain.svid("/db"))
            await source.changed(version, 5)
            assert [svid.id for svid in source.svids] == [DB]
            with pytest.raises(Unavailable):
                source.current(WEB)

    run(story)


def test_SP_108_default_values_replace_earlier_ones_client() -> None:
    with WorkloadApi() as api:
        api.federate(Domain("other.test"))
        api.serve(api.domain.svid("/web", hint="first"))
        api.revoke(api.domain.svid("/gone"))

        async def story() -> None:
            async with source_of(api) as source:
                assert source.current(hint="first").hint == "first"
                assert len(source.bundles) == 2
                held = source._set
                assert held is not None
                assert len(held.crls) == 1

                def bare(answer: Any) -> Any:
                    answer.ClearField("crl")
                    answer.ClearField("federated_bundles")
                    for svid in answer.svids:
                        svid.ClearField("hint")
                    return answer

                version = source.version
                api.inject(X509, Fault(change=bare))
                api.push()
                await source.changed(version, 5)
                assert source.current().hint == ""
                assert set(source.bundles) == {"example.org"}
                assert source._set is not None
                assert source._set.crls == ()

        run(story)


def test_SP_109_116_what_is_absent_is_withdrawn_client(served: WorkloadApi) -> None:
    served.issue("/db")
    other = Domain("other.test")
    served.federate(other)

    async def story() -> None:
        async with source_of(served) as source:
            assert source.current(DB).id == DB
            version = source.version
            served.redact("/db")
            version = await source.changed(version, 5)
            with pytest.raises(Unavailable):
                source.current(DB)
            served.federate()
            await source.changed(version, 5)
            assert "other.test" not in source.bundles

    run(story)


def test_SP_115_the_first_of_two_with_the_same_hint_counts_client(served: WorkloadApi) -> None:
    served.issue("/db")
    served.inject(X509, Fault(change=faults.same_hints))

    async def story() -> None:
        async with source_of(served) as source:
            assert source.current(hint="twice").id == WEB
            assert [svid.id for svid in source.svids] == [WEB]
            assert any("twice" in problem for problem in source.problems)

    run(story)


def test_SP_124_the_first_svid_is_the_default_and_others_can_be_picked_client(
    served: WorkloadApi,
) -> None:
    served.issue("/db", hint="database")

    async def story() -> None:
        async with source_of(served) as source:
            assert source.current().id == WEB
            assert source.current(DB).id == source.current(hint="database").id == DB
            for wanted in ({"id": "spiffe://example.org/x"}, {"hint": "x"}):
                with pytest.raises(Unavailable):
                    source.current(**wanted)
        async with source_of(served, pick=lambda svids: svids[-1]) as source:
            assert source.current().id == DB

    run(story)


def test_SP_013_an_id_of_2048_bytes_is_taken_client(served: WorkloadApi) -> None:
    id = f"spiffe://example.org/{'a' * (2048 - 21)}"
    served.serve(served.domain.svid(id))

    async def story() -> None:
        async with source_of(served) as source:
            assert source.current().id == id

    run(story)


def test_SP_016_an_id_in_upper_case_is_normalised_client(served: WorkloadApi) -> None:
    served.serve(served.domain.svid("SPIFFE://Example.ORG/Web"))

    async def story() -> None:
        async with source_of(served) as source:
            assert source.current("spiffe://EXAMPLE.org/Web").id == "spiffe://example.org/Web"

    run(story)


# ---------------------------------------------------------------------------------- over time
def test_SP_104_a_stream_that_ends_is_opened_again_at_once_client(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            for count, fault in enumerate(
                (Fault(end=True), Fault(reset=True), Fault(code="UNAVAILABLE"))
            ):
                served.inject(X509, fault, times=1)
                served.push()
                await asyncio.to_thread(served.wait_for_calls, X509, count + 2)
            served.rotate()
            async with asyncio.timeout(5):
                while source.current().chain != served.svids[0].chain:
                    await source.changed(source.version)

    run(story)
    calls = [call.at_s for call in served.calls if call.method == X509]
    assert len(calls) == 4
    assert all(b - a < 1.0 for a, b in itertools.pairwise(calls))


def test_one_stream_stays_open_and_rotations_come_over_it(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            for _ in range(5):
                version = source.version
                served.rotate_anchor(retire=True)
                await source.changed(version, 5)
                assert source.current().chain == served.svids[0].chain

    run(story)
    assert len([call for call in served.calls if call.method == X509]) == 1


def test_a_server_that_is_away_is_dialled_again_and_the_svid_stays(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            await asyncio.to_thread(served.stop)
            await heard(source, "X0-SDK-01")
            assert source.current().id == WEB
            version = source.version
            served.start()
            await source.changed(version, 10)
            assert source.error is None

    run(story)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNIMPLEMENTED"])
def test_SP_098_123_invalid_argument_and_unimplemented_are_not_repeated_client(
    served: WorkloadApi, code: str
) -> None:
    served.inject(X509, Fault(code=code))

    async def story() -> None:
        async with X509Source() as source:
            started = asyncio.get_running_loop().time()
            with pytest.raises((BadInput, NotFound)):
                await source.wait(5)  # At once: it makes no sense to wait.
            assert asyncio.get_running_loop().time() - started < 2
            await asyncio.gather(source._tasks[0])

    run(story)
    assert len(served.calls) == 1


def test_SP_098_unavailable_and_permission_denied_are_repeated_with_growing_pauses_client() -> None:
    pauses: list[float] = []
    errors = [Unavailable("X0-SDK-010", "x"), Refused("X0-SDK-011", "x")] * 6

    async def broken() -> Any:
        if not errors:
            raise NotFound("X0-SDK-013", "enough")
        raise errors.pop()
        yield

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def story() -> None:
        told: list[X0Error] = []
        await Follow(broken, told.append, told.append, Random(1), pause).run()
        assert len(told) == 13

    run(story)
    assert pauses[0] < 0.1
    assert all(b > a for a, b in itertools.pairwise(pauses[:6]))
    assert PAUSE_S_MAX * 0.8 <= min(pauses[8:]) <= max(pauses) <= PAUSE_S_MAX * 1.2


def test_SP_116_permission_denied_withdraws_svids_and_bundles_client(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source, BundleSource() as bundles:
            await bundles.wait(5)
            version, started = source.version, time.monotonic()
            served.withdraw()
            await source.changed(version, 5)
            assert time.monotonic() - started < 1
            assert source.svids == ()
            assert source.bundles == {}
            while bundles.bundles:
                await bundles.changed(bundles.version, 5)
            assert not bundles.documents
            with pytest.raises(Refused):
                await source.wait(0.01)
            served.issue("/web")
            await source.wait(5)
            await bundles.wait(5)

    run(story)


def test_an_expired_svid_is_never_given_out(served: WorkloadApi) -> None:
    clock = FakeClock(time.clock_gettime(time.CLOCK_REALTIME))

    async def story() -> None:
        async with WorkloadClient(clock=clock) as client, X509Source(client) as source:
            await source.wait(5)
            svid = source.current()
            version = source.version
            clock.unix_us = svid.not_after_unix_s * SECOND - 1
            assert source.current() is svid
            clock.unix_us += 1
            with pytest.raises(Unavailable) as error:
                source.current()
            assert error.value.id == "X0-SDK-026"
            assert source.svids == ()
            await source.changed(version, 5)  # Whoever waits for changes hears of it.

    run(story)


def test_waiting_ends_at_its_deadline_and_listeners_hear_of_changes(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            with pytest.raises(Unavailable) as error:
                await source.changed(source.version, 0.01)
            assert error.value.id == "X0-SDK-023"
            told: asyncio.Queue[str] = asyncio.Queue()
            remove = source.on_change(lambda: told.put_nowait("changed"))
            served.rotate()
            assert await asyncio.wait_for(told.get(), 5) == "changed"
            remove()
            remove()
            version = source.version
            served.rotate()
            await source.changed(version, 5)
            await asyncio.sleep(0)
            assert told.empty()
            for _ in range(LISTENERS_MAX):
                source.on_change(lambda: None)
            with pytest.raises(Unavailable):
                source.on_change(lambda: None)

    run(story)


def test_a_closed_source_gives_nothing_out(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            tasks = list(source._tasks)
            source.start()  # The second time: nothing.
            assert source._tasks == tasks
        with pytest.raises(Unavailable):
            source.current()
        with pytest.raises(Unavailable):
            await source.wait(0.01)

    run(story)
    served.wait_for_streams(X509, 0)


def test_SP_120_bundles_come_without_an_identity_client(served: WorkloadApi) -> None:
    other = Domain("other.test")
    served.federate(other)

    async def story() -> None:
        async with BundleSource() as source:
            await source.wait(5)
            assert source.bundles["other.test"] == other.anchors  # type: ignore[index]
            assert set(source.documents) == {"example.org", "other.test"}
        async with BundleSource(x509=False) as source:
            await source.wait(5)
            assert source.documents
            assert not source.bundles

    run(story)
    assert X509 not in {call.method for call in served.calls}
