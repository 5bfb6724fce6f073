#!/usr/bin/env python3
"""Programming the kernel's routes: 10,000 of them, one next hop under them, one link of a mesh.

    .venv/bin/python -m bench.routes

Everything happens in a network namespace of its own, which takes root and goes with the process.
The peers do the same work in the same run: `ip -batch` and pyroute2, which has no next-hop objects
and so has to write every route again when a next hop changes.

The mesh is random: every node has links to three earlier ones.  After each change of a link the
measured time is that from the new record to the kernel's answer, by the same `Plane` as in a node:
distances from all neighbours, next hops, alternates, and the routes that differ.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from ipaddress import IPv6Address
from pathlib import Path
from random import Random
from typing import Any

from bench.outcome import Outcome, run
from x0tta6bl4.core.routing.alternates import Alternates, Way
from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel import sysctl
from x0tta6bl4.edge.kernel.netlink import Netlink
from x0tta6bl4.edge.kernel.plane import Adjacent, Plane
from x0tta6bl4.edge.kernel.routes import PROTOCOL, Course, Exit, KernelRoutes
from x0tta6bl4.edge.kernel.sysctl import Sysctls
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address, mesh_prefix
from x0tta6bl4.wire.records import Adjacency

DOMAIN = TrustDomain("example.org")
CABLES = 8
LINK_CHANGE_MS = 10.0
_CLONE_NEWNET = 0x40000000


def address(name: str) -> bytes:
    return mesh_address(DOMAIN, NodeName(name)).packed


def tool(command: str, text: str = "") -> None:
    """Run a command; it must work."""
    done = subprocess.run(
        command.split(), input=text.encode(), capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()


def clocked(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def enter_namespace() -> None:
    """A namespace with CABLES cables, all ends in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise Unavailable("X0-KRN-100", "no network namespace can be made", "this takes root")
    tool("ip link set lo up")
    for at in range(CABLES):
        tool(f"ip link add v{at} type veth peer name w{at}")
        for name in (f"v{at}", f"w{at}"):
            Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")
            tool(f"ip link set {name} up")


class Kernel:
    """The namespace's routes, and the neighbours behind its cables."""

    def __init__(self, name: str) -> None:
        self.netlink = Netlink()
        self.routes = KernelRoutes(self.netlink, mesh_prefix(DOMAIN), address(name))
        self.routes.start()
        index = {link.name: link.index for link in self.routes.links.values()}
        self.exits = [
            Exit(index[f"v{at}"], bytes([0xFE, 0x80, *bytes(13), at + 1])) for at in range(CABLES)
        ]

    def close(self) -> None:
        self.routes.stop()
        self.netlink.close()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------------ many routes
def targets(count: int) -> list[bytes]:
    return [address(f"n{at}") for at in range(count)]


def ours(count: int, alternates: bool) -> tuple[float, float]:
    """Routes per second: by the clock, and by the CPU."""
    with Kernel("me") as kernel:
        exits = kernel.exits
        courses: list[Course] = [
            (exits[at], exits[(at + 1) % CABLES] if alternates else None) for at in range(CABLES)
        ]
        table = {target: courses[at % CABLES] for at, target in enumerate(targets(count))}
        start, cpu = time.perf_counter(), time.process_time()
        done = kernel.routes.apply(table)
        taken, burnt = time.perf_counter() - start, time.process_time() - cpu
        assert not done.refused, done.refused[:3]
        assert done.routes_put == count * (1 + alternates)
        again = clocked(lambda: kernel.routes.apply(table))
        assert again < taken
        return done.routes_put / taken, done.routes_put / burnt


def ip_batch(count: int) -> float:
    """Routes per second of `ip -batch`, with one next-hop object."""
    tool("ip nexthop add id 5 via fe80::1 dev v0 protocol 121")
    lines = [f"route add {IPv6Address(t)}/128 nhid 5 proto 121 metric 64" for t in targets(count)]
    taken = clocked(lambda: tool("ip -6 -batch -", "\n".join(lines)))
    tool("ip nexthop flush protocol 121")
    return count / taken


