"""Thin binding of libbpf: load an object, keep its file descriptors, attach, pin, read.

The library beside this module is used if the wheel brought one (`bpf/libbpf/build.sh`), else the
system's `libbpf.so.1` (1.0 or newer).  Nothing here knows what our programs do.  Every failure is a
`KernelRefused`, which names why, so that the caller can fall back to userspace and say so.

Source: libbpf 1.1 (bpf.h, libbpf.h); include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

import msgspec

from x0tta6bl4.wire.errors import Unavailable

LOG_BYTES: Final = 1 << 20
"""Room for what the verifier says about one program."""
SHIPPED: Final = Path(__file__).with_name("libbpf.so.1")
"""In wheels for one kind of machine; clones and other wheels have none."""
SYSTEM: Final = "libbpf.so.1"
_FROM: Final = {str(SHIPPED): "of the wheel", SYSTEM: "of the system"}
_NAMED: Final = "that was named"
NOTHING: Final[Mapping[str, int]] = MappingProxyType({})
_LOG_LINES: Final = 6
_EVENTS_MAX: Final = 4096
_BPFFS_MAGIC: Final = 0xCAFE4A11
_PERCPU: Final = {5, 6, 10, 21}
_TC_PRIORITY: Final = 10
_TC_HANDLE: Final = 0x5830


class KernelRefused(Unavailable):
    """The kernel data plane is not to be had here; the node works in userspace instead."""


class Direction(enum.IntEnum):
    """Side of an interface that a TC program is attached to (`enum bpf_tc_attach_point`)."""

    INGRESS = 1
    EGRESS = 2


@final
class Run(msgspec.Struct, frozen=True, gc=False):
    """What one PROG_TEST_RUN came to."""

    verdict: int
    data: bytes
    nanoseconds: int
    """Mean of one run."""


class _TestRun(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_char_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


class _TcHook(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    ]


class _TcOptions(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    ]


class _XdpQuery(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_id", ctypes.c_uint32),
        ("drv_prog_id", ctypes.c_uint32),
        ("hw_prog_id", ctypes.c_uint32),
        ("skb_prog_id", ctypes.c_uint32),
        ("attach_mode", ctypes.c_uint8),
    ]


_Sample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_XDP_NATIVE: Final = 1 << 2
_P, _I, _U = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32
_S, _Z = ctypes.c_char_p, ctypes.c_size_t
_CALLS: Final[dict[str, tuple[object, tuple[object, ...]]]] = {
    "bpf_object__open_file": (_P, (_S, _P)),
    "bpf_object__load": (_I, (_P,)),
    "bpf_object__close": (None, (_P,)),
    "bpf_object__next_program": (_P, (_P, _P)),
    "bpf_object__next_map": (_P, (_P, _P)),
    "bpf_program__name": (_S, (_P,)),
    "bpf_program__fd": (_I, (_P,)),
    "bpf_program__set_autoload": (_I, (_P, ctypes.c_bool)),
    "bpf_program__set_log_buf": (_I, (_P, _P, _Z)),
    "bpf_map__name": (_S, (_P,)),
    "bpf_map__fd": (_I, (_P,)),
    "bpf_map__reuse_fd": (_I, (_P, _I)),
    "bpf_map_update_elem": (_I, (_I, _S, _S, ctypes.c_uint64)),
    "bpf_map_lookup_elem": (_I, (_I, _S, _P)),
    "bpf_map_delete_elem": (_I, (_I, _S)),
    "bpf_map_get_next_key": (_I, (_I, _S, _P)),
    "bpf_map_update_batch": (_I, (_I, _S, _S, _P, _P)),
    "bpf_obj_pin": (_I, (_I, _S)),
    "bpf_obj_get": (_I, (_S,)),
    "bpf_obj_get_info_by_fd": (_I, (_I, _P, _P)),
    "bpf_prog_get_fd_by_id": (_I, (_U,)),
    "bpf_prog_test_run_opts": (_I, (_I, _P)),
    "bpf_xdp_attach": (_I, (_I, _I, _U, _P)),
    "bpf_xdp_detach": (_I, (_I, _U, _P)),
    "bpf_xdp_query": (_I, (_I, _I, _P)),
    "bpf_tc_hook_create": (_I, (_P,)),
    "bpf_tc_hook_destroy": (_I, (_P,)),
    "bpf_tc_attach": (_I, (_P, _P)),
    "bpf_tc_detach": (_I, (_P, _P)),
    "bpf_tc_query": (_I, (_P, _P)),
    "libbpf_num_possible_cpus": (_I, ()),
    "libbpf_set_print": (_P, (_P,)),
    "libbpf_version_string": (_S, ()),
    "ring_buffer__new": (_P, (_I, _P, _P, _P)),
    "ring_buffer__consume": (_I, (_P,)),
    "ring_buffer__epoll_fd": (_I, (_P,)),
    "ring_buffer__free": (None, (_P,)),
}


@final
class Libbpf:
    """The library; one per process is enough.

    Args:
        path: of another library than the one that would be found.
    Raises:
        KernelRefused: none is here (X0-KRN-001).
    """

    def __init__(self, path: str = "") -> None:
        names = [path] if path else [str(SHIPPED)] * SHIPPED.exists() + [SYSTEM]
        failed: list[str] = []
        for name in names:
            try:
                library = ctypes.CDLL(name, use_errno=True)
                for call, (result, arguments) in _CALLS.items():
                    function = getattr(library, call)
                    function.restype, function.argtypes = result, arguments
            except (OSError, AttributeError) as error:
                failed.append(f"the one {_FROM.get(name, _NAMED)} ({error})")
            else:
                break
        else:
            raise KernelRefused(
                "X0-KRN-001",
                f"no library libbpf 1.0 or newer: {' and '.join(failed)} can't be used",
                "install the package libbpf1; until then the node works in userspace",
            )
        version = library.libbpf_version_string().decode().removeprefix("v")
        why = f", as {failed[0]} can't be used" if failed else ""
        self.about = f"libbpf {version} {_FROM.get(name, _NAMED)}{why}"
        """Its version, where it is from, and why no better one is used."""
        self._call = library
        self._call.libbpf_set_print(None)  # It would write to our stderr.

    # ------------------------------------------------------------------ objects
    def load(
        self, path: Path, *, without: Collection[str] = (), reuse: Mapping[str, int] = NOTHING
    ) -> tuple[dict[str, int], list[Map]]:
        """Load an object's programs and maps.

        Args:
            path: of the object file.
            without: names of programs to leave out.
            reuse: maps that are there already, by name, to use instead of new ones.
        Returns:
            File descriptors of the programs by name, and the maps; all belong to the caller.
        Raises:
            KernelRefused: the file (X0-KRN-004), a map or a program was refused: X0-KRN-002 for
                missing rights, X0-KRN-003 with the verifier's last lines.
        """
        opened = self._call.bpf_object__open_file(os.fsencode(path), None)
        if not opened:
            raise _refused("X0-KRN-004", f"{path.name} is no object that can be loaded")
        try:
            return self._load(opened, path, without, reuse)
        finally:
            self._call.bpf_object__close(opened)

    def _load(
        self, opened: int, path: Path, without: Collection[str], reuse: Mapping[str, int]
    ) -> tuple[dict[str, int], list[Map]]:
        programs = {
            self._call.bpf_program__name(one).decode(): one
            for one in _chain(self._call.bpf_object__next_program, opened)
        }
        logs = {name: ctypes.create_string_buffer(LOG_BYTES) for name in programs}
        for name, one in programs.items():
            self._call.bpf_program__set_autoload(one, name not in without)
            self._call.bpf_program__set_log_buf(one, logs[name], LOG_BYTES)
        for one in _chain(self._call.bpf_object__next_map, opened):
            held = reuse.get(self._call.bpf_map__name(one).decode())
            if held is not None and self._call.bpf_map__reuse_fd(one, held):
                raise _refused("X0-KRN-004", "a map of the last start can't be used again")
        if self._call.bpf_object__load(opened):
            failed = ctypes.get_errno()
            if failed in (errno.EPERM, errno.EACCES) and not any(
                log.value for log in logs.values()
            ):
                raise _no_rights(failed)
            said = [(name, log.value.decode(errors="replace")) for name, log in logs.items()]
            name, log = next(((name, log) for name, log in said if log), ("its maps", ""))
            if failed in (errno.EPERM, errno.EACCES) and not log:
                raise _no_rights(failed)
            lines = log.strip().splitlines()[-_LOG_LINES:]
            raise KernelRefused(
                "X0-KRN-003",
                f"the kernel refused {name} of {path.name}: {os.strerror(failed)}",
                "; ".join(line.strip() for line in lines)
                or f"Linux {os.uname().release} may be too old: see docs/kernel.md",
            )
        maps = [
            Map(self, os.dup(self._call.bpf_map__fd(one)))
            for one in _chain(self._call.bpf_object__next_map, opened)
        ]
        return {
            name: os.dup(self._call.bpf_program__fd(one))
            for name, one in programs.items()
            if name not in without
        }, maps

    def run(self, program: int, data: bytes, *, context: bytes = b"", repeat: int = 1) -> Run:
        """Run a program on a packet, or on a context alone (PROG_TEST_RUN).

        Args:
            program: its file descriptor.
            data: a whole frame; empty for a program without packets.
            context: the program's context as it is laid out; empty for the default.
            repeat: how often; the time is the mean.
        """
        out = ctypes.create_string_buffer(len(data) + 512) if data else None
        given = _TestRun(
            sz=ctypes.sizeof(_TestRun),
            data_in=data or None,
            data_out=ctypes.addressof(out) if out else None,
            data_size_in=len(data),
            data_size_out=len(out) if out else 0,
            ctx_in=context or None,
            ctx_size_in=len(context),
            repeat=repeat if data else 0,
        )
        if self._call.bpf_prog_test_run_opts(program, ctypes.byref(given)):
            raise _refused("X0-KRN-005", "the kernel can't run a program for a test")
        data_out = out.raw[: given.data_size_out] if out else b""
        return Run(verdict=given.retval, data=data_out, nanoseconds=given.duration)

    # ------------------------------------------------------------------ pins
    def pin(self, descriptor: int, path: Path) -> None:
        """Keep a program or map alive without a process."""
        if self._call.bpf_obj_pin(descriptor, os.fsencode(path)):
            raise _refused("X0-KRN-006", f"{path} can't be pinned")

    def unpin(self, path: Path) -> int | None:
        """File descriptor of what is pinned there, or None."""
        found = int(self._call.bpf_obj_get(os.fsencode(path)))
        return found if found >= 0 else None

    def name_and_id(self, program: int) -> tuple[str, int]:
        """Name and number of a program."""
        info = self._info(program)
        return info[64:80].rstrip(b"\0").decode(), struct.unpack_from("I", info, 4)[0]

    def spent(self, program: int) -> tuple[int, int]:
        """Nanoseconds and runs of a program, while `kernel.bpf_stats_enabled` is 1."""
        nanoseconds, runs = struct.unpack_from("2Q", self._info(program), 192)
        return nanoseconds, runs

    def _info(self, program: int) -> bytes:
        """`struct bpf_prog_info`."""
        info = ctypes.create_string_buffer(232)
        size = ctypes.c_uint32(len(info))
        if self._call.bpf_obj_get_info_by_fd(program, info, ctypes.byref(size)):
            raise _refused("X0-KRN-005", "the kernel does not tell about a program")
        return info.raw

    def name_of_id(self, number: int) -> str:
        """Name of a loaded program, empty if it is gone."""
        program = self._call.bpf_prog_get_fd_by_id(number)
        if program < 0:
            return ""
        try:
            return self.name_and_id(program)[0]
        finally:
            os.close(program)

    # ------------------------------------------------------------------ attachments
    def xdp_on(self, ifindex: int) -> int:
        """Number of the XDP program on an interface in any mode, 0 if there is none."""
        found = _XdpQuery(sz=ctypes.sizeof(_XdpQuery))
        failed = self._call.bpf_xdp_query(ifindex, 0, ctypes.byref(found))
        return 0 if failed else int(found.drv_prog_id or found.hw_prog_id or found.skb_prog_id)

    def attach_xdp(self, ifindex: int, program: int) -> None:
        """Put an XDP program into an interface's driver, in place of what is there.

        Raises:
            OSError: the interface does not take it.
        """
        if self._call.bpf_xdp_attach(ifindex, program, _XDP_NATIVE, None):
            raise _os_error(f"XDP on interface {ifindex}")

    def detach_xdp(self, ifindex: int) -> None:
        """Take the XDP program out of the driver; nothing there is fine."""
        self._call.bpf_xdp_detach(ifindex, _XDP_NATIVE, None)

    def attach_tc(self, ifindex: int, program: int, direction: Direction) -> None:
        """Put a TC program on an interface, in place of our own from before.

        Raises:
            OSError: the interface does not take it.
        """
        hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=direction)
        if self._call.bpf_tc_hook_create(ctypes.byref(hook)) not in (0, -errno.EEXIST):
            raise _os_error(f"clsact on interface {ifindex}")
        how = _tc_options(prog_fd=program, flags=1)
        if self._call.bpf_tc_attach(ctypes.byref(hook), ctypes.byref(how)):
            raise _os_error(f"TC {direction.name.lower()} on interface {ifindex}")

    def tc_on(self, ifindex: int, direction: Direction) -> int:
        """Number of our TC program on an interface, 0 if there is none."""
        hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=direction)
        found = _tc_options()
        failed = self._call.bpf_tc_query(ctypes.byref(hook), ctypes.byref(found))
        return 0 if failed else int(found.prog_id)

    def detach_tc(self, ifindex: int, direction: Direction) -> None:
        """Take our TC program off; nothing there is fine."""
        hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=direction)
        self._call.bpf_tc_detach(ctypes.byref(hook), ctypes.byref(_tc_options()))

    def remove_clsact(self, ifindex: int) -> None:
        """Remove the qdisc that TC programs sit on, with all of them."""
        both = Direction.INGRESS | Direction.EGRESS
        hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=both)
        self._call.bpf_tc_hook_destroy(ctypes.byref(hook))


@final
class Map:
    """A map by its file descriptor, which it owns."""

    __slots__ = ("_call", "entries", "fd", "key_bytes", "name", "percpu", "value_bytes")

    def __init__(self, library: Libbpf, fd: int) -> None:
        self._call = library._call
        info = ctypes.create_string_buffer(128)
        size = ctypes.c_uint32(len(info))
        if self._call.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)):
            raise _refused("X0-KRN-005", "the kernel does not tell about a map")
        kind, _, self.key_bytes, self.value_bytes, self.entries = struct.unpack_from("5I", info)
        self.name = info.raw[24:40].rstrip(b"\0").decode()
        self.percpu = self._call.libbpf_num_possible_cpus() if kind in _PERCPU else 0
        self.fd = fd

    def get(self, key: bytes) -> bytes | None:
        """Value of a key; of a per-CPU map the values of all CPUs in a row, 8-byte aligned."""
        room = (self.value_bytes + 7) // 8 * 8 * self.percpu or self.value_bytes
        out = ctypes.create_string_buffer(room)
        return None if self._call.bpf_map_lookup_elem(self.fd, key, out) else out.raw

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key.

        Raises:
            KernelRefused: the map is full (X0-KRN-007).
        """
        assert len(key) == self.key_bytes
        assert len(value) == self.value_bytes
        if self._call.bpf_map_update_elem(self.fd, key, value, 0):
            raise _refused("X0-KRN-007", f"{self.name} takes no more than {self.entries} entries")

    def delete(self, key: bytes) -> None:
        """Remove a key; one that is not there is fine."""
        self._call.bpf_map_delete_elem(self.fd, key)

    def keys(self) -> list[bytes]:
        """All keys, in no order; at most as many as the map has room for."""
        out = ctypes.create_string_buffer(self.key_bytes)
        found: list[bytes] = []
        last: bytes | None = None
        while len(found) < self.entries and not self._call.bpf_map_get_next_key(self.fd, last, out):
            last = out.raw
            found.append(last)
        return found

    def close(self) -> None:
        """Let go of the map; pinned or in use by a program it lives on."""
        os.close(self.fd)


