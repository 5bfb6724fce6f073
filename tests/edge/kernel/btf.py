"""Types of an object file, read from its BTF: enough of it to compare layouts.

Source: Documentation/bpf/btf.rst of Linux.
"""

from __future__ import annotations

import struct
from pathlib import Path

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST = 8, 9, 10
# Bytes that follow a type: so many once, so many for each member.
_TRAILING = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8)}
_TRAILING |= {14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}


class Btf:
    """The types of one object."""

    def __init__(self, path: Path) -> None:
        raw = section(path.read_bytes(), b".BTF")
        magic, _, _, head, types, types_size, strings, _ = struct.unpack_from("<HBBIIIII", raw)
        assert magic == 0xEB9F
        self._strings = raw[head + strings :]
        self._types: list[tuple[str, int, int, int, bytes]] = [("", 0, 0, 0, b"")]
        at, end = head + types, head + types + types_size
        while at < end:
            name, info, size = struct.unpack_from("<III", raw, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            once, each = _TRAILING.get(kind, (0, 0))
            more = once + each * count
            self._types.append((self._text(name), kind, count, size, raw[at + 12 : at + 12 + more]))
            at += 12 + more

    def _text(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode()

    def struct(self, name: str) -> tuple[int, dict[str, tuple[int, int]]]:
        """Size of a struct, and offset and size in bytes of each of its members."""
        for one, kind, count, size, more in self._types:
            if one == name and kind == _STRUCT:
                members = {}
                for index in range(count):
                    field, type_id, bits = struct.unpack_from("<III", more, 12 * index)
                    members[self._text(field)] = (bits // 8, self._size(type_id))
                return size, members
        raise KeyError(name)

    def _size(self, type_id: int) -> int:
        _, kind, _, size, more = self._types[type_id]
        if kind == _ARRAY:
            element, _, count = struct.unpack_from("<III", more)
            return self._size(element) * int(count)
        if kind == _PTR:
            return 8
        return self._size(size) if kind in (_TYPEDEF, _VOLATILE, _CONST) else size

    def structs(self) -> list[str]:
        """Names of all structs."""
        return [name for name, kind, *_ in self._types if kind == _STRUCT and name]

    def enums(self) -> dict[str, int]:
        """Every enumerator."""
        return {
            self._text(name): value
            for _, kind, count, _, more in self._types
            if kind == _ENUM
            for name, value in (struct.unpack_from("<Ii", more, 8 * i) for i in range(count))
        }


def section(elf: bytes, wanted: bytes) -> bytes:
    """Content of one section of a 64-bit little-endian ELF file."""
    table, size, count, names = (
        *struct.unpack_from("<Q", elf, 40),
        *struct.unpack_from("<HHH", elf, 58),
    )
    heads = [struct.unpack_from("<IIQQQQ", elf, table + size * index) for index in range(count)]
    text = heads[names][4]
    for name, _, _, _, offset, length in heads:
        end = elf.index(b"\0", text + name)
        if elf[text + name : end] == wanted:
            return elf[offset : offset + length]
    raise KeyError(wanted)
