"""Addresses as text: `host:port`, an IPv6 address in brackets."""

from __future__ import annotations

from x0tta6bl4.wire.errors import BadConfig


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `192.0.2.1:7100`, `node.example:7100` or `[2001:db8::1]:7100`.

    Raises:
        BadConfig: anything else.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 8 else -1
    problem = ""
    if not colon or not bare or number < 0 or set("[]") & set(bare):
        problem = "host:port is wanted"
    elif bracketed != (":" in bare):
        problem = "an IPv6 address, and no other, stands in brackets"
    elif number > 65535:
        problem = "its port is above 65535"
    if problem:
        raise BadConfig(
            "X0-NET-002", f"{text[:80]!r} is no address: {problem}", "write host:port or [v6]:port"
        )
    return bare, number


def join_address(host: str, port: int) -> str:
    """The text that `split_address` splits."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
