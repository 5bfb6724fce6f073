"""An operator's hands, blocking: the authority's admin socket and a node's agent socket.

Commands, the demo and the real-process tests use these; each call opens a connection, asks one
thing and closes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from x0tta6bl4.edge.authority_api.client import AdminClient
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.records import Name, Revocation

SOCKET_NAME: Final = "admin.sock"


class Operator:
    """Administers one authority through its local socket.

    Args:
        state_dir: of the authority.
        deadline_s: for each call.
    """

    def __init__(self, state_dir: Path, deadline_s: float = 10.0) -> None:
        self._path = str(state_dir / SOCKET_NAME)
        self._deadline_s = deadline_s

    def call(self, method: str, request: Any) -> Any:
        """One method of `wire.authority.ADMIN_METHODS`.

        Raises:
            X0Error: as the authority answered, or Unavailable.
        """
        return self.calls([(method, request)])[0]

    def calls(self, requests: Sequence[tuple[str, Any]]) -> list[Any]:
        """Several methods over one connection, in order; the first error ends them."""

        async def ask() -> list[Any]:
            async with AdminClient(self._path, self._deadline_s) as client:
                return [await client.call(method, request) for method, request in requests]

        return asyncio.run(ask())

    def is_serving(self) -> bool:
        """Whether the authority answers; `Mesh.wait` waits for it."""
        if not os.path.exists(self._path):
            return False
        try:
            self.call("Health", words.Nothing())
        except X0Error:
            return False
        return True

    def create_entries(self, entries: Sequence[words.Entry]) -> None:
        """Register several workloads."""
        self.calls([("EntryCreate", entry) for entry in entries])

    def create_name(self, name: Name) -> None:
        """Give a service name to an ID."""
        self.call("NameCreate", name)

    def update_name(self, name: Name) -> None:
        """Replace a service name, its callers included."""
        self.call("NameUpdate", name)

    def revoke(self, subject: str, reason: str) -> Revocation:
        """Revoke and ban a subject."""
        revoked: Revocation = self.call("Revoke", words.Revoke(subject=subject, reason=reason))
        return revoked

    def enrol_file(self, node: str, path: Path) -> None:
        """Make a token for a node and write it into a 0600 file."""
        made: words.TokenMade = self.call("TokenCreate", words.TokenCreate(node=node))
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(made.token + "\n")
