"""Switches of the kernel's network: set while they are needed, and put back as they were.

What a switch said before is on the disk before it is changed, so that whoever comes after a crash
can put it back.  The file counts only in the boot and network namespace in which it was written,
and a switch that somebody else has set meanwhile stays as it is.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, final

import msgspec

from x0tta6bl4.wire.errors import Unavailable

COMPATIBLE_NEXT_HOPS: Final = "ipv4/nexthop_compat_mode"
"""Whether each change of a next-hop object is told for all its routes: 6 ms under 10,000 routes."""
FORWARDING: Final = "ipv6/conf/{}/forwarding"
FORCE_FORWARDING: Final = "ipv6/conf/{}/force_forwarding"
"""From Linux 6.17 on: forwards what comes in there, and nothing else of the host changes."""
ACCEPT_RA: Final = "ipv6/conf/{}/accept_ra"
"""1: router advertisements are heeded unless the host forwards; 2: even then."""
DISABLED: Final = "ipv6/conf/{}/disable_ipv6"
SEGMENTS: Final = "ipv6/conf/{}/seg6_enabled"
SWITCHES_MAX: Final = 4096
_ROOT: Final = Path("/proc/sys/net")
_FILE_BYTES_MAX: Final = 1 << 20
_VALUE_BYTES_MAX: Final = 4096


@final
class _Kept(msgspec.Struct, frozen=True):
    """The file."""

    where: str
    """Boot and network namespace."""
    switches: dict[str, tuple[str, str]]
    """What each one said before, and what it was set to."""


class Sysctls:
    """Switches that were changed; `restore` puts them back.

    Args:
        path: of the file, 0600; None: nothing outlives this process.
    """

    __slots__ = ("_path", "_switches", "_where")

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._where = here()
        self._switches = self._kept()

    def get(self, name: str) -> str | None:
        """What a switch says; None: this kernel has none of that name.

        Args:
            name: below net/, e.g. `ipv6/conf/eth0/forwarding`.
        """
        try:  # Looked at each second for each link: less than half of what Path takes.
            file = os.open(f"{_ROOT}/{_safe(name)}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(file, _VALUE_BYTES_MAX).decode("ascii").strip()
            finally:
                os.close(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _cant("read", name, error) from None

    def set(self, name: str, value: str) -> bool:
        """Set a switch, and remember what it said before.

        Returns:
            False: this kernel has none of that name.
        Raises:
            Unavailable: X0-KRN-120 it can't be set; X0-KRN-121 the file can't be written.
        """
        before = self.get(name)
        if before is None or (name not in self._switches and len(self._switches) >= SWITCHES_MAX):
            return False
        if before == value:
            return True
        first = self._switches[name][0] if name in self._switches else before
        self._switches[name] = (first, value)
        self._keep()
        _write(name, value)
        return True

    def restore(self) -> list[str]:
        """Put back every switch that still says what it was set to.

        Returns:
            Those that could not be put back; what is gone with its interface is not among them.
        """
        left = []
        for name, (before, after) in reversed(self._switches.items()):
            try:
                if self.get(name) == after:
                    _write(name, before)
            except Unavailable:
                left.append(name)
        self._switches = {name: self._switches[name] for name in left}
        self._keep()
        return left

    def renamed(self, old: str, new: str) -> None:
        """An interface has another name now: its switches went with it."""
        moved = {}
        for name, kept in self._switches.items():
            parts = name.split("/")
            if parts[1:3] == ["conf", old]:
                parts[2] = new
            moved["/".join(parts)] = kept
        self._switches = moved
        self._keep()

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the switches that are not as they were."""
        return tuple(self._switches)

    def _kept(self) -> dict[str, tuple[str, str]]:
        if self._path is None:
            return {}
        try:
            data = self._path.read_bytes()
            kept = msgspec.json.decode(data[:_FILE_BYTES_MAX], type=_Kept)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise Unavailable(
                "X0-KRN-121", f"{self._path}: {error}", "delete it; switches stay as they are"
            ) from None
        return dict(kept.switches) if kept.where == self._where else {}

    def _keep(self) -> None:
        if self._path is None:
            return
        try:
            if not self._switches:
                self._path.unlink(missing_ok=True)
                return
            aside = self._path.with_name(self._path.name + ".new")
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(_Kept(self._where, self._switches)))
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._path)
        except OSError as error:
            raise Unavailable(
                "X0-KRN-121", f"{self._path}: {os.strerror(error.errno or 0).lower()}"
            ) from None


def here() -> str:
    """Boot and network namespace of the calling thread."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.stat('/proc/thread-self/ns/net').st_ino}"


def written_where(path: Path) -> str:
    """Boot and network namespace in which such a file was written; empty: there is none."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes()[:_FILE_BYTES_MAX], type=_Kept).where
    return ""


def _safe(name: str) -> str:
    assert ".." not in name.split("/"), name
    assert not name.startswith("/"), name
    return name


def _write(name: str, value: str) -> None:
    try:
        (_ROOT / _safe(name)).write_text(value, encoding="ascii")
    except (FileNotFoundError, NotADirectoryError):
        return  # Gone with its interface.
    except OSError as error:
        raise _cant("set", name, error) from None


def _cant(verb: str, name: str, error: OSError) -> Unavailable:
    return Unavailable(
        "X0-KRN-120",
        f"net.{name.replace('/', '.')} can't be {verb}: {os.strerror(error.errno or 0).lower()}",
        "this takes root and a writable /proc/sys",
    )