def pyroute2(count: int) -> tuple[float, float]:
    """Routes per second of pyroute2: made, and led over another gateway."""
    library: Any = import_module("pyroute2")
    with library.IPRoute() as ipr:
        index = ipr.link_lookup(ifname="v0")[0]

        def write(verb: str, gateway: str) -> None:
            for target in targets(count):
                ipr.route(
                    verb, dst=f"{IPv6Address(target)}/128", gateway=gateway, oif=index, proto=121,
                    priority=64, family=10,
                )  # fmt: skip

        made = clocked(lambda: write("add", "fe80::1"))
        led = clocked(lambda: write("replace", "fe80::2"))
    tool("ip -6 route flush proto 121")
    return count / made, count / led


# ------------------------------------------------------------------ one next hop
def next_hop(count: int, compatible: str, times: int) -> list[float]:
    """Microseconds for each change of the one next hop under so many routes."""
    sysctls = Sysctls(None)
    sysctls.set(sysctl.COMPATIBLE_NEXT_HOPS, compatible)
    with Kernel("me") as kernel:
        first, second = kernel.exits[:2]
        table: dict[bytes, Course] = dict.fromkeys(targets(count), (first, second))
        assert not kernel.routes.apply(table).refused
        spent = []
        for at in range(times):
            start = time.perf_counter()
            done = kernel.routes.cut(first.neighbour, at % 2 == 0)
            spent.append((time.perf_counter() - start) * 1e6)
            assert (done.next_hops_put, done.refused) == (1, ())
    return spent


def ip_next_hop(count: int, times: int) -> float:
    """Microseconds for each change by `ip -batch`, of which one process makes many."""
    netlink = Netlink()
    index = _index(netlink, "v0")
    requests = [rt.put_next_hop(rt.NextHop(5, index, _gateway(1), protocol=PROTOCOL))]
    requests += [rt.put_route(rt.Route(t, 128, 64, 5, protocol=PROTOCOL)) for t in targets(count)]
    netlink.carry_out("routes", requests)
    lines = [f"nexthop replace id 5 via fe80::{1 + at % 2} dev v{at % 2}" for at in range(times)]
    taken = clocked(lambda: tool("ip -batch -", "\n".join(lines)))
    netlink.carry_out("next hop", [rt.drop_next_hop(5)])
    netlink.close()
    return taken / times * 1e6


def _index(netlink: Netlink, name: str) -> int:
    asked = netlink.dump("links", rt.GET_LINK, rt.ALL_LINKS)
    return next(link.index for one in asked if (link := rt.read_link(one)) and link.name == name)


def _gateway(number: int) -> bytes:
    return bytes([0xFE, 0x80, *bytes(13), number])


# ------------------------------------------------------------------ one link of a mesh
class Mesh:
    """A random mesh, its map at the node in its middle, and that node's routes."""

    def __init__(self, nodes: int) -> None:
        random = Random("bench/routes")
        self.names = [f"n{at}" for at in range(nodes)]
        self.near: dict[str, dict[str, int]] = {name: {} for name in self.names}
        for at, name in enumerate(self.names):
            for other in random.sample(self.names[:at], min(at, 3)):
                self.set(name, other, random.randint(8, 200))
        degrees = {name: len(near) for name, near in self.near.items()}
        self.me = min(self.names, key=lambda name: (abs(degrees[name] - CABLES + 1), name))
        self.map = Alternates(self.me)
        for name in self.names:
            self.tell(name)

    def set(self, a: str, b: str, cost: int) -> None:
        for here, there in ((a, b), (b, a)):
            self.near[here].pop(there, None)
            if cost:
                self.near[here][there] = cost

    def tell(self, name: str) -> None:
        self.map.say(name, [Adjacency(n, cost, True) for n, cost in self.near[name].items()])


def adjacent(names: Iterable[str]) -> list[Adjacent]:
    """Neighbours behind the cables."""
    netlink = Netlink()
    found = [
        Adjacent(
            NodeName(name), _index(netlink, f"v{at}"), _gateway(at + 1), b"\2\0\0\0\0" + bytes([at])
        )
        for at, name in enumerate(names)
    ]
    netlink.close()
    return found