@final
class Ring:
    """Reader of a ring buffer; `fileno()` becomes readable when there is something."""

    __slots__ = ("_call", "_callback", "_ring", "_seen")

    def __init__(self, library: Libbpf, ring: Map) -> None:
        self._call = library._call
        self._seen: list[bytes] = []
        self._callback = _Sample(self._sample)
        self._ring = self._call.ring_buffer__new(ring.fd, self._callback, None, None)
        if not self._ring:
            raise _refused("X0-KRN-005", "the ring of events can't be read")

    def _sample(self, _context: int, data: int, size: int) -> int:
        self._seen.append(ctypes.string_at(data, size))
        return -errno.EAGAIN if len(self._seen) >= _EVENTS_MAX else 0

    def fileno(self) -> int:
        """For epoll."""
        return int(self._call.ring_buffer__epoll_fd(self._ring))

    def read(self) -> list[bytes]:
        """What has come since, at most 4,096 at a time; never waits."""
        self._call.ring_buffer__consume(self._ring)
        seen, self._seen = self._seen, []
        return seen

    def close(self) -> None:
        """Stop reading."""
        self._call.ring_buffer__free(self._ring)


def is_bpffs(path: Path) -> bool:
    """Whether pins can be made in this directory: it is on a BPF file system."""
    out = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(ctypes.c_char_p(os.fsencode(path)), out):
        return False
    kind: int = struct.unpack_from("l", out)[0]
    return kind == _BPFFS_MAGIC


