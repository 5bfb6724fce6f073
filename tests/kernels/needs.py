"""What the object asks of a kernel, read from the object alone: for kernels that can't be booted.

A helper and a kind of program have a number for ever, and are in every Linux from the one on that
brought them; relocations against a kernel's types, which could fail on one kernel alone, must
not be there.  It proves that nothing is missing, not that the verifier agrees: the booted kernels
before and after say so.

Source: include/uapi/linux/bpf.h and kernel/bpf of Linux, by release; Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from x0tta6bl4.edge.kernel.programs import OBJECT

Linux = tuple[int, int]
HELPERS: Final[dict[int, Linux]] = {
    1: (3, 19), 2: (3, 19), 5: (4, 1), 9: (4, 1), 13: (4, 2), 23: (4, 4), 39: (4, 9),
    50: (4, 13), 130: (5, 8), 169: (5, 15), 170: (5, 15), 171: (5, 15),
}  # fmt: skip
"""By number: the Linux that brought it.  Look up, update; clock; store; clone; redirect; pull;
adjust; ring buffer; timers."""
KINDS: Final[dict[str, Linux]] = {"xdp": (4, 8), "tc": (4, 1), "syscall": (5, 14)}
LOOPS: Final = (5, 3)
"""Loops that end, and static functions with them."""
CALLBACK: Final = (5, 13)
"""Functions that the kernel calls back."""
_CALL, _ATOMIC, _ADD = 0x85, (0xC3, 0xDB), 0


class Section:
    """One section of the object."""

    def __init__(self, elf: bytes, index: int) -> None:
        table, size, _, names = _head(elf)
        rows = [struct.unpack_from("<IIQQQQIIQQ", elf, table + size * i) for i in (index, names)]
        (name, self.kind, self.flags, _, at, length, *_), text = rows
        self.content = elf[at : at + length] if self.kind != 8 else b""
        self.name = elf[text[4] + name : elf.index(b"\0", text[4] + name)].decode()


def _head(elf: bytes) -> tuple[int, int, int, int]:
    return (*struct.unpack_from("<Q", elf, 40), *struct.unpack_from("<HHH", elf, 58))


def sections(path: Path = OBJECT) -> dict[str, Section]:
    """All by name."""
    elf = path.read_bytes()
    found = [Section(elf, index) for index in range(_head(elf)[2])]
    return {one.name: one for one in found}


def oldest(path: Path = OBJECT) -> dict[str, Linux]:
    """The oldest Linux that has what the programs of each kind ask for.

    Raises:
        KeyError: a helper that is not in the table.
        AssertionError: something that can't be told from numbers.
    """
    found = sections(path)
    assert not relocations(found[".BTF.ext"].content), "it asks for types of the running kernel"
    shared = max((LOOPS, *_asked(found[".text"].content, timers=False)))
    return {
        kind: max((since, shared, *_asked(found[kind].content, timers=True)))
        for kind, since in KINDS.items()
    }


def _asked(code: bytes, *, timers: bool) -> Iterator[Linux]:
    for at in range(0, len(code), 8):
        op, registers, _, number = struct.unpack_from("<BBhi", code, at)
        if op in _ATOMIC:
            assert number == _ADD, "an atomic that fetches: Linux 5.12"
        if op == _CALL and registers >> 4 == 0 and (timers or HELPERS[number] < CALLBACK):
            yield HELPERS[number]  # What timers call is in .text, and only loaded with them.


def relocations(ext: bytes) -> int:
    """Bytes of relocations against the types of a kernel."""
    size = struct.unpack_from("<I", ext, 4)[0]
    found: int = struct.unpack_from("<I", ext, 28)[0] if size >= 32 else 0
    return found


NOT_BOOTED: Final = ((5, 8), (5, 15), (6, 0), (6, 6))
PROGRAMS_OF: Final = {
    "xdp": "x0_ingress",
    "tc": "x0_arrive, x0_generic, x0_leave, x0_turn, x0_start",
    "syscall": "x0_arm",
}


def page(path: Path = OBJECT) -> str:
    """The part of docs/kernels.md on kernels that are not booted."""
    since = oldest(path)
    rows = []
    for release in NOT_BOOTED:
        has = [PROGRAMS_OF[kind] for kind, first in since.items() if release >= first]
        lacks = [f"{PROGRAMS_OF[kind]} (Linux {first[0]}.{first[1]})"
                 for kind, first in since.items() if release < first]  # fmt: skip
        rows.append(f"| {release[0]}.{release[1]} | {', '.join(has)} | {', '.join(lacks)} |")
    return "\n".join(
        [
            "## Kernels that are not booted",
            "",
            "Debian has none of these. What was done instead: the numbers of all helpers, and",
            "kinds of programs, that the object asks for are held against the Linux that brought",
            "them; and it has no relocation against the types (BTF) of a kernel, so there are none",
            "to compare with.",
            "",
            "| Linux | has all for | lacks something for |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
