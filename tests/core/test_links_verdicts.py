"""Stories of links that the kernel watches: what it says and shows becomes the usual facts."""

from __future__ import annotations

from typing import Any

import pytest

from x0tta6bl4.core.links.verdicts import (
    KernelLeaves,
    KernelSaid,
    KernelShows,
    KernelWatches,
    Revive,
    Verdicts,
)
from x0tta6bl4.core.links.words import (
    NEIGHBOURS_MAX,
    LinkDown,
    LinkQuality,
    LinkSuspected,
    LinkUp,
)
from x0tta6bl4.core.machine import MS, NEVER, NOTHING, SECOND, Effects, Instant, Tick


def shows(**fields: Any) -> KernelShows:
    values: dict[str, Any] = {
        "node": "b", "dead": False, "run": 50, "rtt_us": 400, "agent_alive": True,
        "came_in": 40, "lost_in": 0, "came_out": 40, "lost_out": 0,
    } | fields  # fmt: skip
    return KernelShows(**values)


class Story:
    def __init__(self) -> None:
        self.machine = Verdicts()
        self.at(0, KernelWatches("b"))

    def at(self, now: int, event: Any) -> Effects:
        return self.machine.handle(Instant(now), event)

    def up(self, now: int = 0) -> Story:
        self.at(now, shows())
        return self


UP = LinkUp("b", 400, 0, False, True)
DOWN = LinkDown("b", "silent")


def test_a_new_link_is_revived_at_ten_answers_in_a_row_without_a_hold() -> None:
    story = Story()
    assert story.at(0, shows(dead=True, run=9)) == NOTHING
    assert story.at(MS, shows(dead=True, run=10)) == (Revive("b"),)
    assert story.at(2 * MS, shows(dead=True, run=11)) == (Revive("b"),), "until it is"
    assert story.at(3 * MS, shows(run=12)) == (UP,)
    assert story.machine.deadline == NEVER


def test_what_the_kernel_says_is_told_at_once_and_once() -> None:
    story = Story().up()
    assert story.at(1, KernelSaid("b", "suspected")) == (LinkSuspected("b"),)
    assert story.at(2, KernelSaid("b", "suspected")) == NOTHING
    assert story.at(3, KernelSaid("b", "cleared")) == (UP,)
    assert story.at(4, KernelSaid("b", "cleared")) == NOTHING
    assert story.at(5, KernelSaid("b", "suspected")) == (LinkSuspected("b"),)
    assert story.at(6, KernelSaid("b", "down")) == (DOWN,)
    assert story.at(7, KernelSaid("b", "down")) == NOTHING
    assert story.at(8, shows(dead=True, run=0)) == NOTHING
    assert story.at(9, KernelSaid("b", "suspected")) == NOTHING


def test_a_verdict_whose_message_was_lost_is_seen_at_the_next_look() -> None:
    story = Story().up()
    assert story.at(1, shows(dead=True, run=0)) == (DOWN,)


def test_after_a_failure_a_link_is_good_for_two_seconds_first() -> None:
    story = Story().up()
    story.at(0, KernelSaid("b", "down"))
    assert story.at(SECOND, shows(dead=True, run=10)) == NOTHING
    assert story.at(3 * SECOND - 1, shows(dead=True, run=800)) == NOTHING
    assert story.at(3 * SECOND, shows(dead=True, run=801)) == (Revive("b"),)
    assert story.at(3 * SECOND, shows(run=801)) == (UP,)


@pytest.mark.parametrize("gap", [0, 30])
def test_a_gap_within_the_two_seconds_begins_them_anew(gap: int) -> None:
    story = Story().up()
    story.at(0, KernelSaid("b", "down"))
    story.at(SECOND, shows(dead=True, run=400))
    story.at(2 * SECOND, shows(dead=True, run=gap))  # 30: silent in between, good again
    assert story.at(3 * SECOND, shows(dead=True, run=430)) == NOTHING
    expected = 4 if gap else 5
    assert story.at(expected * SECOND - 1, shows(dead=True, run=800)) == NOTHING
    assert story.at(expected * SECOND, shows(dead=True, run=801)) == (Revive("b"),)


def test_quality_is_told_when_it_differs_and_flags_at_once() -> None:
    story = Story().up()
    assert story.at(MS, shows(agent_alive=False)) == (LinkQuality("b", 400, 0, False, False),)
    assert story.at(2 * MS, shows(agent_alive=False)) == NOTHING
    assert story.at(3 * MS, shows(agent_alive=False, rtt_us=9_000)) == NOTHING, "a second later"
    (told,) = story.at(2 * SECOND, shows(agent_alive=False, rtt_us=9_000))
    assert type(told) is LinkQuality
    assert 900 < told.rtt_us < 2_000


@pytest.mark.parametrize("way", ["in", "out"])
def test_loss_in_either_direction_makes_a_link_gray_not_dead(way: str) -> None:
    story = Story().up()
    told: Effects = NOTHING
    for at in range(1, 200):
        told = story.at(at * 10 * MS, shows(**{f"came_{way}": 19, f"lost_{way}": 1}))
        if any(type(one) is LinkQuality and one.gray for one in told):
            break
    (fact,) = told
    assert type(fact) is LinkQuality
    assert fact.gray
    assert fact.loss_ppm > 20_000


def test_a_link_that_is_left_is_down() -> None:
    story = Story().up()
    assert story.at(1, KernelLeaves("b")) == (LinkDown("b", "removed"),)
    assert story.at(2, KernelLeaves("b")) == NOTHING
    assert story.at(3, shows()) == NOTHING
    assert story.at(4, KernelSaid("b", "down")) == NOTHING
    assert story.at(5, Tick()) == NOTHING


def test_there_are_no_more_links_than_a_node_may_have() -> None:
    machine = Verdicts()
    for number in range(NEIGHBOURS_MAX + 1):
        machine.handle(Instant(0), KernelWatches(f"n{number}"))
    up = [
        machine.handle(Instant(1), shows(node=f"n{number}")) for number in range(NEIGHBOURS_MAX + 1)
    ]
    assert sum(map(bool, up)) == NEIGHBOURS_MAX
