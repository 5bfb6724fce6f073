"""SVIDs and tokens that renew themselves: on a clock of our own, and against a Workload API."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import stat
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fakes.virtual_time import START_UNIX_S, VirtualTime
from x0tta6bl4.core.machine import SECOND, Instant
from x0tta6bl4.edge.jwt.svid import JwtSvid
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.sdk.identity.answers import X509Set
from x0tta6bl4.sdk.identity.auto_renew import AutoRenew, Held, HostTime, enable_auto_renew
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.identity.files import BUNDLE, CHAIN, KEY, TOKEN
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadInput, NotFound, Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import SpiffeId

HOUR = 3_600
ID = SpiffeId("spiffe://example.org/web")


class Agent:
    """A Workload API in virtual time: mints tokens, or does what a test wants."""

    def __init__(self, time: VirtualTime, ttl_s: int = HOUR) -> None:
        self.time = time
        self.ttl_s = ttl_s
        self.error: X0Error | OSError | None = None
        self.delay_s = 0.0
        self.asked: list[int] = []

    async def fetch(self) -> Held:
        self.asked.append(self.time.unix_s)
        if self.delay_s:
            await self.time.pause(self.delay_s)
        if self.error is not None:
            raise self.error
        now = self.time.unix_s
        return JwtSvid(ID, ("db",), now, now + self.ttl_s, {}, f"token {now}")


class World:
    """An agent, something that is renewed from it, and what it told."""

    def __init__(self, ttl_s: int = HOUR, folder: Path | None = None) -> None:
        self.time = VirtualTime()
        self.agent = Agent(self.time, ttl_s)
        self.told: list[str] = []
        self.renewal = AutoRenew(
            self.agent.fetch,
            folder,
            lambda held: self.told.append("renewed"),
            lambda error: self.told.append(f"failed {type(error).__name__}"),
            self.told.append,
            self.time,
            Random("renewal"),
        )

    @property
    def token(self) -> str:
        held = self.renewal.current
        return held.token if isinstance(held, JwtSvid) else ""

    async def __aenter__(self) -> World:
        self.renewal.start()
        await self.time.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.renewal.stop()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_the_first_one_is_there_at_once() -> None:
    async def story() -> None:
        async with World() as world:
            assert world.token == f"token {START_UNIX_S}"
            assert world.told == ["renewed"]
            assert world.renewal.running

    run(story())


def test_it_is_renewed_at_half_its_life_give_or_take_a_tenth() -> None:
    async def story() -> None:
        async with World() as world:
            await world.time.run(0.44 * HOUR)
            assert world.renewal.renewed == 1
            await world.time.run(0.12 * HOUR)
            assert world.renewal.renewed == 2

    run(story())


def test_an_agent_that_is_out_for_a_while_is_felt_by_nobody() -> None:
    async def story() -> None:
        async with World() as world:
            world.agent.error = Unavailable("X0-SDK-010", "gone")
            await world.time.run(0.9 * HOUR)
            assert world.token
            assert 5 < len(world.agent.asked) < 60
            world.agent.error = None
            await world.time.run(70)
            assert world.told[-1] == "renewed"
            assert world.renewal.error is None

    run(story())


def test_pauses_between_attempts_grow_up_to_a_minute() -> None:
    async def story() -> None:
        async with World() as world:
            world.agent.error = Unavailable("X0-SDK-010", "gone")
            await world.time.run(0.9 * HOUR)
            asked = world.agent.asked[1:]
            pauses = [b - a for a, b in itertools.pairwise(asked)]
            assert pauses[0] <= 2
            assert pauses[4] > pauses[2] > pauses[0]
            assert 50 <= max(pauses) <= 70

    run(story())


def test_an_outage_that_lasts_too_long_loses_it_and_the_agent_brings_it_back() -> None:
    async def story() -> None:
        async with World() as world:
            world.agent.error = Unavailable("X0-SDK-010", "gone")
            await world.time.run(HOUR + 1)
            assert world.renewal.current is None
            assert world.told.count("expired") == 1
            world.agent.error = None
            await world.time.run(70)
            assert world.token
            assert world.told[-1] == "renewed"

    run(story())


def test_an_agent_that_is_not_there_yet_is_waited_for() -> None:
    async def story() -> None:
        world = World()
        world.agent.error = Unavailable("X0-SDK-018", "no socket")
        async with world:
            await world.time.run(30)
            assert world.renewal.current is None
            assert set(world.told) == {"failed Unavailable"}
            world.agent.error = None
            await world.time.run(40)
            assert world.token

    run(story())


def test_SP_116_permission_denied_takes_it_away_at_once_client() -> None:
    async def story() -> None:
        async with World() as world:
            world.agent.error = Refused("X0-SDK-011", "no identity")
            await world.time.run(0.56 * HOUR)
            assert world.renewal.current is None
            assert world.told[1:3] == ["withdrawn", "failed Refused"]
            assert world.told.count("withdrawn") == 1
            world.agent.error = None
            await world.time.run(70)
            assert world.token

    run(story())


@pytest.mark.parametrize("error", [BadInput("X0-SDK-012", "no"), NotFound("X0-SDK-013", "no")])
def test_SP_098_what_makes_no_sense_to_repeat_is_not_repeated_client(error: X0Error) -> None:
    async def story() -> None:
        world = World()
        world.agent.error = error
        async with world:
            await world.time.run(HOUR)
            assert len(world.agent.asked) == 1
            assert not world.renewal.running
            assert world.renewal.error is error

    run(story())


def test_a_clock_that_jumps_ahead_an_hour_loses_it_and_renews_at_once() -> None:
    async def story() -> None:
        async with World() as world:
            await world.time.step(HOUR)
            await world.time.run(2)
            assert world.told == ["renewed", "expired", "renewed"]
            assert world.token == f"token {START_UNIX_S + HOUR + 1}"

    run(story())


def test_a_clock_that_jumps_back_an_hour_changes_nothing_until_it_is_due() -> None:
    async def story() -> None:
        async with World() as world:
            await world.time.step(-HOUR)
            assert world.token
            await world.time.run(HOUR)
            assert world.renewal.renewed == 1
            await world.time.run(0.56 * HOUR)
            assert world.renewal.renewed == 2
            assert world.token

    run(story())


def test_a_slow_agent_is_waited_for_and_expiry_is_told_meanwhile() -> None:
    async def story() -> None:
        async with World() as world:
            world.agent.delay_s = HOUR
            await world.time.run(HOUR + 1)
            assert len(world.agent.asked) == 2  # One request at a time.
            assert world.told == ["renewed", "expired"]
            assert world.renewal.current is None
            await world.time.run(HOUR)
            assert world.told[-1] == "renewed"

    run(story())


def test_one_that_is_as_old_as_the_last_makes_no_storm() -> None:
    async def story() -> None:
        async with World() as world:
            world.agent.ttl_s = 2
            await world.time.run(0.6 * HOUR)
            before = len(world.agent.asked)
            await world.time.run(10)
            assert len(world.agent.asked) - before <= 11

    run(story())


def test_it_stops_within_a_request_and_what_is_held_stays_readable() -> None:
    async def story() -> None:
        world = World()
        async with world:
            world.agent.delay_s = HOUR
            await world.time.run(0.56 * HOUR)
            assert len(world.agent.asked) == 2
        assert not world.renewal.running
        assert world.token
        await world.renewal.stop()

    run(story())


def test_a_thousand_days_of_the_world() -> None:
    async def story() -> None:
        async with World(ttl_s=12 * HOUR) as world:
            for day in range(1_000):
                await world.time.run(24 * HOUR)
                assert world.token, day
            assert world.told == ["renewed"] * world.renewal.renewed
            assert 3_600 < world.renewal.renewed < 4_500
            assert len(world.time._sleepers) < 10_000

    run(story())


def test_a_full_disk_keeps_the_old_file_and_the_new_token_in_memory(tmp_path: Path) -> None:
    async def story() -> None:
        folder = tmp_path / "svid"
        async with World(folder=folder) as world:
            old = (folder / TOKEN).read_text()
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))  # The disk is full.
            try:
                await world.time.run(0.56 * HOUR)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert "failed OSError" in world.told
            assert isinstance(world.renewal.error, OSError)
            assert (folder / TOKEN).read_text() == old
            hidden = [name for name in os.listdir(folder) if name != TOKEN]
            assert len(hidden) == 2, f"more than a link and the set it leads to: {hidden}"
            assert world.token > old
            await world.time.run(70)
            assert world.told[-1] == "renewed"
            assert (folder / TOKEN).read_text() == world.token

    run(story())


def test_a_token_is_written_for_its_owner_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with World(folder=tmp_path / "svid") as world:
            path = tmp_path / "svid" / TOKEN
            assert path.read_text() == world.token
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    run(story())


def test_of_several_svids_the_one_that_ends_first_counts() -> None:
    api = WorkloadApi()
    api.issue("/web", life_s=HOUR)
    api.issue("/db", life_s=HOUR // 2)
    with api:

        async def story() -> None:
            told: asyncio.Queue[Held] = asyncio.Queue()
            async with (
                WorkloadClient(api.endpoint) as client,
                enable_auto_renew(client, on_renewed=told.put_nowait) as renewal,
            ):
                await asyncio.wait_for(told.get(), 5)
                held = renewal.current
                assert isinstance(held, X509Set)
                ends = min(svid.not_after_unix_s for svid in held.svids)
                assert renewal._ends_us == ends * SECOND

        run(story())


def test_x509_svids_are_renewed_from_a_real_workload_api_into_files(
    served: WorkloadApi, tmp_path: Path
) -> None:
    async def story() -> None:
        told: asyncio.Queue[Held] = asyncio.Queue()
        async with (
            WorkloadClient() as client,
            enable_auto_renew(client, folder=str(tmp_path), on_renewed=told.put_nowait) as renewal,
        ):
            held = await asyncio.wait_for(told.get(), 5)
            assert renewal.current is held
            assert isinstance(held, X509Set)
            assert type(held.svids[0]) is Svid
            assert held.svids[0].id == ID
        names = {CHAIN: 0o644, KEY: 0o600, BUNDLE: 0o644}
        found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.glob("[!.]*")}
        assert found == names
        assert (tmp_path / CHAIN).read_bytes() == served.svids[0].chain_pem
        assert (tmp_path / KEY).read_bytes() == served.svids[0].key_pem

    run(story())


def test_a_token_is_fetched_from_a_real_workload_api(
    served: WorkloadApi,
) -> None:
    async def story() -> None:
        told: asyncio.Queue[Held] = asyncio.Queue()
        async with (
            WorkloadClient() as client,
            enable_auto_renew(client, audience="db", on_renewed=told.put_nowait) as renewal,
        ):
            held = await asyncio.wait_for(told.get(), 5)
            assert renewal.error is None
            assert isinstance(held, JwtSvid)
            assert held.audience == ("db",)
            assert held.id == ID

    run(story())


def test_the_clocks_of_the_host_go_and_a_sleep_ends() -> None:
    async def story() -> None:
        time = HostTime()
        start = time.instant()
        await time.sleep(Instant(start + 20_000))
        assert time.instant() >= start + 20_000

    run(story())


def test_a_sleep_ends_early_when_the_wall_clock_is_set() -> None:
    class Set(HostTime):
        """The host's clock, and an hour more after the first look at it."""

        looked = 0

        def unix_us(self) -> int:
            self.looked += 1
            return super().unix_us() + (HOUR * SECOND if self.looked > 1 else 0)

    async def story() -> None:
        time = Set()
        async with asyncio.timeout(5):
            await time.sleep(Instant(time.instant() + HOUR * SECOND))

    run(story())
