"""Keys of hellos between two kernels: into which slot new ones go, and from when on they are used.

Every connection of a link has keys of its own, one for each direction.  Who sends hellos has one
key, who takes them has two, in two slots; a hello names its slot.

    sender                                         receiver
    the connection counts here; I send under
    this slot (`KernelOffer.slot`) --------------> puts the new key into the other one
    sends under the new key <--------------------- takes hellos under it (`KernelOffer.ready`)

What connections of before still carry is not heard any more once a newer one counts.  So what the
sender says of its slot is true until it hears `ready` on this very connection, and the slot that it
uses is never overwritten, however fast connections follow each other.
"""

from __future__ import annotations

import time
from typing import Protocol, final

from x0tta6bl4.edge.kernel.detector import keys_of
from x0tta6bl4.wire.messages import KernelOffer


class Slots(Protocol):
    """Where the keys of links lie: `edge.kernel.detector.Detector`."""

    def slot(self, number: int) -> int:
        """Under the key of which slot hellos are sent."""

    def sends(self, number: int) -> bool:
        """Whether there is a key in it."""

    def send_under(self, number: int, slot: int, key: bytes) -> None:
        """Send under this key, in this slot, from now on."""

    def take_under(self, number: int, slot: int, key: bytes) -> None:
        """Take hellos under this key, in this slot, too."""

    def forget_peer(self, number: int) -> None:
        """Take nothing that the neighbour's kernel has sent so far."""


@final
class Keys:
    """Keys of one link.

    Args:
        number: of the link here.
        lower: whether this node has the lower name of the two.

    Attributes:
        used: hellos are sent under keys of the newest connection, or as an earlier agent has left
            it.
        used_at: since these monotonic seconds.
    """

    __slots__ = ("_into", "_lower", "_number", "_secret", "_taken", "used", "used_at")

    def __init__(self, number: int, lower: bool) -> None:
        self._number = number
        self._lower = lower
        self._secret = b""
        self._into = 0
        self._taken = self.used = False
        self.used_at = 0.0

    def forget(self) -> None:
        """The link is watched no longer."""
        self._secret, self.used = b"", False

    def heard(self, slots: Slots, secret: bytes, theirs: KernelOffer) -> dict[str, int]:
        """The connection that counts, and what the neighbour has said on it up to now.

        Args:
            slots: of this node.
            secret: 32 bytes of the connection: the first half is for hellos of the lower name.
            theirs: the neighbour's newest offer.
        Returns:
            What is to be said to the neighbour: fields of `KernelOffer`.
        """
        say: dict[str, int] = {}
        send, take = keys_of(secret, self._lower)
        if secret != self._secret:
            self._secret, self._taken, self.used = secret, False, False
            slot = slots.slot(self._number)
            self._into = 1 - slot
            say = {"slot": slot, "fresh": not slots.sends(self._number)}
        if theirs.slot >= 0 and not self._taken:
            if theirs.fresh:
                slots.forget_peer(self._number)
            slots.take_under(self._number, 1 - theirs.slot, take)
            self._taken = True
            say["ready"] = True
        if theirs.ready and not self.used:
            slots.send_under(self._number, self._into, send)
            self.used, self.used_at = True, time.monotonic()
        return say
