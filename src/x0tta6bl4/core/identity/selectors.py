"""Selectors: what a process must be to get an identity, or to be the listener behind one.

    unix:uid:1000    python:script-sha256:<64 hex>    systemd:unit:web.service    docker:label:a=b

A family, a kind and a value; `KINDS` has them all, and `docs/selectors.md` what each proves.  All
selectors of an entry must hold; an entry without any matches nobody.  A cgroup selector covers what
is below it too, at a slash.  What could not be found out about a process never matches.
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


@final
class Kind(Value, frozen=True):
    """One kind of selector."""

    form: str
    """Of its values: a key of `_FORMS`, or `number` or `path`."""
    example: str
    """A value."""
    says: str
    """What it asks for, half a sentence."""


KINDS: Final = {
    "unix:uid": Kind("number", "1000", "effective user"),
    "unix:gid": Kind("number", "33", "effective group; no supplementary ones"),
    "unix:path": Kind("path", "/usr/bin/web", "executable, as the kernel names it"),
    "unix:sha256": Kind("sha256", "9f86…", "SHA-256 of the executable"),
    "unix:cgroup": Kind("path", "/system.slice", "control group (v2), or one above it"),
    "python:interpreter": Kind("path", "/usr/bin/python3.11", "executable that runs Python"),
    "python:interpreter-sha256": Kind("sha256", "9f86…", "SHA-256 of that executable"),
    "python:script": Kind("path", "/srv/web/main.py", "script, or zip archive, that it was given"),
    "python:script-sha256": Kind("sha256", "9f86…", "SHA-256 of script, archive or module"),
    "python:module": Kind("module", "web.server", "module that it was given with -m"),
    "python:module-path": Kind("path", "/srv/web/server.py", "file of that module"),
    "python:venv-sha256": Kind("sha256", "9f86…", "what is installed in its virtual environment"),
    "systemd:unit": Kind("unit", "web.service", "unit of the system's service manager"),
    "systemd:slice": Kind("slice", "system.slice", "slice of that unit, or one above it"),
    "systemd:invocation": Kind("invocation", "0123…", "this one start of that unit"),
    "docker:container": Kind("sha256", "9f86…", "container, by its whole ID"),
    "docker:image-id": Kind("image", "sha256:9f86…", "image, by the ID that its content gives it"),
    "docker:image-name": Kind("text", "web:1.2", "image, by the name it was started with"),
    "docker:label": Kind("pair", "app=web", "label of the container"),
    "docker:env": Kind("pair", "ROLE=web", "variable that the container was started with"),
}
"""Every kind, `family:kind`."""

_HEX: Final = "[0-9a-f]"
_UNIT: Final = r"[A-Za-z0-9:_.\\@-]{1,240}"
_FORMS: Final = {
    "sha256": re.compile(_HEX + r"{64}\Z"),
    "module": re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\Z"),
    "unit": re.compile(_UNIT + r"\.(service|scope|socket|mount|swap)\Z"),
    "slice": re.compile(_UNIT + r"\.slice\Z"),
    "invocation": re.compile(_HEX + r"{32}\Z"),
    "image": re.compile("sha256:" + _HEX + r"{64}\Z"),
    "text": re.compile(r"[^\x00-\x1f\x7f]+\Z"),
    "pair": re.compile(r"[^\x00-\x1f\x7f=]+=[^\x00-\x1f\x7f]*\Z"),
}
_NUMBER: Final = re.compile(r"(0|[1-9][0-9]{0,9})\Z")


@final
class Selector(Value, frozen=True):
    """One condition, parsed."""

    kind: str
    """A key of KINDS."""
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"

    @property
    def family(self) -> str:
        """`unix`, `python`, `systemd` or `docker`."""
        return self.kind.partition(":")[0]


@final
class Attributes(Value, frozen=True):
    """What the kernel says about the owner of a socket.  Missing: unknown, matches nothing."""

    uid: int | None = None
    gids: tuple[int, ...] = ()
    path: str = ""
    """Executable; only looked up where a selector asks for it, as all that follows."""
    sha256: str = ""
    """Of the executable, lower-case hex."""
    cgroup: str = ""
    facts: frozenset[str] = frozenset()
    """Selectors of the other families that hold, as text."""


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
        BadInput: unknown kind, or a value that could never be found.
    """
    family, _, rest = text.partition(":")
    name, colon, value = rest.partition(":")
    kind = KINDS.get(f"{family}:{name}")
    if kind is None or not colon:
        raise BadInput("X0-SEL-001", f"{text[:80]!r} is no selector", _near(family))
    if kind.form == "number":
        good = _NUMBER.match(value) is not None and int(value) <= NUMBER_MAX
    elif kind.form == "path":
        good = _is_path(value)
    else:
        good = len(value) <= VALUE_BYTES_MAX and _FORMS[kind.form].match(value) is not None
    if not good:
        raise BadInput(
            "X0-SEL-002",
            f"{text[:80]!r} has a bad value",
            "numbers in decimal, hashes whole and in lower-case hex, paths absolute and plain; "
            f"e.g. {family}:{name}:{kind.example}",
        )
    return Selector(f"{family}:{name}", value)


def parse_all(texts: Iterable[str]) -> tuple[Selector, ...]:
    """Parse the selectors of an entry: at least one, no more than SELECTORS_MAX.

    Raises:
        BadInput: none, too many, a bad one, or a program's own words about itself alone.
    """
    selectors = tuple(dict.fromkeys(parse(text) for text in texts))
    if not 0 < len(selectors) <= SELECTORS_MAX:
        raise BadInput("X0-SEL-003", f"{len(selectors)} selectors", "give 1 to 32")
    kinds = {selector.kind for selector in selectors}
    if "unix:uid" not in kinds and any(kind.startswith("python:") for kind in kinds):
        raise BadInput(
            "X0-SEL-004",
            "python selectors say which of a user's programs it is, not whose it is",
            "add unix:uid:N",
        )
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
    if kind == "unix:uid":
        return attributes.uid is not None and str(attributes.uid) == value
    if kind == "unix:gid":
        return any(str(gid) == value for gid in attributes.gids)
    if kind == "unix:path":
        return attributes.path == value
    if kind == "unix:sha256":
        return attributes.sha256 == value
    if kind != "unix:cgroup":
        return str(selector) in attributes.facts
    return attributes.cgroup == value or (
        value != "/" and attributes.cgroup.startswith(value + "/")
    )


def _is_path(value: str) -> bool:
    """Absolute and in plain form, as the kernel reports it: no `//`, `.`, `..`, no end slash."""
    if not value.startswith("/") or len(value) > VALUE_BYTES_MAX or "\x00" in value:
        return False
    return value == "/" or all(part not in ("", ".", "..") for part in value[1:].split("/"))


def _near(family: str) -> str:
    """A hint for what is no selector."""
    kinds = [kind for kind in KINDS if kind.startswith(family + ":")]
    if not kinds:
        return "family:kind:value; families are unix, python, systemd and docker"
    return "one of " + ", ".join(f"{kind}:…" for kind in kinds)
