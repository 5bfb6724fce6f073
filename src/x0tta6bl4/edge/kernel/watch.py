"""Interfaces of the mesh: what they need of the kernel, and what is wrong with them.

Nothing is taken for granted after it was set: `check` compares every switch and interface with
what is wanted, sets again what somebody has changed, and says what it can't help.

Where the kernel can forward by interface (Linux 6.17), only what comes in over the mesh's
interfaces is forwarded.  Elsewhere the whole host becomes a router, which would stop heeding
router advertisements: those interfaces that heed them are told to go on.

Source: Documentation/networking/ip-sysctl.rst of Linux.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel import sysctl
from x0tta6bl4.edge.kernel.netlink import Monitor, Netlink
from x0tta6bl4.edge.kernel.routes import METRIC, PROTOCOL
from x0tta6bl4.edge.kernel.sysctl import Sysctls
from x0tta6bl4.wire.admin import Finding

MTU_MIN: Final = 1280
"""Of IPv6 (RFC 8200 section 5); the kernel takes IPv6 away from interfaces with less."""
INTERFACES_MAX: Final = 256
_LOOPBACK: Final = "lo"


class Seen(NamedTuple):
    """What a look at the monitor has found."""

    links: bool
    """An interface has changed: look at links again, then mend."""
    routes: bool
    """Somebody has touched our routes, or messages were lost: look at all again, then mend."""


class Watch:
    """Keeps an eye on interfaces; `restore` puts back what it has set.

    Args:
        netlink: a socket in the network namespace.
        monitor: of the groups in `GROUPS`.
        sysctls: switches of that namespace.
        prefix: the first 6 bytes of all mesh addresses.
        source_routes: whether packets are to be led by segment routing headers, too.
    """

    __slots__ = (
        "_links",
        "_monitor",
        "_names",
        "_netlink",
        "_prefix",
        "_source_routes",
        "_sysctls",
    )

    def __init__(
        self,
        netlink: Netlink,
        monitor: Monitor,
        sysctls: Sysctls,
        prefix: bytes,
        *,
        source_routes: bool = False,
    ) -> None:
        self._netlink = netlink
        self._monitor = monitor
        self._sysctls = sysctls
        self._prefix = prefix
        self._source_routes = source_routes
        self._names: dict[int, str] = {}
        self._links: dict[int, rt.Link] = {}

    def use(self, links: Iterable[rt.Link]) -> None:
        """These interfaces belong to the mesh now, by index; switches are set at once.

        Raises:
            Unavailable: X0-KRN-120 a switch can't be set; X0-KRN-121 nor remembered.
        """
        self._links = {link.index: link for link in links}
        self._names = {link.index: link.name for link in self._links.values()}
        assert len(self._names) <= INTERFACES_MAX
        self._set(self._links)

    def read(self) -> Seen:
        """What has happened since the last look, without waiting."""
        found, lost = self._monitor.read()
        links = routes = lost
        for said in found:
            if said.kind in (rt.NEW_LINK, rt.DEL_LINK):
                link = rt.read_link(said)
                if link is None or link.index not in self._names:
                    continue
                gone = said.kind == rt.DEL_LINK
                links |= gone or link != self._links.get(link.index)
                if gone:
                    self._links.pop(link.index, None)
                else:
                    self._links[link.index] = link
            elif said.kind == rt.DEL_ROUTE:
                route = rt.read_route(said)
                routes |= route is not None and route.protocol == PROTOCOL
            elif said.kind == rt.DEL_NEXT_HOP:
                hop = rt.read_next_hop(said)
                routes |= hop is not None and hop.protocol == PROTOCOL
        return Seen(links, routes)

    def check(self) -> list[Finding]:
        """Set again what is not as it must be, and say what is wrong, worst first."""
        asked = self._netlink.dump("links", rt.GET_LINK, rt.ALL_LINKS)
        links = {link.index: link for said in asked if (link := rt.read_link(said)) is not None}
        self._links = {index: link for index, link in links.items() if index in self._names}
        found: list[Finding] = []
        for index, name in self._names.items():
            found += self._check_link(name, links.get(index))
        loopback = next((link for link in links.values() if link.name == _LOOPBACK), None)
        if loopback is None or not loopback.up:
            found.append(
                Finding("X0-KRN-137", "error", "lo is down: it has the mesh address",
                        "ip link set lo up")
            )  # fmt: skip
        found += self._check_routes()
        found += [
            Finding("X0-KRN-136", "warning", f"somebody had set net/{name}; it is set again",
                    "look for what sets it: a file in /etc/sysctl.d, or a network daemon")
            for name in self._set(self._links)
        ]  # fmt: skip
        return sorted(found, key=lambda one: ("error", "warning", "notice").index(one.level))

    def restore(self) -> list[str]:
        """Put the switches back; those that could not be."""
        return self._sysctls.restore()

    def _check_link(self, name: str, link: rt.Link | None) -> list[Finding]:
        if link is None:
            return [
                Finding("X0-KRN-130", "error", f"interface {name} is gone",
                        "bring it back under the same name, or restart the node without it")
            ]  # fmt: skip
        found = []
        if link.name != name:
            self._sysctls.renamed(name, link.name)
            self._names[link.index] = link.name
            found.append(
                Finding("X0-KRN-133", "notice", f"interface {name} is called {link.name} now",
                        "its links go on; write the new name into node.toml")
            )  # fmt: skip
        if not link.up:
            found.append(
                Finding("X0-KRN-131", "error", f"interface {link.name} is down",
                        f"ip link set {link.name} up")
            )  # fmt: skip
        elif not link.carrier:
            found.append(
                Finding("X0-KRN-132", "error", f"interface {link.name} has no carrier",
                        "look at its cable, or at the other end")
            )  # fmt: skip
        if link.mtu < MTU_MIN:
            found.append(
                Finding("X0-KRN-134", "error", f"interface {link.name} has an MTU of {link.mtu}",
                        f"IPv6 needs {MTU_MIN}: ip link set {link.name} mtu 1500")
            )  # fmt: skip
        elif self._sysctls.get(sysctl.DISABLED.format(link.name)) != "0":
            found.append(
                Finding("X0-KRN-138", "error", f"interface {link.name} has no IPv6",
                        f"sysctl -w net.ipv6.conf.{link.name}.disable_ipv6=0, or use user space")
            )  # fmt: skip
        return found

    def _check_routes(self) -> list[Finding]:
        """Routes of others that get before ours."""
        asked = self._netlink.dump("routes", rt.GET_ROUTE, rt.routes())
        for said in asked:
            route = rt.read_route(said)
            if route is None or route.protocol == PROTOCOL or route.prefix < 48:
                continue
            if route.target[:6] == self._prefix and (route.prefix > 48 or route.metric <= METRIC):
                return [
                    Finding("X0-KRN-135", "error",
                            f"a route of somebody else (protocol {route.protocol}) leads into the"
                            " mesh's prefix", "ip -6 route show shows it: delete it at its source")
                ]  # fmt: skip
        return []

    def _set(self, links: Mapping[int, rt.Link]) -> list[str]:
        """Set what must be; those that were ours and had been changed."""
        mine = set(self._sysctls.changed)
        wanted = {sysctl.COMPATIBLE_NEXT_HOPS: "0"}
        if self._source_routes:
            wanted[sysctl.SEGMENTS.format("all")] = "1"
        whole_host = False
        for link in links.values():
            name = sysctl.FORCE_FORWARDING.format(link.name)
            if self._sysctls.get(name) is not None:
                wanted[name] = "1"
            elif self._sysctls.get(sysctl.DISABLED.format(link.name)) is not None:
                whole_host = True
            if self._source_routes:
                wanted[sysctl.SEGMENTS.format(link.name)] = "1"
        if whole_host:
            wanted |= dict.fromkeys(self._heeding(), "2")
            wanted[sysctl.FORWARDING.format("all")] = "1"
        again = []
        for name, value in wanted.items():
            if self._sysctls.get(name) not in (None, value):
                self._sysctls.set(name, value)
                if name in mine:
                    again.append(name)
        return again

    def _heeding(self) -> list[str]:
        """Switches of interfaces that heed router advertisements as long as we don't forward."""
        asked = self._netlink.dump("links", rt.GET_LINK, rt.ALL_LINKS)
        links = [link for said in asked if (link := rt.read_link(said)) is not None]
        names = [sysctl.ACCEPT_RA.format(link.name) for link in links]
        return [name for name in names if self._sysctls.get(name) == "1"]


GROUPS: Final = (rt.GROUP_LINK, rt.GROUP_ROUTE, rt.GROUP_NEXT_HOP)
"""What the monitor of a `Watch` listens to."""
