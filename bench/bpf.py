#!/usr/bin/env python3
"""The programs in the kernel: nanoseconds per packet, a cut, a flood of bad hellos.

    .venv/bin/python -m bench.bpf --part packets --part cut --part calm --part flood

Packets are measured by PROG_TEST_RUN, which runs a program a million times on one frame; what that
itself takes is the time of a frame of no interest.  The cut and the flood are real: three network
namespaces, their own cables, nothing outside.  It takes root.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

from bench.outcome import Outcome, run
from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.kernel_world import World, hello, hello_frame
from tests.edge.kernel.space import Space, link_local
from tests.edge.kernel.triangle import NUMBERS, Node, Triangle, until
from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.detector import Pace
from x0tta6bl4.edge.kernel.filter import Filter, Member
from x0tta6bl4.edge.kernel.layout import EventKind, Kind, Reason

PARTS = ("packets", "cut", "calm", "flood")
MESH = IPv6Network("fd12:3456:789a::/48")
ME = MESH[1]
DROP_NS_MAX = 100
TURNS = 9
OUTAGE_MS = (5.0, 10.0)
"""Median and longest after a silent cut."""
AB, AC, BA, CA = (NUMBERS[way] for way in ("ab", "ac", "ba", "ca"))


# ------------------------------------------------------------------ packets
def packets(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """Every way through the programs."""
    with Space() as space:
        world = World(root / "packets")
        try:
            _ways(outcome, world, options)
            _members(outcome, world, options)
        finally:
            world.programs.remove()
    space.close()


def _ways(outcome: Outcome, world: World, options: argparse.Namespace) -> None:
    world.clear()
    world.link()
    arp = kw.MINE + kw.PEER + b"\x08\x06" + bytes(104)
    old = hello(kind=Kind.ANSWER)
    world.run("x0_ingress", hello_frame(old))
    frames = {
        "nothing for us": arp,
        "truncated": hello_frame(old)[:-1],
        "unknown link": hello_frame(hello(session=9)),
        "reflected": hello_frame(hello(kw.SEND), source=kw.LOCAL, target=kw.REMOTE),
        "forged": hello_frame(hello(tag=1)),
        "replayed": hello_frame(old),
    }
    for program in ("x0_ingress", "x0_generic"):
        runs = _in_turn(world, program, frames, options)
        taken = {name: round(statistics.median(found)) for name, found in runs.items()}
        outcome.figure(f"{program}: ns per frame", taken)
        least = {name: min(found) for name, found in runs.items()}
        outcome.figure(f"{program}: ns per frame, least of {TURNS} runs", least)
        if program == "x0_ingress":
            worst = max(ns for name, ns in taken.items() if name != "nothing for us")
            outcome.check(
                f"a bad hello is dropped within {DROP_NS_MAX} ns",
                worst <= DROP_NS_MAX,
                f"{worst} ns with the test's own {taken['nothing for us']} ns, at least"
                f" {max(least.values())} ns with {least['nothing for us']} ns",
            )
    data = kw.ethernet(
        kw.ipv6(kw.udp(bytes(100), port=5000), ME, MESH[2]), target=kw.PEER, source=kw.MINE
    )
    outcome.figure("x0_leave: ns per packet of a live link", _ns(world, "x0_leave", data, options))


def _members(outcome: Outcome, world: World, options: argparse.Namespace) -> None:
    source = MESH[1 << 40]
    frame = kw.ethernet(kw.ipv6(kw.udp(bytes(100), port=5000), source, ME))
    taken = {}
    for count in (0, 1_000, 65_000):
        world.clear()
        world.link()
        filter = Filter(world.programs)
        filter.switch(MESH)
        members = {IPv6Address(int(source) + at): Member() for at in range(count)}
        filter.set_members(members)
        taken[f"{count} members"] = _ns(world, "x0_ingress", frame, options)
    filter.set_members({source: Member(rate_pps=1_000_000_000)})
    taken["with a rate"] = _ns(world, "x0_ingress", frame, options)
    filter.switch(MESH, on=False)
    taken["switched off"] = _ns(world, "x0_ingress", frame, options)
    outcome.figure("filter: ns per packet", taken)


def _in_turn(
    world: World, program: str, frames: dict[str, bytes], options: argparse.Namespace
) -> dict[str, list[int]]:
    """Nanoseconds of each run; frames take turns, so that a slow second is slow for all."""
    found: dict[str, list[int]] = {name: [] for name in frames}
    for _ in range(TURNS):
        for name, frame in frames.items():
            found[name].append(world.run(program, frame, repeat=options.repeat).nanoseconds)
    return found


def _ns(world: World, program: str, frame: bytes, options: argparse.Namespace) -> int:
    """The median of as many runs."""
    return round(statistics.median(_in_turn(world, program, {"": frame}, options)[""]))


# ------------------------------------------------------------------ a cut
@contextlib.contextmanager
def _nodes(triangle: Triangle, root: Path, pace: Pace) -> Iterator[dict[str, Node]]:
    nodes = {name: Node(triangle, name, root / name, pace) for name in "abc"}
    try:
        for name, others in (("a", "bc"), ("b", "a"), ("c", "a")):
            for other in others:
                nodes[name].watch(triangle, other)
        for name, numbers in (("a", (AB, AC)), ("b", (BA,)), ("c", (CA,))):
            for number in numbers:
                nodes[name].revive(number)
        nodes["a"].detector.set_alternates(AB, [triangle.alternate("ac", "b")])
        yield nodes
    finally:
        for node in nodes.values():
            node.remove()


def cut(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """A link that drops everything silently, with a detour over a third node."""
    for hello_us in (2_500, 1_500):
        with Triangle() as triangle, _nodes(triangle, root, Pace(hello_us=hello_us)) as nodes:
            _cuts(outcome, triangle, nodes, hello_us, options.cuts)


def _cuts(
    outcome: Outcome, triangle: Triangle, nodes: dict[str, Node], hello_us: int, times: int
) -> None:
    a, b = nodes["a"], nodes["b"]
    outages: list[float] = []
    verdicts: list[float] = []
    gaps: list[float] = []
    for _ in range(times):
        with triangle.probes("a", "b") as probes:
            until(lambda: len(probes.came) > 50)
            start_us = time.monotonic_ns() / 1000
            triangle.cut("ba")
            until(lambda: a.told(AB, EventKind.DOWN))
            time.sleep(0.05)
        down = next(one for one in a.events() if one.kind == EventKind.DOWN)
        verdicts.append((down.at_us - start_us) / 1000)
        outages.append(probes.outage_ms())
        triangle.heal("ba")
        with triangle.probes("a", "b") as probes:
            a.revive(AB)
            b.revive(BA)
            time.sleep(0.05)
        gaps.append(probes.outage_ms())
    report = a.detector.report(AB)
    outcome.figure(
        f"silent cut, a hello every {hello_us / 1000:g} ms",
        {
            "runs": times,
            "outage ms, median": round(statistics.median(outages), 1),
            "outage ms, most": round(max(outages), 1),
            "verdict ms after the cut, median": round(statistics.median(verdicts), 1),
            "verdict ms after the cut, most": round(max(verdicts), 1),
            "false verdicts": report.downs - 1 - times,
            "verdicts not given": report.late,
        },
    )
    if hello_us == 2_500:
        found = (statistics.median(outages), max(outages))
        outcome.check(
            f"outage of a silent cut at most {OUTAGE_MS[0]:g} ms in the median, {OUTAGE_MS[1]:g} ms"
            " ever",
            found[0] <= OUTAGE_MS[0] and found[1] <= OUTAGE_MS[1],
            f"{found[0]:.1f} / {found[1]:.1f} ms",
        )
        outcome.check("no gap when the link is used again", max(gaps) == 0, f"{max(gaps):g} ms")


# ------------------------------------------------------------------ nothing happens
def calm(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """No fault at all, without and with processes that take all of the CPU."""
    for hogs in (0, 4):
        with Triangle() as triangle, _nodes(triangle, root, Pace()) as nodes:
            a = nodes["a"].detector
            start = [a.report(number) for number in (AB, AC)]
            before = _spent(nodes["a"])
            others = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(hogs)
            ]
            try:
                with _statistics(), triangle.probes("a", "b") as probes:
                    time.sleep(options.calm)
            finally:
                for one in others:
                    one.kill()
                    one.wait()
            end = [a.report(number) for number in (AB, AC)]
            spent = _spent(nodes["a"]) - before
        grown = {
            name: sum(getattr(y, name) - getattr(x, name) for x, y in zip(start, end, strict=True))
            for name in ("asked", "answers", "suspicions", "downs", "late")
        }
        lost = len(probes.lost())
        outcome.figure(
            f"{options.calm} s without a fault, {hogs} hogs",
            {
                **grown,
                "lost": lost,
                "programs of a node with two links: % of a core": round(
                    spent / options.calm / 1e7, 2
                ),
            },
        )
        outcome.check(f"no false verdict with {hogs} hogs", not grown["downs"], grown["downs"])
        outcome.check(f"no packet lost with {hogs} hogs", not lost, lost)


@contextlib.contextmanager
def _statistics() -> Iterator[None]:
    """Let the kernel count what programs take; what it was set to before comes back."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    switch.write_text("1")
    try:
        yield
    finally:
        switch.write_text(before)


