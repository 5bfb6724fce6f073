"""PID 1 of a guest: loads our programs, runs frames through them, says what came of it, ends.

One line for each check: `PASS name`, `FAIL name why` or `OLD name why` where the kernel has no such
thing.  The last line is `DONE`.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
import traceback
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Final

from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.kernel_world import World, hello, hello_frame
from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.filter import Filter, Member
from x0tta6bl4.edge.kernel.layout import Flag
from x0tta6bl4.edge.kernel.libbpf import KernelRefused, Libbpf
from x0tta6bl4.edge.kernel.programs import OBJECT, PROGRAMS, VERDICTS, Programs

TIMERS: Final = (5, 15)
_RESTART: Final = 0x01234567
_MESH: Final = IPv6Network("fd12:3456:789a::/48")
_PINS: Final = Path("/pins")


class TooOld(Exception):
    """This kernel has no such thing, and is not said to have it."""


def release() -> tuple[int, int]:
    """Of the running kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)))


def main() -> None:
    """Everything; never returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, where in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"devtmpfs", b"/dev")):
        libc.mount(kind, where, kind, 0, None)
    say(f"GUEST {os.uname().release}")
    for name in PROGRAMS:
        check(f"load {name}", lambda name=name: alone(name))  # type: ignore[misc]
    worlds: list[World] = []
    check("load all", lambda: worlds.append(World(_PINS)))
    for world in worlds:
        for name, one in CHECKS.items():
            world.clear()
            check(name, lambda one=one, world=world: one(world))  # type: ignore[misc]
    say("DONE")
    os.sync()
    libc.reboot(_RESTART)
    while True:
        time.sleep(1)


def say(line: str) -> None:
    """One line on the console."""
    print(line, flush=True)


def check(name: str, work: Callable[[], object]) -> None:
    """Run one check and say what came of it."""
    start = time.monotonic()
    try:
        work()
    except TooOld as error:
        say(f"OLD {name}: {error}")
    except (AssertionError, KernelRefused, OSError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        why = str(error).replace("\n", " ") or f"{where.line} ({where.name})"
        say(f"FAIL {name}: {why}")
    else:
        say(f"PASS {name} {1000 * (time.monotonic() - start):.0f} ms")


def alone(name: str) -> None:
    """One program by itself."""
    try:
        programs, maps = Libbpf().load(OBJECT, without=[one for one in PROGRAMS if one != name])
    except KernelRefused as error:
        if name == VERDICTS and release() < TIMERS:
            raise TooOld("Linux 5.15") from error
        raise
    for descriptor in (*programs.values(), *(one.fd for one in maps)):
        os.close(descriptor)


def good_hello(world: World) -> None:
    """Answered under our key, in both modes."""
    world.link()
    for sequence, (program, verdict) in enumerate(
        (("x0_ingress", kw.TX), ("x0_generic", kw.REDIRECT)), 1
    ):
        run = world.run(program, hello_frame(hello(sequence=sequence)))
        said = run.data[62:]
        assert run.verdict == verdict
        assert layout.HELLO.unpack(said)["tag"] == kw.siphash(kw.SEND, said[:-8])


def bad_hellos(world: World) -> None:
    """Forged, replayed and truncated ones are dropped and counted."""
    world.link()
    assert world.run("x0_ingress", hello_frame(hello())).verdict == kw.TX
    for frame in (
        hello_frame(hello()),
        hello_frame(hello(sequence=2, tag=1)),
        hello_frame(hello(sequence=2))[:-1],
        hello_frame(hello(sequence=2), hops=64),
    ):
        assert world.run("x0_ingress", frame).verdict == kw.DROP
    counted = world.counted()
    assert sum(counted.values()) == 5, counted
    assert len(counted) == 5, counted


def verdict(world: World) -> None:
    """By the kernel's timer; by user space where there is none."""
    if VERDICTS not in world.programs.programs:
        assert release() < TIMERS, world.programs.without_verdicts
        raise TooOld("Linux 5.15; user space says so there")
    dead_ns = 50_000_000
    world.link(dead_ns=dead_ns, suspect_ns=dead_ns // 2, late_ns=kw.SECOND)
    start = time.monotonic_ns()
    armed = world.programs.run(VERDICTS, context=layout.ARMED.pack(link=7))
    assert armed.verdict == 0
    while not world.state()["downs"]:
        assert time.monotonic_ns() - start < 5 * kw.SECOND, world.state()
        time.sleep(0.001)
    assert time.monotonic_ns() - start >= dead_ns
    assert world.state()["suspicions"] == 1


def diversion(world: World) -> None:
    """Of a link that is dead by whoever's verdict."""
    there, detour = IPv6Address("fd00::99"), bytes.fromhex("020000000008")
    world.link(8, peer_mac=detour)
    packet = diverted(world, there, link=8)
    world.link()
    assert world.run("x0_leave", packet).verdict == kw.OK
    world.link(flags=Flag.ACTIVE | Flag.DECLARED_DEAD)
    assert world.run("x0_leave", packet).data[:6] == detour
    world.link()
    world.state(downs=1)
    assert world.run("x0_leave", packet).data[:6] == detour
    world.state(8, downs=1)
    assert world.run("x0_leave", packet).data == packet


def diverted(world: World, there: IPv6Address, **alternate: Any) -> bytes:
    """A packet of link 7 for a destination that has this alternate."""
    route = layout.ROUTE.pack(prefix=160, link=7, target=there.packed)
    world.programs.maps["x0_alternates"].put(route, layout.ALTERNATE.pack(**alternate))
    packet = kw.ipv6(kw.udp(bytes(100), port=5000), IPv6Address("fd00::1"), there)
    return kw.ethernet(packet, target=kw.PEER, source=kw.MINE)


def repair(world: World) -> None:
    """Along a source route, within the headers that lead it."""
    there, detour = IPv6Address("fd00::99"), bytes.fromhex("020000000008")
    listed = there.packed + IPv6Address("fd00::5").packed
    packet = diverted(world, there, link=8, segments=2, source=bytes(15) + b"\1", segment=listed)
    world.link()
    world.link(8, peer_mac=detour)
    world.state(downs=1)
    led = world.run("x0_leave", packet)
    assert led.verdict == kw.REDIRECT
    assert led.data[:6] == detour
    assert led.data[38:62] == listed[16:] + bytes([41, 4, 4, 1, 1, 0, 0, 0]), led.data[:62].hex()
    assert led.data[62:] == listed + packet[14:]


def membership(world: World) -> None:
    """Members get in, at their rate; others do not."""
    world.link()
    filter = Filter(world.programs)
    filter.switch(_MESH)
    filter.set_members({_MESH[2]: Member(), _MESH[3]: Member(rate_pps=1, burst=1)})
    verdicts = [
        world.run(
            "x0_ingress", kw.ethernet(kw.ipv6(kw.udp(bytes(9), port=5000), source, _MESH[1]))
        ).verdict
        for source in (_MESH[2], _MESH[3], _MESH[3], _MESH[3], _MESH[4], IPv6Address("2001:db8::1"))
    ]
    assert verdicts == [kw.PASS] * 3 + [kw.DROP] * 3, verdicts


def adoption(world: World) -> None:
    """What is pinned goes on and is found again."""
    world.link(incarnation=77)
    world.programs.close()
    world.programs = Programs.open(Libbpf(), world.pins)
    assert world.programs.adopted
    assert layout.LINK.unpack(world.get("x0_links", 7))["incarnation"] == 77
    found = world.programs.maps["x0_counters"].get(struct.pack("I", 0))
    assert found is not None


CHECKS: Final = {
    "good hellos": good_hello,
    "bad hellos": bad_hellos,
    "verdict": verdict,
    "diversion": diversion,
    "repair": repair,
    "filter": membership,
    "adoption": adoption,
}

if __name__ == "__main__":
    main()
