"""What operators are told of a flood: the first, then how many more; each matter by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.runtime.loop.notices import KINDS_MAX, Notices
from x0tta6bl4.runtime.loop.poll import Loop


def test_the_first_is_told_at_once_and_the_others_with_the_next_as_a_number() -> None:
    clock, told = SimpleNamespace(now=0), list[tuple[str, str]]()
    notices = Notices(cast(Loop, clock), lambda *said: told.append(said), 10 * SECOND)
    for _ in range(100):
        notices.say("refused", "no replica", about="web")
    notices.say("refused", "no replica", about="den")
    assert told == [("refused", "no replica")] * 2
    clock.now = 10 * SECOND
    notices.say("refused", "no replica", about="web")
    notices.say("refused", "no replica", about="den")
    assert told[2:] == [
        ("refused", "no replica (and 99 more before)"),
        ("refused", "no replica"),
    ]


def test_many_matters_are_bounded_and_those_that_are_over_make_room() -> None:
    clock, told = SimpleNamespace(now=0), list[tuple[str, str]]()
    notices = Notices(cast(Loop, clock), lambda *said: told.append(said))
    for number in range(2 * KINDS_MAX):
        notices.say("refused", str(number), about=str(number))
    assert len(told) == KINDS_MAX
    clock.now = SECOND
    notices.say("refused", "new", about="new")
    assert told[-1] == ("refused", "new")
