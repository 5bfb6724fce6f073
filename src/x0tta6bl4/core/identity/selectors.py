"""Selectors: what a process must be to get an identity, or to be the listener behind one.

    unix:uid:1000   unix:gid:33   unix:path:/usr/bin/web   unix:sha256:<64 hex>   unix:cgroup:/a/b

All selectors of an entry must hold; an entry without any matches nobody.  A cgroup selector covers
what is below it too, at a slash.  What could not be found out about a process never matches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.wire.errors import BadInput

SELECTORS_MAX: Final = 32
"""Selectors per entry."""
VALUE_BYTES_MAX: Final = 4096
NUMBER_MAX: Final = 2**32 - 2
"""Highest uid or gid; the one above means nobody at all to the kernel."""

KINDS: Final = ("uid", "gid", "path", "sha256", "cgroup")
_NUMBER: Final = re.compile(r"(0|[1-9][0-9]{0,9})\Z")
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")


@final
class Selector(Value, frozen=True):
    """One condition, parsed."""

    kind: str
    """One of KINDS."""
    value: str

    def __str__(self) -> str:
        return f"unix:{self.kind}:{self.value}"


@final
class Attributes(Value, frozen=True):
    """What the kernel says about the owner of a socket.  Missing: unknown, matches nothing."""

    uid: int | None = None
    gids: tuple[int, ...] = ()
    path: str = ""
    """Executable; only looked up where a selector asks for it, as cgroup may be."""
    sha256: str = ""
    """Of the executable, lower-case hex."""
    cgroup: str = ""


@final
class Matches(Value, frozen=True):
    """All selectors hold."""


@final
class Differs(Value, frozen=True):
    """One does not; `reason` names it, e.g. `unix:uid:1000`."""

    reason: str


def parse(text: str) -> Selector:
    """Parse one selector.

    Raises:
        BadInput: unknown kind, or a value that the kernel could never report.
    """
    kind, colon, value = text[5:].partition(":")
    if not text.startswith("unix:") or not colon or kind not in KINDS:
        raise BadInput(
            "X0-SEL-001",
            f"{text[:80]!r} is no selector",
            "unix:uid:N, unix:gid:N, unix:path:/x, unix:sha256:HEX or unix:cgroup:/x",
        )
    if kind in ("uid", "gid"):
        good = _NUMBER.match(value) is not None and int(value) <= NUMBER_MAX
    elif kind == "sha256":
        good = _SHA256.match(value) is not None
    else:
        good = _is_path(value)
    if not good:
        raise BadInput(
            "X0-SEL-002",
            f"{text[:80]!r} has a bad value",
            "numbers in decimal, hashes in lower-case hex, paths absolute and plain",
        )
    return Selector(kind, value)


def parse_all(texts: Iterable[str]) -> tuple[Selector, ...]:
    """Parse the selectors of an entry: at least one, no more than SELECTORS_MAX.

    Raises:
        BadInput: none, too many, or a bad one.
    """
    selectors = tuple(dict.fromkeys(parse(text) for text in texts))
    if not 0 < len(selectors) <= SELECTORS_MAX:
        raise BadInput("X0-SEL-003", f"{len(selectors)} selectors", "give 1 to 32")
    return selectors


def match(selectors: Sequence[Selector], attributes: Attributes) -> Matches | Differs:
    """Whether a process is what an entry asks for."""
    if not selectors:
        return Differs("no selectors")
    for selector in selectors:
        if not _holds(selector, attributes):
            return Differs(str(selector))
    return _MATCHES


_MATCHES: Final = Matches()


def _holds(selector: Selector, attributes: Attributes) -> bool:
    kind, value = selector.kind, selector.value
    if kind == "uid":
        return attributes.uid is not None and str(attributes.uid) == value
    if kind == "gid":
        return any(str(gid) == value for gid in attributes.gids)
    if kind == "path":
        return attributes.path == value
    if kind == "sha256":
        return attributes.sha256 == value
    return attributes.cgroup == value or (
        value != "/" and attributes.cgroup.startswith(value + "/")
    )


def _is_path(value: str) -> bool:
    """Absolute and in plain form, as the kernel reports it: no `//`, `.`, `..`, no end slash."""
    if not value.startswith("/") or len(value) > VALUE_BYTES_MAX or "\x00" in value:
        return False
    return value == "/" or all(part not in ("", ".", "..") for part in value[1:].split("/"))
