"""The proxy that an agent has started; it outlives its agent."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


class ProxyChild:
    """One proxy at a time.

    Args:
        config: path of the node's settings.
        out: file for what it prints.
    """

    __slots__ = ("_config", "_out", "_process")

    def __init__(self, config: Path, out: Path) -> None:
        self._config = config
        self._out = out
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the one that was started last, while it lives; else 0."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    async def start(self) -> str:
        """Start one, after the end of the one before, which is ended if it lives.

        Returns:
            How that one ended; empty: there was none.
        """
        ended = ""
        if self._process is not None:
            if self.pid:
                self._process.kill()
            ended = f"the proxy ended, status {await self._process.wait()}; see {self._out}"
        arguments = ("-m", "x0tta6bl4", "proxy", "run", "--config", str(self._config))
        with open(self._out, "ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return ended
