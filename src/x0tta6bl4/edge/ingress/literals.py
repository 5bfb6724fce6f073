"""Addresses in place of names: reached only where the configuration gives them a name."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from x0tta6bl4.wire.ingress import service_name

NO_NAMES: Mapping[str, str] = {}


def named(host: str, names: Mapping[str, str]) -> tuple[str, bool]:
    """Turn what a client asked for into a service name.

    Args:
        host: a name, or an address without brackets.
        names: address in its shortest form -> service name.
    Returns:
        The name, or "" if there is none; and whether an address was asked for.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return service_name(host), False
    return service_name(names.get(str(address), "")), True
