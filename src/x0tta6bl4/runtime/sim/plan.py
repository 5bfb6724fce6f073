"""A fault as data: what goes wrong, when, for how long, where, with which parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import msgspec

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.runtime.sim.fleet import Fleet

FOREVER: Final = 10**6 * SECOND


@final
class Fault(msgspec.Struct, frozen=True, gc=False):
    """One thing that goes wrong for a while."""

    kind: str
    """A key of KINDS."""
    at: int
    """Virtual time of its beginning."""
    duration: int
    """After this it is undone; FOREVER: never."""
    target: tuple[str, ...]
    """One host, or the two ends of a link (the order gives the direction), or a set of hosts."""
    number: int = 0
    """Its parameter: parts per million, microseconds, bytes per second: the kind says which."""

    @property
    def forever(self) -> bool:
        """Whether it is never undone."""
        return self.duration >= FOREVER

    def __str__(self) -> str:
        return (
            f"{self.at / SECOND:.3f} {self.kind} {'-'.join(self.target)}"
            f" {self.number} for {'ever' if self.forever else f'{self.duration / SECOND:.3f}'}"
        )


Undo = Callable[[], None]
Kind = Callable[[Fleet, Fault], Undo]
