"""The programs of one node in the kernel: loaded or adopted, attached, pinned, removed.

What is pinned below one directory of a BPF file system lives on without a process; who opens the
same directory later adopts it.  Three cases:

    the same object         adopted as it is: nothing is loaded, nothing is lost
    another object, the same layout of maps
                            new programs over the old maps, put in place of the old ones
    another layout, or pins that are gone
                            everything anew; the programs in place are replaced one by one

Which interfaces carry our programs is read from the interfaces, so nothing is written down.
"""

from __future__ import annotations

import array
import contextlib
import enum
import fcntl
import hashlib
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, final

from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.libbpf import (
    Direction,
    KernelRefused,
    Libbpf,
    Map,
    Run,
    is_bpffs,
    mount_bpffs,
    unmount,
)
from x0tta6bl4.edge.kernel.netlink import Netlink

OBJECT: Final = Path(__file__).with_name("mesh.bpf.o")
VERDICTS: Final = "x0_arm"
"""The program that only kernels with `bpf_timer` take (Linux 5.15)."""
_INGRESS, _ARRIVE, _GENERIC = "x0_ingress", "x0_arrive", "x0_generic"
_LEAVE, _TURN, START = "x0_leave", "x0_turn", "x0_start"
PROGRAMS: Final = (_INGRESS, _ARRIVE, _GENERIC, _LEAVE, _TURN, START, VERDICTS)
_ZERO: Final = bytes(4)
_GETTFILTER: Final = 46
_SIDES: Final = (0xFFFFFFF2, 0xFFFFFFF3)
_OURS: Final = "x0_"


class Mode(enum.Enum):
    """Where received packets meet our programs."""

    NATIVE = "native"
    """XDP in the driver: before the stack has made anything of a packet."""
    GENERIC = "generic"
    """TC ingress: any interface, at the price of a socket buffer per packet."""


