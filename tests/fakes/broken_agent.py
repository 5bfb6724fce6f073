"""An agent with a bug: at SIGUSR1 one of its tasks fails, at SIGUSR2 with an error for its user."""

from __future__ import annotations

import asyncio
import signal
import sys

from x0tta6bl4.app import agent
from x0tta6bl4.app.cli import services
from x0tta6bl4.wire.errors import Refused

BUG, WRONG = signal.SIGUSR1, signal.SIGUSR2
START = f"from {__name__} import main; main()  # Its pid counts as one of x0tta6bl4."
COMMAND = (sys.executable, "-c", START, "node", "run", "--config")
"""To be followed by the path of a node.toml."""


class BrokenAgent(agent.AgentProcess):
    """See above."""

    async def _admit(self) -> None:
        told = asyncio.get_running_loop().create_future()
        errors = {BUG: AssertionError("a bug"), WRONG: Refused("X0-LAB-002", "it is wrong")}
        for number, error in errors.items():
            asyncio.get_running_loop().add_signal_handler(number, told.set_exception, error)
        self._spawn(_fail(told))
        await super()._admit()


async def _fail(told: asyncio.Future[None]) -> None:
    await told


def main() -> None:
    """As `x0 node run`."""
    agent.AgentProcess = BrokenAgent  # type: ignore[misc]
    services.main(sys.argv[1:])