def _spent(node: Node) -> int:
    """Nanoseconds in all of a node's programs; the timer's are not counted by the kernel."""
    programs = node.programs
    return sum(programs.library.spent(one)[0] for one in programs.programs.values())


# ------------------------------------------------------------------ a flood
def flood(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """Bad hellos at a rate, from the far end of the cable, while the link works."""
    with Triangle() as triangle, _nodes(triangle, root, Pace()) as nodes:
        a, b = nodes["a"], nodes["b"]
        frames = _bad(triangle)
        before = a.programs.counters()
        downs = a.detector.report(AB).downs
        sender = _Sender(triangle.spaces["b"], "ba", frames, options.rate)
        sender.start()
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            for node in (a, b):
                with node.space:
                    node.detector.renew()
            time.sleep(0.5)
        sender.stop()
        time.sleep(0.1)
        after = a.programs.counters()
        report = a.detector.report(AB)
    grown = {reason: after[reason] - before[reason] for reason in Reason}
    bad = (Reason.HELLO_FORGED, Reason.HELLO_REPLAYED, Reason.HELLO_MISADDRESSED)
    dropped = sum(grown[reason] for reason in (*bad, Reason.HELLO_TRUNCATED))
    outcome.figure(
        "flood",
        {
            "seconds": options.seconds,
            "frames sent": sender.sent,
            "per second": round(sender.sent / sender.took_s),
            **{reason.name: count for reason, count in grown.items() if count},
        },
    )
    outcome.check(
        f"at least {options.rate} bad hellos a second",
        sender.sent >= 0.95 * options.rate * options.seconds,
        round(sender.sent / sender.took_s),
    )
    outcome.check("every one was dropped and counted", dropped == sender.sent, dropped)
    asked = options.seconds / 0.0025 * 2
    good = grown[Reason.HELLO_ANSWERED] + grown[Reason.HELLO_ACCEPTED]
    outcome.check("none was accepted", good <= asked * 2 * 1.05, f"{good} good ones on two links")
    outcome.check("the link stayed up", report.downs == downs and not report.dead, report.downs)


def _bad(triangle: Triangle) -> list[bytes]:
    """One of each kind, addressed as the real ones are; the replayed one was heard on the wire."""
    mine, theirs = triangle.spaces["a"].mac("ab"), triangle.spaces["b"].mac("ba")
    local, peer = link_local(mine), link_local(theirs)
    replayed = reflected = b""
    with triangle.spaces["b"], socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("ba", 3))  # ETH_P_ALL: what leaves, too
        sock.settimeout(2)
        while not (replayed and reflected):
            frame = sock.recv(2048)
            if frame[62:64] == bytes([layout.VERSION, Kind.REQUEST]):
                if frame[:6] == mine:
                    replayed = frame
                elif frame[:6] == theirs:
                    reflected = frame
    back = mine + theirs + reflected[12:22] + peer.packed + local.packed + reflected[54:]

    def framed(said: bytes, source: IPv6Address = peer) -> bytes:
        return kw.ethernet(kw.ipv6(kw.udp(said), source, local), target=mine, source=theirs)

    return [
        framed(hello(session=AB, tag=1, incarnation=1 << 62)),
        replayed,
        back,
        framed(hello(session=200)),
        framed(hello(session=AB), IPv6Address("fe80::77")),
        framed(hello(session=AB))[:-3],
    ]