@final
class Programs:
    """Programs and maps of one node, in the network namespace of the calling thread.

    Use `Programs.open`.
    """

    __slots__ = ("_pins", "adopted", "library", "maps", "programs", "without_verdicts")

    def __init__(
        self, library: Libbpf, pins: Path, programs: Mapping[str, int], maps: Mapping[str, Map]
    ) -> None:
        self.library = library
        self._pins = pins
        self.programs = dict(programs)
        self.maps = dict(maps)
        self.adopted = False
        """Whether they ran already."""
        self.without_verdicts = ""
        """Why the kernel declares no link dead by itself; empty where it does."""

    @classmethod
    def open(cls, library: Libbpf, pins: Path, path: Path = OBJECT) -> Programs:
        """Adopt what is pinned, or load.

        Args:
            library: libbpf.
            pins: directory for the pins, of this node alone; a BPF file system is mounted on it
                where it is on none. Its parent must exist.
            path: the object.
        Raises:
            KernelRefused: X0-KRN-002 no rights, 003 the verifier, 006 no BPF file system.
        """
        try:
            pins.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise KernelRefused(
                "X0-KRN-006", f"{pins} can't be made: {error.strerror}", "run as root"
            ) from None
        try:
            if not is_bpffs(pins):
                mount_bpffs(pins)
            return cls._adopted_or_loaded(library, pins, path)
        except KernelRefused:
            if not _ours(pins):
                _leave(pins)
            raise

    @classmethod
    def _adopted_or_loaded(cls, library: Libbpf, pins: Path, path: Path) -> Programs:
        build = struct.unpack_from("I", hashlib.sha256(path.read_bytes()).digest())[0]
        old = cls._pinned(library, pins)
        if old is not None and old._settled("layout") == layout.LAYOUT:
            if old._settled("build") == build:
                old.adopted = True
                return old
            new = cls._loaded(library, pins, path, reuse=old.maps)
            new.adopted = True
        else:
            new = cls._loaded(library, pins, path, reuse={})
        if old is not None:
            old.close()
        new._pin()
        new._settle(layout=layout.LAYOUT, build=build)
        new._take_over()
        return new

    @classmethod
    def _pinned(cls, library: Libbpf, pins: Path) -> Programs | None:
        programs, maps = {}, {}
        for path in _ours(pins):
            found = library.unpin(path)
            if found is None:
                continue
            if path.name in PROGRAMS:
                programs[path.name] = found
            else:
                maps[path.name] = Map(library, found)
        held = cls(library, pins, programs, maps)
        if _INGRESS in programs and "x0_settings" in maps:
            if VERDICTS not in programs:
                held.without_verdicts = _too_old()
            return held
        held.close()
        return None

    @classmethod
    def _loaded(cls, library: Libbpf, pins: Path, path: Path, reuse: Mapping[str, Map]) -> Programs:
        fds = {name: one.fd for name, one in reuse.items()}
        try:
            programs, maps = library.load(path, reuse=fds)
            why = ""
        except KernelRefused as error:
            if error.id != "X0-KRN-003":
                raise
            programs, maps = library.load(path, without=(VERDICTS,), reuse=fds)
            why = _too_old()
        made = cls(library, pins, programs, {one.name: one for one in maps})
        made.without_verdicts = why
        return made

    def _pin(self) -> None:
        _unpin_all(self._pins)
        for name, program in self.programs.items():
            self.library.pin(program, self._pins / name)
        for name, one in self.maps.items():
            self.library.pin(one.fd, self._pins / name)

    def keep(self) -> list[str]:
        """Pin again what somebody has unpinned, or unmounted.

        Returns:
            What was not pinned any more.
        Raises:
            KernelRefused: X0-KRN-006 it can't be pinned.
        """
        ours = self.programs | {name: one.fd for name, one in self.maps.items()}
        if not is_bpffs(self._pins):
            self._pins.mkdir(mode=0o700, exist_ok=True)
            mount_bpffs(self._pins)
        gone = sorted(ours.keys() - {path.name for path in _ours(self._pins)})
        for name in gone:
            self.library.pin(ours[name], self._pins / name)
        return gone

    def _settled(self, field: str) -> int:
        data = self.maps["x0_settings"].get(_ZERO)
        if data is None or len(data) != layout.SETTINGS.size:
            return -1
        return int(layout.SETTINGS.unpack(data)[field])

    def _settle(self, **fields: int) -> None:
        data = self.maps["x0_settings"].get(_ZERO)
        assert data is not None
        values = layout.SETTINGS.unpack(data) | fields
        self.maps["x0_settings"].put(_ZERO, layout.SETTINGS.pack(**values))

    def _take_over(self) -> None:
        """Put these programs wherever older ones of ours are."""
        for ifindex, _ in socket.if_nameindex():
            if self._xdp_on(ifindex) == _OURS:
                self.library.attach_xdp(ifindex, self.programs[_INGRESS])
            for direction in Direction:
                name = self.library.name_of_id(self.library.tc_on(ifindex, direction))
                if name in self.programs:
                    self.library.attach_tc(ifindex, self.programs[name], direction)

    def _xdp_on(self, ifindex: int) -> str:
        number = self.library.xdp_on(ifindex)
        name = self.library.name_of_id(number) if number else ""
        return _OURS if name.startswith(_OURS) else name or "?" * bool(number)

    # ------------------------------------------------------------------ interfaces
    def attach(self, ifindex: int, mode: Mode) -> None:
        """Put the programs on an underlay interface, or leave them there.

        Args:
            ifindex: its number.
            mode: on veth native mode works only if the other end has a native program, too, even if
                this one is taken.
        Raises:
            KernelRefused: X0-KRN-008 another XDP program is there; X0-KRN-009 the interface takes
                none.
        """
        on = self._xdp_on(ifindex)
        if on not in ("", _OURS) and mode is Mode.NATIVE:
            raise KernelRefused(
                "X0-KRN-008",
                f"interface {ifindex} runs the XDP program {on} of somebody else",
                "take it off (ip link set dev ... xdp off), or go on in generic mode",
            )
        try:
            self._attach(ifindex, mode)
        except OSError as error:
            raise KernelRefused(
                "X0-KRN-009",
                f"interface {ifindex} takes no programs in {mode.value} mode: {error.strerror}",
                "see docs/kernel.md",
            ) from None

    def _attach(self, ifindex: int, mode: Mode) -> None:
        if mode is Mode.NATIVE:
            self.library.attach_xdp(ifindex, self.programs[_INGRESS])
        arriving = _ARRIVE if mode is Mode.NATIVE else _GENERIC
        self.library.attach_tc(ifindex, self.programs[arriving], Direction.INGRESS)
        self.library.attach_tc(ifindex, self.programs[_LEAVE], Direction.EGRESS)
        # Last: both at once only count a rate twice; XDP leaves no hello of ours to the other.
        if mode is Mode.GENERIC and self._xdp_on(ifindex) == _OURS:
            self.library.detach_xdp(ifindex)

    def attach_clock(self, ifindex: int) -> None:
        """Put the program that sends requests at the end of the clock's track.

        Raises:
            KernelRefused: X0-KRN-009 the interface takes none.
        """
        try:
            self.library.attach_tc(ifindex, self.programs[_TURN], Direction.INGRESS)
        except OSError as error:
            raise KernelRefused(
                "X0-KRN-009", f"interface {ifindex} takes no programs: {error.strerror}"
            ) from None

    def attached(self) -> dict[int, Mode]:
        """Interfaces that run our programs, all that belong together, and how."""
        found = {}
        for ifindex, _ in socket.if_nameindex():
            arriving = self.library.name_of_id(self.library.tc_on(ifindex, Direction.INGRESS))
            if arriving == _GENERIC:
                found[ifindex] = Mode.GENERIC
            elif arriving == _ARRIVE and self._xdp_on(ifindex) == _OURS:
                found[ifindex] = Mode.NATIVE
        return found

    def detach(self, ifindex: int) -> None:
        """Take our programs off an interface; none there is fine."""
        if self._xdp_on(ifindex) == _OURS:
            self.library.detach_xdp(ifindex)
        ours = [side for side in Direction if self.library.tc_on(ifindex, side)]
        for side in ours:
            self.library.detach_tc(ifindex, side)
        if ours and not _has_filters(ifindex):
            self.library.remove_clsact(ifindex)

    # ------------------------------------------------------------------ running
    def run(self, name: str, data: bytes = b"", *, context: bytes = b"", repeat: int = 1) -> Run:
        """Run a program for its effect or for a test (PROG_TEST_RUN)."""
        return self.library.run(self.programs[name], data, context=context, repeat=repeat)

    def counters(self) -> dict[layout.Reason, int]:
        """How often each reason was met, over all CPUs."""
        counted = self.maps["x0_counters"]
        found = {}
        for reason in layout.Reason:
            data = counted.get(struct.pack("I", reason)) or b""
            found[reason] = sum(struct.unpack(f"{len(data) // 8}Q", data))
        return found

    def close(self) -> None:
        """Let go; what is pinned and attached goes on without us."""
        for program in self.programs.values():
            os.close(program)
        for one in self.maps.values():
            one.close()
        self.programs.clear()
        self.maps.clear()

    def remove(self) -> None:
        """Take everything off the interfaces and out of the kernel."""
        for ifindex, _ in socket.if_nameindex():
            self.detach(ifindex)
        self.close()
        _unpin_all(self._pins)
        _leave(self._pins)


