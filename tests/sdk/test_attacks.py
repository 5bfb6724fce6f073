"""The attack set at every door of the SDK: nothing gets in, and all that is valid does.

By day each door meets a part of the set, another one at each; at night, all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from tests.edge.attack.cases import STDLIB_SAYS
from tests.sdk.attack.carry import carry
from tests.sdk.attack.certificates import CASES, UNUSUAL
from tests.sdk.attack.doors import DOORS, Door, adapters, rides_on_the_relay
from tests.sdk.attack.world import World
from x0tta6bl4.sdk.identity import BundleSource, verify_peer
from x0tta6bl4.wire.errors import Refused

SHARE = 8
"""By day a door meets every so manieth case; doors take turns, so that all are met."""
each_door = pytest.mark.parametrize("door", DOORS, ids=str)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as made:
        yield made


def test_the_lists_are_long_and_their_names_are_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 100
    assert len({one.name for one in UNUSUAL}) == len(UNUSUAL) >= 70
    assert sum(case.presentable for case in CASES) >= 98
    assert {case.name for case in CASES} >= STDLIB_SAYS.keys()


def test_every_adapter_has_a_door_or_rides_on_one_that_has() -> None:
    for adapter, doors in adapters().items():
        assert any(doors) or rides_on_the_relay(adapter), (
            f"sdk/frameworks/{adapter}.py: its test has neither serve(source, authorize) nor "
            "clients(source, authorize), see tests/sdk/attack/doors.py"
        )
    assert {door.role for door in DOORS} == {"server", "client"}
    assert {door.backend for door in DOORS} == {"pyopenssl", "stdlib"}


@each_door
def test_a_part_of_the_set(world: World, door: Door) -> None:
    at = DOORS.index(door) % SHARE
    count = carry(world, door, CASES[at::SHARE], UNUSUAL[at::SHARE])
    assert count.wrong == []
    assert count.refused >= len(CASES) // SHARE - 1
    assert count.twins >= len(CASES) // SHARE - 1
    assert count.unusual >= len(UNUSUAL) // SHARE - 2


@pytest.mark.night
@each_door
def test_the_whole_set(world: World, door: Door) -> None:
    count = carry(world, door)
    assert count.wrong == []
    assert count.refused >= 98
    assert count.unusual >= 70


def test_what_the_standard_library_can_not_is_true(world: World) -> None:
    """A strict list: what OpenSSL learns has to leave it."""
    (door,) = (one for one in DOORS if str(one) == "stdlib streams, server")
    only = [one for one in UNUSUAL if not one.plain]
    count = carry(world, door, (), [msgspec.structs.replace(one, plain=True) for one in only])
    assert len(count.wrong) == len(only) == 5


async def _verify(world: World) -> list[str]:
    wrong = []
    async with BundleSource(world.api.endpoint, jwt=False) as bundles:
        await bundles.wait(5)
        for case in CASES:
            chain = world.presented(case.name, case.wrong).chain
            try:
                verify_peer(chain, bundles, authorize=world.authorize)
                wrong.append(f"{case.name}: accepted")
            except Refused as refused:
                if refused.what != f"peer refused: {case.reason}":
                    wrong.append(f"{case.name}: {refused.what}")
        for name, make in [(one.name, one.make) for one in UNUSUAL] + [
            (case.name, case.right) for case in CASES
        ]:
            try:
                verify_peer(world.presented(name, make).chain, bundles, authorize=world.authorize)
            except Refused as refused:
                wrong.append(f"{name}: {refused.what}")
    return wrong


def test_all_of_it_at_the_judge(world: World) -> None:
    """Those that TLS can't present, too."""
    assert asyncio.run(_verify(world)) == []
