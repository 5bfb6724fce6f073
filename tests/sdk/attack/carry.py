"""Carries cases out at a door, and counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tests.edge.attack.cases import STDLIB_SAYS
from tests.sdk.attack.certificates import CASES, UNUSUAL, Case, Unusual
from tests.sdk.attack.doors import Door, Opened, meet
from tests.sdk.attack.world import World
from x0tta6bl4.edge.tls.recipes import Presented

PROTOCOL: Final[tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...]] = (
    ("TLS 1.2 only", {"only_tls12": True}, ("tls version", "alert from peer: protocol version",
     "alert from peer: tlsv1 alert protocol version")),
    ("no certificate", {}, ("no certificate",)),
)  # fmt: skip
"""(name, how the attacker behaves, reasons)."""


class Count(msgspec.Struct):
    """What came of a door."""

    refused: int = 0
    twins: int = 0
    unusual: int = 0
    wrong: list[str] = msgspec.field(default_factory=list)
    """What should not have been: nothing."""


async def _carry(
    world: World, door: Door, cases: Sequence[Case], unusual: Sequence[Unusual], count: Count
) -> None:
    stdlib = door.backend == "stdlib"
    async with door.open(world) as opened:
        await _protocol(world, door, opened, count)
        for case in cases:
            if not case.presentable or (stdlib and not case.plain):
                continue
            said = {STDLIB_SAYS.get(case.name, case.reason) if stdlib else case.reason}
            seen = await meet(door, opened, world.presented(case.name, case.wrong))
            count.refused += 1
            if not seen.refused_for(*said):
                count.wrong.append(f"{door}: {case.name}: not {said}: {seen}")
            seen = await meet(door, opened, world.presented(case.name, case.right))
            count.twins += 1
            if not seen.accepted:
                count.wrong.append(f"{door}: twin of {case.name}: {seen}")
        for one in unusual:
            if stdlib and not one.plain:
                continue
            seen = await meet(door, opened, world.presented(one.name, one.make))
            count.unusual += 1
            if not seen.accepted:
                count.wrong.append(f"{door}: {one.name}: {seen}")


async def _protocol(world: World, door: Door, opened: Opened, count: Count) -> None:
    """Tricks that have nothing to do with certificates."""
    good = world.presented("proper", _proper)
    for name, how, reasons in PROTOCOL:
        if name == "no certificate" and door.role == "client":
            continue  # A server has to have one.
        seen = await meet(door, opened, None if name == "no certificate" else good, **how)
        count.refused += 1
        if not seen.refused_for(*reasons):
            count.wrong.append(f"{door}: {name}: {seen}")
    count.twins += 1
    if not (await meet(door, opened, good)).accepted:
        count.wrong.append(f"{door}: a proper peer")


def _proper(world: World) -> Presented:
    return world.make({})


def carry(
    world: World,
    door: Door,
    cases: Sequence[Case] = CASES,
    unusual: Sequence[Unusual] = UNUSUAL,
) -> Count:
    """Carry these cases out at one door."""
    count = Count()
    with asyncio.Runner(loop_factory=door.loop) as runner:
        runner.run(_carry(world, door, cases, unusual, count))
    return count
