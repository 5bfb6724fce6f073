"""Both ends of a link on which nothing happens, moved on over a stretch of time at once.

Of a link that is up at both ends, loses nothing and takes equally long each time, it is known
without passing a hello what each end has sent and heard at any later instant: sending times are
slots, and `Neighbour.take` says what a hello changes.  `move` changes both ends as all those
hellos would have done, and names those that are still on their way.  A test plays worlds with and
without and compares all that machines say.
"""

from __future__ import annotations

from typing import Final, final

import msgspec

from x0tta6bl4.core.links.neighbour import Neighbour
from x0tta6bl4.core.links.slots import Slots
from x0tta6bl4.core.links.words import Config
from x0tta6bl4.wire.hello import UP, Hello

_MASK32: Final = 0xFFFFFFFF


@final
class End(msgspec.Struct, frozen=True, gc=False):
    """One end of a link, and what its machine says of itself in every hello."""

    neighbour: Neighbour
    slots: Slots
    incarnation: int
    flags: int
    config: Config

    def calm(self, other: End, round_trip_us: int) -> bool:
        """Whether all that comes is a calm hello after the other, each changing the same."""
        n, there = self.neighbour, other.neighbour
        slots, interval_us = self.slots, n.base_us
        quality = n.quality
        return (
            n.calm
            == (
                other.incarnation,
                UP,
                other.flags,
                there.config.hello_us,
                other.config.multiplier,
                there.quality.lost,
            )
            and interval_us == there.base_us
            and n.multiplier > 1
            and n.window.top == there.sequence
            and quality.settled_us == round_trip_us
            and not n.differs()
            and slots.slot(interval_us, slots.number(interval_us, n.next_send)) == n.next_send
        )


@final
class Way(msgspec.Struct, frozen=True, gc=False):
    """One direction of a link, from the instant on at which the link was found calm."""

    source: End
    target: End
    latency_us: int
    """How long a hello takes."""
    ahead_us: int
    """The same by two clocks: sent at t of the sender's, it comes at t + ahead_us there."""
    first: int
    """Number of the first slot in which something is sent."""
    sequence: int
    """Of the sender's last hello before."""
    good: int
    """What the sender had judged received before."""
    echo_us: int
    """Of the newest hello that the sender had heard before: when it was sent ..."""
    echo_at: int
    """... and came."""

    def sent(self, now: int) -> int:
        """Hellos sent up to an instant of the sender's clock."""
        source = self.source
        return max(0, source.slots.number(source.neighbour.base_us, now) - self.first + 1)

    def at(self, count: int) -> int:
        """When the sender sends its hello of this number, the first being 1."""
        source = self.source
        return source.slots.slot(source.neighbour.base_us, self.first + count - 1)

    def hello(self, count: int, back: Way) -> Hello:
        """The hello of this number, as `Links._say` makes it."""
        source, n = self.source, self.source.neighbour
        at = self.at(count)
        heard = back.sent(at - back.ahead_us)
        echo_us, echo_at = self.echo_us, self.echo_at
        if heard:
            echo_us = back.at(heard)
            echo_at = echo_us + back.ahead_us
        return Hello(
            n.config.link,
            source.incarnation,
            self.sequence + count,
            UP,
            source.flags,
            n.config.hello_us,
            source.config.multiplier,
            at,
            echo_us,
            at - echo_at if echo_us else 0,
            self.good + heard & _MASK32,
            n.quality.lost,
        )


def way(source: End, target: End, latency_us: int, ahead_us: int) -> Way:
    """One direction of a link that is calm now (see the fields of `Way`)."""
    n = source.neighbour
    first = source.slots.number(n.base_us, n.next_send)
    return Way(
        source,
        target,
        latency_us,
        ahead_us,
        first,
        n.sequence,
        n.quality.good,
        n.echo_us,
        n.echo_at,
    )


def move(there: Way, back: Way, now: int) -> tuple[int, list[Hello]]:
    """Let all happen that one direction of a calm link does up to an instant; once.

    Args:
        there: the direction.
        back: the other.
        now: the instant, by the clock of the sender of `there`; all of it has happened.
    Returns:
        How many hellos were sent, and those of them that have not come yet.
    """
    n = there.source.neighbour
    sent = there.sent(now)
    if sent:
        n.sequence = there.sequence + sent
        n.sent_at = there.at(sent)
        n.next_send = there.at(sent + 1)
    heard = there.sent(now - there.latency_us)
    if heard:
        _hear(there, back, heard)
    return sent, [there.hello(count, back) for count in range(heard + 1, sent + 1)]


def _hear(there: Way, back: Way, heard: int) -> None:
    """What `Neighbour.take` does, for so many hellos."""
    n, ahead_us = there.target.neighbour, there.ahead_us
    last = there.hello(heard, back)
    n.window.top = last.sequence
    n.quality.good = back.good + heard & _MASK32
    n.quality.seen_good = last.good
    n.echo_seen = max(n.echo_seen, last.echo_us)
    n.echo_us = last.sent_us
    n.heard_at = n.echo_at = last.sent_us + ahead_us
    n.judge_at = n.heard_at + n.patience_us
    if n.heard_at >= n.look_at:  # Whether there is something to tell: there is not.
        n.looked(n.heard_at)
