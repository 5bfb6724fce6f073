"""Who may send through the kernel of a node: nodes that it reaches, and what node.toml says."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from ipaddress import IPv6Address, ip_network
from typing import Final, final

from x0tta6bl4.app.settings import Data
from x0tta6bl4.edge.kernel.filter import MEMBERS_MAX, Filter, Member
from x0tta6bl4.edge.kernel.programs import Programs

DENIED: Final = Member(denied=True)
MEMBER_S: Final = 120.0
"""How long a node that the kernel reaches no more may go on sending: the restart time."""


@final
class Members:
    """Members of the filter of one node, and the sources that it denies.

    Args:
        programs: loaded or adopted.
        data: of node.toml.

    Attributes:
        filter: the kernel's.
    """

    __slots__ = ("_member", "_reached", "filter")

    def __init__(self, programs: Programs, data: Data) -> None:
        self.filter = Filter(programs)
        self.filter.set_sources(
            dict.fromkeys(map(ip_network, data.allow_from), False)
            | dict.fromkeys(map(ip_network, data.deny_from), True)
        )
        self._member = Member(rate_pps=data.member_pps)
        self._reached: dict[IPv6Address, float] = {}
        """When they were last reachable by the kernel; bounded by the ways, of two lives."""

    def adopt(self, targets: Iterable[IPv6Address]) -> None:
        """A life before has reached these, or has let them in: this one may not hear of all."""
        denied = self.filter.denied
        self.reach(one for one in targets if not denied.get(one))
        self.reach(one for one, no in denied.items() if not no)
        if not denied:  # The filter is new.
            self.set(())

    def reach(self, nodes: Iterable[IPv6Address]) -> None:
        """The kernel reaches these now."""
        self._reached |= dict.fromkeys(nodes, time.monotonic())

    def set(self, banned: Collection[IPv6Address]) -> None:
        """Let in whom the kernel reaches, and for a while whom it did; but nobody revoked."""
        now = time.monotonic()
        self._reached = {n: at for n, at in self._reached.items() if now - at < MEMBER_S}
        self.filter.set_members(
            {
                node: DENIED if node in banned else self._member
                for node in list(self._reached)[:MEMBERS_MAX]
            }
        )