def _ours(pins: Path) -> list[Path]:
    """A new BPF file system has files of the kernel's own, too."""
    return sorted(pins.glob(_OURS + "*"))


def _unpin_all(pins: Path) -> None:
    for path in _ours(pins):
        path.unlink()


def _leave(pins: Path) -> None:
    unmount(pins)
    with contextlib.suppress(OSError):
        pins.rmdir()


def is_veth(ifindex: int) -> bool:
    """Whether an interface is one end of a veth pair (`ETHTOOL_GDRVINFO`)."""
    try:
        name = socket.if_indextoname(ifindex)
    except OSError:
        return False
    info = array.array("B", struct.pack("I", 3) + bytes(192))
    request = struct.pack("16sQ16x", name.encode(), info.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, 0x8946, request)
        except OSError:
            return False
    return info.tobytes()[4:36].rstrip(b"\0") == b"veth"


def _has_filters(ifindex: int) -> bool:
    """Whether anybody's TC program is left on an interface."""
    netlink = Netlink()
    try:
        return any(
            netlink.dump("filters", _GETTFILTER, struct.pack("=BxxxiIII", 0, ifindex, 0, side, 0))
            for side in _SIDES
        )
    finally:
        netlink.close()


def _too_old() -> str:
    return f"Linux {os.uname().release} has no bpf_timer (5.15): verdicts come from user space"
