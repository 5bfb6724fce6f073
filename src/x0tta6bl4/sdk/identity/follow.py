"""One stream of the Workload API, kept open for ever.

    open --message--> owner hears it           --ended after >= 1 s--> open at once (SP-104)
         --ended sooner, or failed--> pause 0.05 s, doubled up to 3 s, +- 20 % --> open
         --InvalidArgument, Unimplemented--> never again (SP-098, SP-123)

Source: SPIFFE_Workload_API.md section 4.2, SPIFFE_Workload_Endpoint.md section 6.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from random import Random
from typing import Final, Generic, TypeVar

from x0tta6bl4.wire.errors import BadInput, BadMessage, NotFound, Unavailable, X0Error

PAUSE_S_MIN: Final = 0.05
PAUSE_S_MAX: Final = 3.0
SPREAD: Final = 0.2
STEADY_S: Final = 1.0
"""A stream that lived so long is opened again without a pause."""

T = TypeVar("T")


class Follow(Generic[T]):
    """Keeps one stream open and tells its owner what comes.

    Args:
        open: makes a stream.
        on_value: hears every message that is good.
        on_error: hears what went wrong: a bad message, an end, a failed dial.
        random: for the spread of pauses.
        pause: sleeps so many seconds.
    """

    def __init__(
        self,
        open: Callable[[], AsyncGenerator[T | BadMessage, None]],
        on_value: Callable[[T], None],
        on_error: Callable[[X0Error], None],
        random: Random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._open = open
        self._on_value = on_value
        self._on_error = on_error
        self._random = random
        self._pause = pause
        self.failures = 0
        """Ends in a row that came too soon."""

    async def run(self) -> None:
        """Go on until cancelled, or until a repetition makes no sense."""
        now = asyncio.get_running_loop().time
        while True:
            start = now()
            error = await self._once()
            self._on_error(error)
            if isinstance(error, NotFound) or (
                isinstance(error, BadInput) and not isinstance(error, BadMessage)
            ):
                return
            self.failures = 0 if now() - start >= STEADY_S else self.failures + 1
            await self._pause(self._next_pause_s())

    async def _once(self) -> X0Error:
        try:
            async with contextlib.aclosing(self._open()) as stream:
                async for item in stream:
                    if isinstance(item, BadMessage):
                        self._on_error(item)
                    else:
                        self._on_value(item)
        except X0Error as error:
            return error
        return Unavailable("X0-SDK-015", "the Workload API ended the stream")

    def _next_pause_s(self) -> float:
        if not self.failures:
            return 0.0
        pause = min(PAUSE_S_MIN * 2 ** min(self.failures - 1, 10), PAUSE_S_MAX)
        return float(pause * (1 + self._random.uniform(-SPREAD, SPREAD)))
