"""A mesh over real host borders: a NAT, a firewall that blocks UDP, an authority far away.

        home --(router, NAT)-- west -- hub -- east -- far
                                     authority  UDP blocked between hub and east

No host shares a loopback with another, and only hosts with a cable reach each other.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.real.host_mesh import AUTHORITY, CONTROL, DATA, HostMesh, join
from tests.real.hosts import Hosts
from tests.real.lab import PAGE_BYTES, ServerProcess, scratch
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.records import Name

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl (package curl)"),
]
HUB, WEST, EAST, FAR, ROUTER = (f"10.0.0.{i}" for i in range(1, 6))
SERVICE, LOCAL, SOCKS = 8000, 8080, 1080


def cables(hosts: Hosts) -> None:
    """The picture above."""
    join(hosts, "hub", HUB, "west", WEST)
    join(hosts, "hub", HUB, "east", EAST)
    join(hosts, "east", EAST, "far", FAR)
    join(hosts, "router", ROUTER, "west", WEST)
    hosts.wire("home", "192.168.1.2/24", "router", "192.168.1.1/24")
    hosts.route("home", "default", "192.168.1.1")
    hosts.forwards("router")
    hosts.nft(
        "router",
        'table ip nat { chain out { type nat hook postrouting priority 100; oifname "to-west"'
        " masquerade; }\n}",
    )
    for one, two in (("hub", "east"), ("east", "hub")):
        hosts.nft(
            one,
            f'table inet wall {{ chain in {{ type filter hook input priority 0; iifname "to-{two}"'
            " meta l4proto udp drop; }\n}",
        )


def node(name: str, address: str, links: dict[str, str], near: bool = True) -> cfg.NodeSettings:
    """What all of them have in common; no address: dial-out only."""
    return cfg.NodeSettings(
        trust_domain="",
        node=name,
        state_dir="",
        authority=cfg.AuthorityAt(address=f"{HUB}:{AUTHORITY}" if near else ""),
        data=cfg.Data(
            listen=f"0.0.0.0:{DATA}" if address else "",
            advertise=(f"{address}:{DATA}",) if address else (),
        ),
        control=cfg.Control(listen=f"0.0.0.0:{CONTROL}" if address else ""),
        link=tuple(
            cfg.Link(node=other, address=f"{at}:{CONTROL}" if at else "")
            for other, at in links.items()
        ),
        listen=(
            cfg.Listen(address=f"127.0.0.1:{LOCAL}", kind="plain", name="web"),
            cfg.Listen(address=f"127.0.0.1:{SOCKS}", kind="socks5"),
        ),
    )


class FiveHosts:
    """All of it, running.

    Args:
        hosts: the namespaces.
        root: for files.
    """

    def __init__(self, hosts: Hosts, root: Path) -> None:
        self.hosts = hosts
        self.mesh = HostMesh(hosts, root)
        self.page = root / "page"
        self.page.write_bytes(os.urandom(PAGE_BYTES))
        cables(hosts)
        self.servers = [
            ServerProcess(
                self.page, 1, ("ip", "netns", "exec", hosts.space(name)), ("--port", str(SERVICE))
            )
            for name in ("far", "home")
        ]
        self.mesh.authority("hub", f"{HUB}:{AUTHORITY}")
        self._register()
        self.mesh.node("hub", node("hub", HUB, {"west": "", "east": EAST}))
        self.mesh.node("west", node("west", WEST, {"hub": HUB, "home": ""}))
        self.mesh.node("east", node("east", EAST, {"hub": "", "far": FAR}))
        through = cfg.AuthorityAt(through=(f"{EAST}:{DATA}",))
        far = node("far", FAR, {"east": ""}, near=False)
        self.mesh.node("far", replace(far, authority=through))
        through = cfg.AuthorityAt(through=(f"{WEST}:{DATA}",))
        home = node("home", "", {"west": WEST}, near=False)
        self.mesh.node("home", replace(home, authority=through))
        self.mesh.wait_ready("hub", "west", "east", "far", "home")

    def _register(self) -> None:
        uid = (f"unix:uid:{os.getuid()}",)
        id = "spiffe://hosts.mesh/{}".format
        at = f"127.0.0.1:{SERVICE}"
        self.mesh.operator.create_entries(
            [
                Entry(id=id("web"), node="far", selectors=uid, address=at),
                Entry(id=id("notes"), node="home", selectors=uid, address=at),
                *(
                    Entry(id=id("reader"), node=name, selectors=uid)
                    for name in ("hub", "west", "east")
                ),
            ]
        )
        callers = (id("web"), id("notes"), id("reader"))
        for name in ("web", "notes"):
            self.mesh.operator.create_name(Name(name, id(name), callers))

    def fetch(self, host: str, *arguments: str) -> str:
        """What curl says at a host; `same` if it got the page."""
        target = str(self.page) + f".{host}"
        done = self.hosts.run(host, "curl", "-sS", "-m", "5", "-o", target, *arguments, check=False)
        if done.returncode:
            return done.stderr
        return "same" if Path(target).read_bytes() == self.page.read_bytes() else "other bytes"

    def wait_fetch(self, host: str, *arguments: str) -> None:
        """Wait until curl gets the page."""
        said: list[str] = []

        def same() -> bool:
            said.append(self.fetch(host, *arguments))
            return said[-1] == "same"

        try:
            wait_for(same, f"{arguments} at {host}", 20)
        except Exception:
            print("\n".join(said[-3:]), *(self.mesh.tail(n) for n in ("far", "home", host)))
            raise

    def close(self) -> None:
        """End the servers."""
        for server in self.servers:
            server.stop()


@pytest.fixture(scope="module")
def five() -> Iterator[FiveHosts]:
    """Five hosts and a router."""
    with (
        scratch("hosts") as root,
        Hosts("hub", "west", "east", "far", "home", "router") as hosts,
    ):
        five = FiveHosts(hosts, root)
        yield five
        five.close()


def test_a_page_crosses_every_border(five: FiveHosts) -> None:
    five.wait_fetch("home", f"http://127.0.0.1:{LOCAL}/page")
    five.wait_fetch("hub", f"http://127.0.0.1:{LOCAL}/page")


def test_a_service_behind_a_nat_is_reached(five: FiveHosts) -> None:
    five.wait_fetch("far", "-x", f"socks5h://127.0.0.1:{SOCKS}", "http://notes.mesh/page")


def test_hellos_go_over_tcp_where_udp_is_blocked(five: FiveHosts) -> None:
    links = {
        (name, link.node): link
        for name in ("hub", "west", "east")
        for link in five.mesh.status(name).links
    }
    assert not links["hub", "east"].udp
    assert not links["east", "hub"].udp
    assert links["hub", "west"].udp
    assert links["hub", "west"].rtt_us > 0


def test_hosts_without_a_way_to_the_authority_are_carried_there(five: FiveHosts) -> None:
    for name in ("far", "home"):
        authority = five.mesh.status(name).authority
        assert authority.connected
        assert authority.via, authority
