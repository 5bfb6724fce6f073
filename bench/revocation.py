#!/usr/bin/env python3
"""How long access lasts after it was taken away, on every node; and who comes back.

    .venv/bin/python -m bench.revocation

Guests on two nodes hold connections over which the server counts without a pause, and make
requests.  Then, one after the other: policy withdraws the guest's access, the guest's identity is
revoked, two whole nodes are evicted (one that calls, one that serves).  The last byte must arrive
less than 1 s after the command has returned, nothing after it, while a shop's requests lose
nothing.  In a second mesh with short SVIDs a node is powered off for two lifetimes and returns by
itself; one that was evicted does not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.outcome import Outcome, run
from tests.real.lab import Lab, Service, Shape, Ticks, get_page, spiffe
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.story import Watcher
from x0tta6bl4.wire.authority import Entry, Key, NodeEvict, Page
from x0tta6bl4.wire.errors import X0Error

GUESTS = ("n6", "n4")
WATCH_S = 4.0


class Guests:
    """Connections and requests of those who will lose their access.

    Args:
        lab: where.
        ways: (node, service) pairs.
    """

    def __init__(self, lab: Lab, *ways: tuple[str, str]) -> None:
        self.ticks = {way: [Ticks(lab.plain(*way)) for _ in range(2)] for way in ways}
        self.loads: dict[tuple[str, str], Watcher] = {
            way: lab.load(*way, "--kept", "2", "--rate", "30", "--fresh", "5") for way in ways
        }
        wait_for(
            lambda: (
                all(t.count > 10 for each in self.ticks.values() for t in each)
                and all(any(s.ok for s in w.samples) for w in self.loads.values())
            ),
            "guests to get through",
        )

    def lose(self, command: Callable[[], object]) -> dict[str, float]:
        """Give the command that ends their access.

        Returns:
            `node service` -> ms from its return to the last byte; at least -1.
        """
        before = {w: self._broken(w) for w in self.ticks}
        command()
        returned = time.monotonic()
        time.sleep(WATCH_S)
        for load in self.loads.values():
            load.finish(5)
        lasted = {}
        for way, ticks in self.ticks.items():
            answers = [s.at + s.took for s in self.loads[way].samples if s.ok]
            last = max([t.last_at for t in ticks] + answers)
            lasted[" ".join(way)] = round(max(-1.0, (last - returned) * 1e3), 1)
            for tick in ticks:
                tick.stop()
        self.early = [f"{w}: {found}" for w, found in before.items() if found]
        self.open = sum(t.ended == "stopped" for each in self.ticks.values() for t in each)
        return lasted

    def _broken(self, way: tuple[str, str]) -> str:
        ended = [t.ended for t in self.ticks[way] if t.ended]
        failed = [s.why for s in self.loads[way].failed()]
        return ", ".join([*ended, *failed][:3])


def lose(
    outcome: Outcome,
    lab: Lab,
    name: str,
    ways: list[tuple[str, str]],
    command: Callable[[], object],
) -> None:
    """One way to lose access, measured and checked."""
    guests = Guests(lab, *ways)
    lasted = guests.lose(command)
    outcome.figure(f"{name}_last_byte_ms", lasted)
    outcome.check(f"{name}: guests got through before", not guests.early, guests.early)
    outcome.check(f"{name}: last byte < 1 s after the command", max(lasted.values()) < 1000, lasted)
    outcome.check(f"{name}: connections were ended", guests.open == 0, f"{guests.open} still open")
    open_doors = [way for way in ways if _gets(lab, way)]
    outcome.check(f"{name}: new connections are refused", not open_doors, open_doors)


def _gets(lab: Lab, way: tuple[str, str]) -> bool:
    """Whether anything at all comes through."""
    return get_page(lab.plain(*way), 3) != b""


def withdraw(outcome: Outcome, lab: Lab) -> None:
    """By policy, and back again."""
    ways = [(node, "web") for node in GUESTS]
    lose(outcome, lab, "policy", ways, lambda: lab.set_callers("web", "shop"))
    lab.set_callers("web", "shop", "guest", "visitor")
    for node in GUESTS:
        lab.wait_page(node)


def revoke(outcome: Outcome, lab: Lab) -> None:
    """A workload's identity, for good."""
    ways = [(node, "web") for node in GUESTS]
    lose(outcome, lab, "workload", ways, lambda: lab.operator.revoke(spiffe("guest"), "measured"))