def mount_bpffs(path: Path) -> None:
    """Mount a BPF file system.

    Raises:
        KernelRefused: not allowed, or the kernel has none (X0-KRN-006).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700"):
        raise _refused("X0-KRN-006", f"no BPF file system can be mounted on {path}")


def unmount(path: Path) -> None:
    """Undo `mount_bpffs`, at once even if somebody looks at it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.umount2(os.fsencode(path), 2)


def _chain(following: Callable[[int, int | None], int | None], opened: int) -> Iterator[int]:
    one = following(opened, None)
    while one:
        yield one
        one = following(opened, one)


def _tc_options(**more: int) -> _TcOptions:
    return _TcOptions(
        sz=ctypes.sizeof(_TcOptions), handle=_TC_HANDLE, priority=_TC_PRIORITY, **more
    )


def _os_error(what: str) -> OSError:
    failed = ctypes.get_errno()
    return OSError(failed, f"{what}: {os.strerror(failed)}")


def _no_rights(failed: int) -> KernelRefused:
    return KernelRefused(
        "X0-KRN-002",
        f"this process may not load programs into the kernel ({os.strerror(failed)})",
        "run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    )


def _refused(id: str, what: str) -> KernelRefused:
    failed = ctypes.get_errno()
    if failed in (errno.EPERM, errno.EACCES):
        return _no_rights(failed)
    return KernelRefused(id, f"{what}: {os.strerror(failed)}", "see docs/kernel.md")