class _Sender(threading.Thread):
    """Frames in turn at a rate, in bursts of a millisecond."""

    def __init__(self, space: Space, device: str, frames: list[bytes], rate: int) -> None:
        super().__init__()
        with space:
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._sock.bind((device, 0))
        self._frames = frames
        self._rate = rate
        self._ended = threading.Event()
        self.sent = 0
        self.took_s = 0.0

    def run(self) -> None:
        start = time.monotonic()
        while not self._ended.is_set():
            due = int((time.monotonic() - start) * self._rate)
            for _ in range(due - self.sent):
                self._sock.send(self._frames[self.sent % len(self._frames)])
                self.sent += 1
            time.sleep(0.001)
        self.took_s = time.monotonic() - start

    def stop(self) -> None:
        self._ended.set()
        self.join()
        self._sock.close()


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """The parts that were asked for."""
    root.mkdir(mode=0o700)
    for part in options.part or PARTS:
        {"packets": packets, "cut": cut, "calm": calm, "flood": flood}[part](outcome, root, options)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--repeat", type=int, default=1_000_000)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--calm", type=int, default=20, help="seconds without a fault")
    parser.add_argument("--seconds", type=int, default=60, help="of the flood")
    parser.add_argument("--rate", type=int, default=100_000, help="bad hellos per second")
    return run("bpf", measure, parser)


if __name__ == "__main__":
    sys.exit(main())
