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
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel import sysctl
from x0tta6bl4.edge.kernel.netlink import Monitor, Netlink, Said, attributes
from x0tta6bl4.edge.kernel.routes import METRIC, PROTOCOL
from x0tta6bl4.edge.kernel.sysctl import Sysctls
from x0tta6bl4.wire.admin import Finding

MTU_MIN: Final = 1280
"""Of IPv6 (RFC 8200 section 5); the kernel takes IPv6 away from interfaces with less."""
INTERFACES_MAX: Final = 256
_LOOPBACK: Final = "lo"
_LOOPBACK_ADDRESS: Final = bytes(15) + b"\1"
_NEW_SWITCHES, _DEL_SWITCHES = 80, 81
"""RTM_NEWNETCONF: a switch of forwarding was set, by us or by somebody else."""
_FAMILY_BYTES: Final = 4
_GROUP_ADDRESS, _GROUP_SWITCHES = 9, 25


class Seen(NamedTuple):
    """What a look at the monitor has found."""

    links: bool
    """An interface has changed: look at links again, then mend."""
    routes: bool
    """Somebody has touched our routes, or messages were lost: look at all again, then mend."""


class Watch:
    """Keeps an eye on interfaces; `restore` puts back what it has set.

    Args:
        netlink: a socket in the network namespace; what it asks for is nobody else's doing.
        monitor: of the groups in `GROUPS`.
        sysctls: switches of that namespace.
        prefix: the first 6 bytes of all mesh addresses.
        source_routes: whether packets are to be led by segment routing headers, too.
    """

    __slots__ = (
        "_again",
        "_bare",
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
        monitor.leave_out(netlink.port, (rt.NEW_ROUTE, rt.NEW_NEXT_HOP))
        self._sysctls = sysctls
        self._prefix = prefix
        self._source_routes = source_routes
        self._names: dict[int, str] = {}
        self._bare: set[int] = set()
        """Interfaces that have lost their IPv6; as bounded as interfaces are."""
        self._again: set[str] = set()
        """Switches of ours that somebody had set since the last check."""
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
            elif said.kind in (rt.NEW_ADDRESS, rt.DEL_ADDRESS):
                address = rt.read_address(said)
                routes |= address is not None and self._concerns(said.kind, address)
            elif said.kind in (_NEW_SWITCHES, _DEL_SWITCHES):
                self._switched(said)
            elif said.kind == rt.DEL_ROUTE:
                route = rt.read_route(said)
                routes |= route is not None and route.protocol == PROTOCOL
            elif said.kind == rt.DEL_NEXT_HOP:
                hop = rt.read_next_hop(said)
                routes |= hop is not None and hop.protocol == PROTOCOL
        if links:
            self._set(self._links)  # With the IPv6 of an interface its switches had gone.
        return Seen(links, routes)

    def carries(self, index: int) -> bool:
        """Whether an interface has IPv6; hellos go over it all the same, but no data."""
        link = self._links.get(index)
        if link is None:
            return True  # Unknown, or gone: then hellos say so.
        disabled = self._sysctls.get(sysctl.DISABLED.format(link.name))
        return link.mtu >= MTU_MIN and disabled == "0"

    def gone(self, index: int) -> bool:
        """Whether an interface of the mesh is no more."""
        return index in self._names and index not in self._links

    def works(self, index: int) -> bool:
        """Whether `check` has nothing to say of an interface."""
        link = self._links.get(index)
        if link is None:
            return index not in self._names
        return link.up and link.carrier and self.carries(index)

    def hold(self) -> None:
        """Set again at once what somebody has set; `check` says so."""
        self._again.update(self._set(self._links))

    def _switched(self, said: Said) -> None:
        """A switch of forwarding; an interface whose IPv6 comes back has lost all of them."""
        index = int.from_bytes(attributes(said.body, _FAMILY_BYTES).get(1, b""), "little")
        if said.kind == _DEL_SWITCHES:
            self._bare.add(index)
        elif index not in self._bare:
            self.hold()
        else:
            self._bare.discard(index)
            self._set(self._links)

    def _concerns(self, kind: int, address: rt.Address) -> bool:
        """IPv6 comes or goes on an interface, or somebody takes our address away."""
        if address.index in self._names and IPv6Address(address.address).is_link_local:
            return True
        if kind == rt.DEL_ADDRESS:
            return address.address[:6] == self._prefix
        return address.address == _LOOPBACK_ADDRESS

    def check(self) -> list[Finding]:
        """Set again what is not as it must be, and say what is wrong, worst first."""
        asked = self._netlink.dump("links", rt.GET_LINK, rt.ALL_LINKS)
        links = {link.index: link for said in asked if (link := rt.read_link(said)) is not None}
        self._links = {index: link for index, link in links.items() if index in self._names}
        found: list[Finding] = []
        without = [
            x for x in ("all", _LOOPBACK) if self._sysctls.get(sysctl.DISABLED.format(x)) == "1"
        ]
        for index, name in list(self._names.items()):
            found += self._check_link(name, links.get(index))
        if without:
            found = [one for one in found if one.id != "X0-KRN-138"]
            found.append(
                Finding("X0-KRN-138", "error", "this host has no IPv6: it is switched off",
                        f"sysctl -w net.ipv6.conf.{without[0]}.disable_ipv6=0, or use user space")
            )  # fmt: skip
        loopback = next((link for link in links.values() if link.name == _LOOPBACK), None)
        if loopback is None or not loopback.up:
            found.append(
                Finding("X0-KRN-137", "error", "lo is down: it has the mesh address",
                        "ip link set lo up")
            )  # fmt: skip
        found += self._check_routes()
        again, self._again = {*self._again, *self._set(self._links)}, set()
        if again:
            found.append(
                Finding("X0-KRN-136", "warning",
                        f"somebody had set {', '.join(sorted(again))} below net; it is set again",
                        "look for what sets it: a file in /etc/sysctl.d, or a network daemon")
            )  # fmt: skip
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
                        "its links go on; nothing is to be done")
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


GROUPS: Final = (
    rt.GROUP_LINK, rt.GROUP_ROUTE, rt.GROUP_NEXT_HOP, _GROUP_ADDRESS, _GROUP_SWITCHES,
)  # fmt: skip
"""What the monitor of a `Watch` listens to."""
