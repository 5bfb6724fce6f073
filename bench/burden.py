#!/usr/bin/env python3
"""What keeps a machine busy beside the thing that is measured; each verb until SIGTERM.

    bench/burden.py hog                                one processor, all of it
    bench/burden.py spf NODES                          distances in a mesh of so many, every second
    bench/burden.py sink ADDRESS PORT                  takes UDP
    bench/burden.py send ADDRESS PORT FROM MBIT        sends it UDP, MBIT/s of payload

All but the hog print a JSON line every second: `ms` of the search, or `bytes` so far.  Datagrams
have 1,400 bytes; 16 of them are handed to the kernel at a time (UDP_SEGMENT), and travel joined
over cables that take it, as TCP's segments do.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import time

from x0tta6bl4.core.routing.map import Map
from x0tta6bl4.core.routing.paths import Tree
from x0tta6bl4.wire.records import Adjacency

PAYLOAD, JOINED = 1400, 16
LINKS = 3
LATE_S = 0.02
"""What a sender that came late makes up for; the rest is not sent."""
_UDP_SEGMENT, _UDP_GRO, _SO_RCVBUFFORCE = 103, 104, 33


def tell(**what: float) -> None:
    """A line for whoever started this."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def mesh(nodes: int) -> Map:
    """A random mesh: every node has links to LINKS earlier ones."""
    chance = random.Random(1)
    near: list[dict[int, int]] = [{} for _ in range(nodes)]
    for node in range(1, nodes):
        for other in {chance.randrange(node) for _ in range(LINKS)}:
            near[node][other] = near[other][node] = chance.randint(1, 400)
    found = Map("m0")
    for node, links in enumerate(near):
        found.say(f"m{node}", [Adjacency(f"m{x}", cost, dials=True) for x, cost in links.items()])
    return found


def spf(nodes: int) -> None:
    """The search of the product's own routing, from the beginning, every second."""
    tree = Tree(mesh(nodes))
    due = time.monotonic()
    while True:
        began = time.monotonic()
        tree.build()
        tell(ms=round((time.monotonic() - began) * 1e3, 1), reached=len(tree.distance))
        due = max(due + 1, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def sink(address: str, port: int) -> None:
    """Take what comes."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as taking:
        taking.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        taking.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        taking.bind((address, port))
        taking.settimeout(1.0)
        total, told, space = 0, time.monotonic(), bytearray(1 << 16)
        while True:
            try:
                total += taking.recv_into(space)
            except TimeoutError:
                pass
            if time.monotonic() >= told + 1:
                told = time.monotonic()
                tell(bytes=total)


def send(address: str, port: int, source: str, mbit: int) -> None:
    """Send at a steady rate, as far as the machine lets it."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sending:
        sending.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, PAYLOAD)
        sending.bind((source, 0))
        sending.connect((address, port))
        block = random.Random(1).randbytes(PAYLOAD * JOINED)
        gap = len(block) * 8 / (mbit * 1e6)
        due = told = time.monotonic()
        total = 0
        while True:
            now = time.monotonic()
            due = max(due, now - LATE_S)
            while due <= now:
                try:
                    total += sending.send(block)
                except OSError:
                    time.sleep(0.001)  # No way, or no room: as good as lost.
                due += gap
            if now >= told + 1:
                told = now
                tell(bytes=total)
            time.sleep(max(0.0, due - time.monotonic(), 0.0005))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="burdens for measurements")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("hog")
    verbs.add_parser("spf").add_argument("nodes", type=int)
    for verb in ("sink", "send"):
        words = verbs.add_parser(verb)
        words.add_argument("address")
        words.add_argument("port", type=int)
        if verb == "send":
            words.add_argument("source")
            words.add_argument("mbit", type=int)
    options = parser.parse_args()
    if options.verb == "spf":
        spf(options.nodes)
    elif options.verb == "sink":
        sink(options.address, options.port)
    elif options.verb == "send":
        send(options.address, options.port, options.source, options.mbit)
    while True:
        pass


if __name__ == "__main__":
    main()