def link_changes(outcome: Outcome, nodes: int, times: int) -> None:
    """One link after the other changes: of the whole mesh, then of this node."""
    mesh = Mesh(nodes)
    random = Random("bench/routes/changes")
    neighbours = sorted(mesh.near[mesh.me])
    plane = Plane(DOMAIN, NodeName(mesh.me), None)
    assert not plane.start(adjacent(neighbours))

    def put(ways: Mapping[str, Way | None]) -> int:
        """Routes written."""
        done = plane.table(ways)
        assert not done.refused, done.refused[:3]
        return done.routes_put + done.routes_dropped

    def repair() -> None:
        """Source routes come after the table."""
        while mesh.map.unrepaired:
            put(mesh.map.repair())

    first = clocked(lambda: put(mesh.map.update()))
    repaired = clocked(repair)
    outcome.figure(
        "the whole table",
        {
            "nodes": nodes,
            "neighbours": len(neighbours),
            "ms": round(first * 1e3, 1),
            "ms for source routes": round(repaired * 1e3, 1),
        },
    )
    everywhere = sorted((a, b) for a in mesh.names for b in mesh.near[a] if a < b)
    here = [(mesh.me, other) for other in neighbours]
    for what, links in (("any link", random.sample(everywhere, times)), ("own link", here * 8)):
        spent: list[tuple[float, float, int]] = []
        for a, b in links:
            before = mesh.near[a][b]
            for cost in (0, before, before * 4, before):
                mesh.set(a, b, cost)
                mesh.tell(a)
                mesh.tell(b)
                start = time.perf_counter()
                ways = mesh.map.update()
                found = time.perf_counter()
                routes = put(ways)
                spent.append(((time.perf_counter() - start) * 1e3, (found - start) * 1e3, routes))
                repair()
            assert not plane.look()
        figures = spread([ms for ms, _, _ in spent])
        figures["median of the search"] = round(statistics.median(ms for _, ms, _ in spent), 2)
        figures["routes"] = round(statistics.mean(routes for _, _, routes in spent), 1)
        figures["routes at most"] = max(routes for _, _, routes in spent)
        outcome.figure(f"{what} changes: ms", figures)
        outcome.check(
            f"{what} of {nodes} nodes changes: routes in force within {LINK_CHANGE_MS:g} ms"
            " in 99 of 100",
            figures["99 %"] <= LINK_CHANGE_MS,
            f"{figures['99 %']} ms",
        )
    assert not plane.stop()


def spread(values: Iterable[float]) -> dict[str, float]:
    found = sorted(values)
    return {
        "median": round(statistics.median(found), 2),
        "99 %": round(found[min(len(found) - 1, len(found) * 99 // 100)], 2),
        "most": round(found[-1], 2),
    }


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """All of it, in one run."""
    enter_namespace()
    Sysctls(None).set(sysctl.COMPATIBLE_NEXT_HOPS, "0")
    count = options.routes
    for name, alternates in (("ours", False), ("ours, each with its alternate", True)):
        rates = [ours(count, alternates) for _ in range(options.runs)]
        outcome.figure(
            f"{name}: routes/s",
            {
                "median": round(statistics.median(rate for rate, _ in rates)),
                "per CPU second": round(statistics.median(rate for _, rate in rates)),
            },
        )
    mine = outcome.figures["ours: routes/s"]["median"]
    batch = round(statistics.median(ip_batch(count) for _ in range(options.runs)))
    outcome.figure("ip -batch: routes/s", batch)
    outcome.check("more routes/s than ip -batch", mine > batch, f"{mine / batch:.1f} times")
    changed = {mode: spread(next_hop(count, mode, 60)) for mode in ("0", "1")}
    outcome.figure("ours: us for the next hop of all routes", changed["0"])
    outcome.figure("ours: us for it with nexthop_compat_mode 1", changed["1"])
    Sysctls(None).set(sysctl.COMPATIBLE_NEXT_HOPS, "0")
    outcome.figure("ip -batch: us for the next hop of all routes", round(ip_next_hop(count, 60)))
    outcome.check(
        "a next hop changes faster than the kernel's default lets it",
        changed["0"]["median"] < changed["1"]["median"],
        f"{changed['1']['median'] / changed['0']['median']:.1f} times",
    )
    try:
        made, led = pyroute2(count)
    except ModuleNotFoundError:
        outcome.figure("pyroute2", "missing here")
    else:
        outcome.figure("pyroute2: routes/s", round(made))
        outcome.figure("pyroute2: us to lead all routes elsewhere", round(count / led * 1e6))
        outcome.check("more routes/s than pyroute2", mine > 10 * made, f"{mine / made:.0f} times")
    link_changes(outcome, options.nodes, options.changes)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--routes", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--changes", type=int, default=60, help="links of the mesh that change")
    return run("routes", measure, parser)


if __name__ == "__main__":
    sys.exit(main())
