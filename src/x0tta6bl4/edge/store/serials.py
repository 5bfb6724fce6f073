"""Which serial numbers are those of certificates that are out: one look, beside the store's own.

A connection of its own that only reads: in WAL mode it waits for no writer, and no writer for it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from x0tta6bl4.edge.store.store import BUSY_S, FILE


class Serials:
    """Serial numbers in an authority's database.

    Args:
        directory: of the database; a `Store` has it open.
    """

    __slots__ = ("_connection",)

    def __init__(self, directory: Path) -> None:
        self._connection = sqlite3.connect(
            f"{(directory / FILE).absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )

    def has(self, serial: int) -> bool:
        """Whether a certificate with it was issued and kept; those long expired are forgotten."""
        found = self._connection.execute(
            "SELECT 1 FROM issued WHERE serial = ?", (f"{serial:x}",)
        ).fetchone()
        return found is not None

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()
