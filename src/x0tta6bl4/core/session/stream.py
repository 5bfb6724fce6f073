"""One stream: an application connection inside a session, and its credit in both directions.

    opening --OPENED--> open --FIN out--> half-closed --FIN in--> done
       |                  |                    (the two FINs in any order)
       +------RST---------+-----RST in either direction------> done

A driver (or a test) derives from `Stream` and fills in the `on_` methods; they are called by the
pipe while it takes bytes in and must not raise.  A sender may have `credit` more bytes on the way
than the other end's application has taken; the credit starts at 64 KiB and doubles up to 1 MiB
while the application keeps up.

Source: RFC 9000 section 4.1 for credit; TCP's receive buffer auto-tuning for its growth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from x0tta6bl4.core.session.frames import Open, Reset

if TYPE_CHECKING:
    from x0tta6bl4.core.session.pipe import Pipe

CREDIT_MIN: Final = 64 * 1024
CREDIT_MAX: Final = 1024 * 1024
TELL_TAKEN: Final = 2 * 1024 * 1024
"""Bytes taken after which the other end of the session is told: a quarter of its credit."""
NO_NAME: Final = Open()


class Stream:
    """State of one stream at one end.

    Attributes:
        ask: what was asked for in OPEN.
        number: its number in the session; 0 before `Pipe.open` or acceptance.
        pipe: the session's pipe, None once the stream is done.
        credit: bytes that may still be sent.
        opened: OPENED was sent or received.
        finished: FIN was sent.
        ended: FIN was received.
        received: body bytes that came in.
        taken: of these, what the application has taken.
        sent: body bytes that went out.
        promised: up to how many body bytes may come in.
    """

    __slots__ = (
        "_window", "ask", "credit", "ended", "finished", "lent", "number", "opened",
        "pipe", "promised", "received", "sent", "taken",
    )  # fmt: skip

    def __init__(self) -> None:
        self.number = 0
        self.ask = NO_NAME
        self.pipe: Pipe | None = None
        self.credit = CREDIT_MIN
        self.opened = self.finished = self.ended = False
        self.sent = self.received = self.taken = self.lent = 0
        self._window = self.promised = CREDIT_MIN

    # ------------------------------------------------------------------ filled in by the driver
    def on_data(self, data: memoryview) -> None:
        """Bytes for the application; `data` is only valid during the call.

        Whoever gets them calls `take` as soon as the application has them.
        """
        raise NotImplementedError

    def on_opened(self) -> None:
        """The other end has connected to the service."""

    def on_finish(self) -> None:
        """The other end has sent everything (its FIN)."""

    def on_reset(self, reason: Reset) -> None:
        """The stream is over and was cut off; the pipe has forgotten it already."""

    def on_credit(self) -> None:
        """There is credit again after there was none."""

    # ------------------------------------------------------------------ called by the driver
    def take(self, count: int) -> None:
        """The application has taken `count` bytes: credit for the other end may grow."""
        self.taken += count
        pipe = self.pipe
        if pipe is None:
            return
        lent = self.lent
        if lent:
            back = lent if lent < count else count
            self.lent = lent - back
            count -= back
        pipe.taken += count  # As `pipe.took`, for every answer comes by here.
        if pipe.taken - pipe.told_taken >= TELL_TAKEN:
            pipe.tell_taken()
        if (self.promised - self.taken) * 2 <= self._window:
            pipe.grant(self)

    def lend(self) -> int:
        """Give the bytes that stand here back to the session's credit.

        Returns:
            How many, to be charged to the proxy's byte budget until `lent` falls again.
        """
        pipe = self.pipe
        standing = self.received - self.taken - self.lent
        if pipe is None or standing <= 0:
            return 0
        self.lent += standing
        pipe.took(standing)
        return standing

    # ------------------------------------------------------------------ called by the pipe
    def overrun(self, count: int) -> None:
        """`count` bytes came, which is more than was promised: the stream is reset."""
        self.received += count
        if self.pipe is not None:
            self.pipe.reset(self, Reset.CREDIT)
            self.on_reset(Reset.CREDIT)

    def next_grant(self) -> int:
        """How much to promise now; the window doubles while the application keeps up."""
        if self.taken == self.received and self._window < CREDIT_MAX:
            self._window *= 2
        more = self.taken + self._window - self.promised
        self.promised += more
        return more
