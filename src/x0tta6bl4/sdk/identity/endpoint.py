"""Where the Workload API is: `unix:` with an absolute path, `tcp:` with an IP address and a port.

Source: SPIFFE_Workload_Endpoint.md section 4 (SP-094, SP-095).
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Final, final
from urllib.parse import unquote

import msgspec

from x0tta6bl4.wire.errors import BadInput

VARIABLE: Final = "SPIFFE_ENDPOINT_SOCKET"
_PATH_BYTES_MAX: Final = 107  # sun_path without its NUL.
_TCP: Final = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[0-9.]+):([0-9]{1,5})\Z")


@final
class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """Address of a Workload API: either a path or a host with a port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else self._plain()

    def _plain(self) -> str:
        return f"tcp://{self.host}:{self.port}"


def endpoint(text: str | None = None, environ: Mapping[str, str] | None = None) -> Endpoint:
    """Parse an address of the Workload API.

    Args:
        text: the address; None: that of SPIFFE_ENDPOINT_SOCKET.
        environ: where to look for it; None: the environment of this process.
    Raises:
        BadInput: there is none, or it is not of the form that the specification asks for.
    """
    if text is None:
        text = (os.environ if environ is None else environ).get(VARIABLE, "")
        if not text:
            raise BadInput(
                "X0-SDK-001", "no address of a Workload API", f"set {VARIABLE} or give one"
            )
    scheme = text.partition(":")[0]
    if scheme == "unix":
        return Endpoint(path=_unix(text))
    if scheme == "tcp":
        return _tcp(text)
    raise _bad(text, "it starts with unix: or tcp:")


def _unix(text: str) -> str:
    rest = text.removeprefix("unix:")
    if rest.startswith("//"):
        rest = rest[2:]
        if not rest.startswith("/"):
            raise _bad(text, "unix: has no authority: unix:///path")
    if not rest.startswith("/") or rest == "/":
        raise _bad(text, "unix: has an absolute path")
    if "?" in rest or "#" in rest:
        raise _bad(text, "unix: has a path and nothing else")
    path = unquote(rest, errors="strict")
    if "\0" in path or len(path.encode()) > _PATH_BYTES_MAX:
        raise _bad(text, f"a path has at most {_PATH_BYTES_MAX} bytes and no NUL")
    return path


def _tcp(text: str) -> Endpoint:
    match = _TCP.match(text)
    if match is None:
        raise _bad(text, "tcp: has an IP address and a port and nothing else: tcp://127.0.0.1:8000")
    try:
        host = str(ipaddress.ip_address(match[1].strip("[]")))
    except ValueError:
        raise _bad(text, "tcp: has an IP address") from None
    port = int(match[2])
    if not 0 < port < 65536:
        raise _bad(text, "a port is 1 to 65535")
    return Endpoint(host=host, port=port)


def _bad(text: str, hint: str) -> BadInput:
    return BadInput("X0-SDK-002", f"{text[:120]!r} is no address of a Workload API", hint)
