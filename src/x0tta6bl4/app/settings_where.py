"""Checks of single values in a settings file, each raising with file and key path."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Final

from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import BadConfig, BadId

UNIX_PATH_BYTES_MAX: Final = 107
PREFIXES_MAX: Final = 8_192
"""Of each list: the kernel's filter holds twice as many."""
_SOCKET_NAME_BYTES: Final = len("/authority.sock")


class Where:
    """Checks of single values of one file.

    Every method takes the key path first and raises `BadConfig` with it.

    Args:
        source: name of the file, for errors.
    """

    __slots__ = ("source",)

    def __init__(self, source: str) -> None:
        self.source = source

    def error(self, id: str, key: str, what: str, hint: str) -> BadConfig:
        """The error to raise, in the form that all of them have."""
        return BadConfig(id, f"{self.source}: {key}: {what}", hint)

    def identifier(self, key: str, text: str, parse: Callable[[str], str]) -> str:
        """A name or ID in the form of `parse`, normalised."""
        try:
            return parse(text)
        except BadId as error:
            raise self.error("X0-CFG-007", key, error.what, error.hint) from None

    def path(self, key: str, text: str) -> None:
        """An absolute path."""
        if not text.startswith("/"):
            raise self.error(
                "X0-CFG-014", key, f"{text!r} is not an absolute path", "start it with /"
            )
        if "\0" in text or "\n" in text:
            raise self.error("X0-CFG-014", key, "a path has a control character", "remove it")

    def state_dir(self, key: str, text: str) -> None:
        """A directory with room for the names of the sockets in it."""
        self.path(key, text)
        spare = UNIX_PATH_BYTES_MAX - _SOCKET_NAME_BYTES
        if len(text.encode()) > spare:
            raise self.error(
                "X0-CFG-014",
                key,
                f"longer than {spare} bytes",
                "sockets live in it, and the kernel bounds their paths",
            )

    def socket(self, key: str, text: str) -> None:
        """Path of a Unix socket."""
        self.path(key, text)
        if len(text.encode()) > UNIX_PATH_BYTES_MAX:
            raise self.error(
                "X0-CFG-014",
                key,
                f"longer than {UNIX_PATH_BYTES_MAX} bytes",
                "the kernel bounds the paths of sockets",
            )

    def endpoint(self, key: str, text: str, port_min: int = 0) -> tuple[str, int]:
        """A `host:port` to dial, as a pair; port 0 only where `port_min` says so."""
        try:
            host, port = split_address(text)
        except BadConfig as error:
            raise self.error(
                "X0-CFG-008", key, error.what, 'write "host:port", for example "192.0.2.1:7100"'
            ) from None
        if port < port_min:
            raise self.error("X0-CFG-008", key, f"{text!r} has port 0", "name the port")
        if not re.fullmatch(r"[0-9A-Za-z._:%-]+", host):
            raise self.error(
                "X0-CFG-008", key, f"{host[:80]!r} is no host", "write an address or a DNS name"
            )
        return host, port

    def bindable(self, key: str, text: str) -> None:
        """An address of this host, of any interface."""
        host, _ = self.endpoint(key, text)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise self.error(
                "X0-CFG-008",
                key,
                f"{host!r} is no address of this host",
                'listen on an IP address; "0.0.0.0" is all of them',
            ) from None

    def networks(self, key: str, prefixes: tuple[str, ...]) -> list[ipaddress.IPv6Network]:
        """Prefixes of IPv4 or IPv6, each with nothing behind its length; as ones of IPv6."""
        found = []
        if len(prefixes) > PREFIXES_MAX:
            raise self.error("X0-CFG-006", key, f"more than {PREFIXES_MAX} prefixes", "join some")
        for i, text in enumerate(prefixes):
            try:
                found.append(in_ipv6(ipaddress.ip_network(text)))
            except ValueError as error:
                raise self.error(
                    "X0-CFG-008", f"{key}[{i}]", str(error), 'write one like "192.0.2.0/24"'
                ) from None
        return found

    def loopback(self, key: str, text: str, *, unix: bool, port_min: int = 1) -> None:
        """A place for plaintext: loopback or, where allowed, a Unix socket; never a network."""
        if unix and text.startswith("unix:"):
            self.socket(key, text[5:])
            return
        host, _ = self.endpoint(key, text, port_min)
        try:
            inside = ipaddress.ip_address(host).is_loopback
        except ValueError:
            inside = False
        if not inside:
            more = " or unix:/path" if unix else ""
            raise self.error(
                "X0-CFG-009",
                key,
                f"{host!r} is not loopback",
                f"plaintext stays on this host: 127.0.0.1, [::1]{more}",
            )

    def distinct(self, what: str, keys: Iterable[tuple[str, str]]) -> None:
        """Refuse the second of two equal values; each comes with its key path."""
        seen: dict[str, str] = {}
        for key, value in keys:
            if value in seen:
                raise self.error(
                    "X0-CFG-010",
                    key,
                    f"{what} {value!r} stands there twice",
                    f"it is {seen[value]} already; remove one",
                )
            seen[value] = key


def in_ipv6(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> ipaddress.IPv6Network:
    """A prefix as one of IPv6 (RFC 4291 section 2.5.5.2), as the kernel's filter holds it."""
    if isinstance(network, ipaddress.IPv6Network):
        return network
    mapped = b"\0" * 10 + b"\xff\xff" + network.network_address.packed
    return ipaddress.IPv6Network((mapped, 96 + network.prefixlen))