def evict(outcome: Outcome, lab: Lab) -> None:
    """A node with a caller and a node with a service, and everything issued through them."""
    for entry in lab.operator.call("EntryList", Page(match="guest")).entries:
        if entry.node == "n6":
            uid = entry.selectors
            lab.operator.call("EntryDelete", Key(key=entry.key))
    lab.operator.create_entries([Entry(id=spiffe("visitor"), node="n6", selectors=uid)])
    lab.wait_page("n6")

    def command() -> None:
        for node in ("n6", "n2"):
            lab.operator.call("NodeEvict", NodeEvict(node=node, reason="measured"))

    lose(outcome, lab, "node", [("n6", "web"), ("n1", "store")], command)


def lost_access(outcome: Outcome, lab: Lab, acts: str) -> None:
    """Some of policy, workload and node, under a shop's load that must lose nothing."""
    shop = lab.load("n1", "web", "--kept", "8", "--rate", "90", "--fresh", "10")
    for act in acts.split(","):
        {"policy": withdraw, "workload": revoke, "node": evict}[act](outcome, lab)
    shop.finish(10)
    failed = shop.failed()
    outcome.figure("shop_requests", len(shop.samples))
    outcome.check(
        "others lost nothing",
        bool(shop.samples) and not failed,
        [s.why for s in failed[:3]] or len(shop.samples),
    )


def returns(outcome: Outcome, lab: Lab) -> None:
    """Off for two lifetimes, then on again; once as a member, once evicted."""
    ttl = lab.shape.ttl_s
    for node in ("n6", "n4"):
        lab.mesh.kill(node)
    lab.operator.call("NodeEvict", NodeEvict(node="n4", reason="measured"))
    time.sleep(2 * ttl)
    began = time.monotonic()
    for node in ("n6", "n4"):
        lab.mesh.start(node)
    try:
        wait_for(lambda: lab.gets_page("n6"), "n6 to return", 30)
        found = f"{time.monotonic() - began:.1f} s"
        outcome.figure("return_s", round(time.monotonic() - began, 2))
    except X0Error as error:
        found = f"{error}; {lab.mesh.tail('n6')}"
    outcome.check(
        "a node that was off for two lifetimes returns", "return_s" in outcome.figures, found
    )
    time.sleep(max(0.0, began + ttl - time.monotonic()))
    came = lab.gets_page("n4")
    up = [
        link.node
        for n in ("n1", "n3", "n5")
        for link in lab.status(n).links
        if link.node == "n4" and link.state == "up"
    ]
    outcome.check("an evicted node does not return", not came and not up, f"page {came}, {up}")


def shape(ttl_s: int = 3600) -> Shape:
    """The mesh for it."""
    return Shape(
        services=(
            Service("web", ("n3", "n5"), ("shop", "guest", "visitor")),
            Service("store", ("n2",), ("shop",)),
        ),
        callers=(("n1", "shop"), *((node, "guest") for node in GUESTS)),
        ttl_s=ttl_s,
    )


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """Both meshes, one after the other."""
    with Lab(root / "one", shape()) as lab:
        lab.start()
        lost_access(outcome, lab, options.acts)
    if options.ttl:
        with Lab(root / "two", shape(options.ttl)) as lab:
            lab.start()
            returns(outcome, lab)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="revocation, eviction, withdrawal, return")
    words.add_argument("--acts", default="policy,workload,node")
    words.add_argument("--ttl", type=int, default=20, help="of the second mesh; 0: no second")
    return words


def main() -> int:
    """Command line."""
    return run("revocation", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
