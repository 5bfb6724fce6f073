"""Host names to literal addresses: the proxy dials literals only, a look-up would stop its bytes.

Every wanted name is looked up at once, every PERIOD_S from then on, and after `wake`, which is for
addresses that seem to be wrong.  What was found stays in use until a look-up finds something else:
an unreachable name server takes nothing away.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from x0tta6bl4.wire.address import join_address, split_address
from x0tta6bl4.wire.errors import BadConfig

PERIOD_S: Final = 60.0
PAUSE_S: Final = 2.0
"""Least time between two rounds, whoever wakes it."""
LOOKUP_S: Final = 5.0
NAMES_MAX: Final = 1024
"""Names that are kept; further ones are not looked up."""
ADDRESSES_MAX: Final = 4
"""Addresses that are used of one name."""
AT_ONCE: Final = 8

Lookup = Callable[[str], Awaitable[Iterable[str]]]


async def ask_host(name: str) -> list[str]:
    """IP addresses of a name, as this host finds them (in a thread).

    Raises:
        OSError: none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """What names stand for now.

    Args:
        on_change: called when a name stands for something else than before.
        lookup: addresses of a name; OSError where there are none.
    """

    def __init__(self, on_change: Callable[[], None], lookup: Lookup = ask_host) -> None:
        self._on_change = on_change
        self._lookup = lookup
        self._known: dict[str, tuple[str, ...]] = {}
        self._wake = asyncio.Event()

    def literals(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """`host:port` texts with each name in the place of its addresses; unknown ones left out."""
        found: list[str] = []
        for text in addresses:
            try:
                host, port = split_address(text)
            except BadConfig:
                found.append(text)  # `unix:/path`, or nonsense of a neighbour: not ours to judge.
                continue
            if _is_literal(host):
                found.append(text)
                continue
            if host not in self._known and len(self._known) < NAMES_MAX:
                self._known[host] = ()
                self._wake.set()
            found += [join_address(each, port) for each in self._known.get(host, ())]
        return tuple(dict.fromkeys(found))

    def wake(self) -> None:
        """Look all names up soon: something could not be reached."""
        self._wake.set()

    async def run(self) -> None:
        """Keep what is known current, for ever."""
        while True:
            self._wake.clear()
            limit = asyncio.Semaphore(AT_ONCE)
            changed = await asyncio.gather(*(self._look(limit, name) for name in self._known))
            if any(changed):
                self._on_change()
            if not self._wake.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), PERIOD_S)
            if any(self._known.values()):
                await asyncio.sleep(PAUSE_S)

    async def _look(self, limit: asyncio.Semaphore, name: str) -> bool:
        try:
            async with limit, asyncio.timeout(LOOKUP_S):
                found = tuple(await self._lookup(name))[:ADDRESSES_MAX]
        except (OSError, UnicodeError, TimeoutError):
            return False
        if not found or set(found) == set(self._known[name]):
            return False  # Servers turn the order about at will.
        self._known[name] = found
        return True


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
