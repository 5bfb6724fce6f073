"""Stories of links that the kernel watches: what it says and shows, and what the mesh hears."""

from __future__ import annotations

from typing import Any

import pytest

from x0tta6bl4.core.links.verdicts import (
    BUSY_PACKETS,
    DEAF_EVERY_US,
    DEAF_US,
    DOUBT_US,
    FRESH_US,
    OFTEN_US,
    STALE_US,
    SURE_US,
    DeclareDead,
    Judged,
    KernelDown,
    KernelLeaves,
    KernelLoses,
    KernelLost,
    KernelShows,
    KernelStirs,
    KernelWatches,
    MeshHears,
    ProxySays,
    ProxyStarts,
    Revive,
    Verdicts,
)
from x0tta6bl4.core.links.words import NEIGHBOURS_MAX, Config
from x0tta6bl4.core.machine import MS, NEVER, NOTHING, SECOND, Effects, Instant, Tick
from x0tta6bl4.wire.messages import LinkState


def shows(**fields: Any) -> KernelShows:
    values: dict[str, Any] = {
        "node": "b", "dead": False, "silent_us": 2 * MS, "run": 50, "came_in": 40, "came_out": 40,
    } | fields  # fmt: skip
    return KernelShows(**values)


def state(state: str = "up", *, dials: bool = True) -> LinkState:
    return LinkState("b", state, 400, 0, dials, True)


def said(what: str = "up", *, dials: bool = True) -> ProxySays:
    return ProxySays(state(what, dials=dials))


def told(what: str = "up") -> MeshHears:
    return MeshHears(state(what))


LOST = KernelLost("b", 7_800)
REASON = "the kernel heard nothing for 7.8 ms"
DOWN = MeshHears(LinkState("b", "down", 0, 0, True, False, REASON))


class Story:
    def __init__(self, was: Any = "new", *, judges: bool = True, alone: bool = True) -> None:
        self.machine = Verdicts(judges=judges)
        self.at(0, KernelWatches("b", was))
        if not alone:
            self.at(0, KernelWatches("beside", "up"))

    def at(self, now: int, event: Any) -> Effects:
        effects = self.machine.handle(Instant(now), event)
        assert self.machine.deadline == NEVER
        return effects

    def down(self, now: int) -> Story:
        assert self.at(now, KernelDown("b", 7_800)) == (LOST, DOWN)
        return self

    @property
    def link(self) -> Judged:
        return self.machine.judged("b")


def test_a_new_link_is_revived_at_ten_answers_in_a_row_without_a_hold() -> None:
    story = Story()
    assert story.at(0, said()) == (told(),), "as long as the kernel has not proved it"
    assert story.at(0, shows(dead=True, run=9)) == NOTHING
    assert story.at(0, shows(dead=True, run=10, silent_us=FRESH_US)) == NOTHING
    assert story.machine.forwarding == frozenset()
    assert story.at(MS, shows(dead=True, run=10)) == (Revive("b", first=True),)
    assert story.machine.forwarding == {"b"}
    assert story.at(3 * MS, shows(run=12)) == NOTHING
    assert story.link == Judged("b", proven=True, up=True, gray=False, lost=0)


def test_what_the_kernel_says_is_told_at_once_and_once() -> None:
    story = Story("up")
    story.at(0, said(dials=False))
    down = MeshHears(LinkState("b", "down", 0, 0, False, False, REASON))
    assert story.at(6, KernelDown("b", 7_800)) == (LOST, down)
    assert story.at(7, KernelDown("b", 9_000)) == NOTHING
    assert story.at(8, shows(dead=True, run=0)) == NOTHING
    assert story.machine.forwarding == {"b"}, "its table is the one to know"
    assert not story.link.up


def test_a_verdict_whose_message_was_lost_is_seen_at_the_next_look() -> None:
    story = Story("up")
    assert story.at(1, shows(dead=True, run=0, silent_us=7_800)) == (LOST, DOWN)


def test_after_a_failure_a_link_is_good_for_two_seconds_first() -> None:
    story = Story("up", alone=False).down(0)
    assert story.at(SECOND, shows(dead=True, run=10)) == NOTHING
    assert story.at(3 * SECOND - 1, shows(dead=True, run=800)) == NOTHING
    assert story.at(3 * SECOND, shows(dead=True, run=801)) == (Revive("b"),)


class Three(Story):
    """The kernel watches b, c and d, all of which are up."""

    def __init__(self) -> None:
        super().__init__("up")
        for node in "cd":
            self.at(0, KernelWatches(node, "up"))

    def lose(self, now: int, nodes: str) -> None:
        for node in nodes:
            assert self.at(now, KernelDown(node, 9_700))

    def good(self, now: int, nodes: str) -> str:
        """Which of them are good again as soon as they have answered ten times."""
        looked = [(node, self.at(now, shows(node=node, dead=True, run=10))) for node in nodes]
        return "".join(node for node, effects in looked if effects)


def test_a_link_is_not_held_while_there_is_no_other() -> None:
    story = Three()
    for when, node in enumerate("bcd"):
        story.lose(when * SECOND, node)
    assert story.at(3 * SECOND, shows(node="b", dead=True, run=9)) == NOTHING
    assert story.good(3 * SECOND, "b") == "b", "any is better than none"
    assert story.good(3 * SECOND, "cd") == "", "now there is one"
    story.lose(4 * SECOND, "b")
    assert story.good(4 * SECOND + 25 * MS, "b") == "b", "again and again"
    assert story.good(5 * SECOND, "cd") == "cd"


def test_a_node_that_loses_all_links_at_one_moment_was_deaf_and_holds_none_of_them() -> None:
    story = Three()
    story.lose(0, "b")
    assert story.good(MS, "b") == "", "two are left"
    story.lose(DEAF_US, "cd")
    for again in (SECOND, 2 * SECOND):
        assert story.good(again, "bcd") == "bcd"
        story.lose(again + MS, "bcd")


def test_links_that_are_lost_at_one_moment_with_half_of_all_are_not_held_once_in_a_while() -> None:
    story = Three()
    story.lose(0, "b")
    story.lose(DEAF_US, "c")
    assert story.good(SECOND, "bc") == "bc"
    story.lose(DEAF_EVERY_US + DEAF_US - 1, "cd")
    assert story.good(DEAF_EVERY_US + SECOND, "cd") == "", "they come and go"
    story = Three()
    story.at(0, KernelWatches("e", "up"))
    story.at(0, KernelWatches("f", "up"))
    story.lose(0, "bc")
    assert story.good(SECOND, "bc") == "", "three of five are left"
    assert story.good(3 * SECOND, "bc") == "bc"
    story.lose(4 * SECOND, "bcd")
    story.lose(4 * SECOND + DEAF_US, "e")
    assert story.good(5 * SECOND, "bcde") == "bcde"


def test_a_link_that_was_lost_before_all_others_is_held() -> None:
    story = Three()
    story.lose(0, "b")
    story.lose(DEAF_US + 1, "cd")
    assert story.good(DEAF_US + MS, "cbd") == "cd"
    story = Three()
    story.lose(0, "b")
    story.lose(DEAF_US + 1, "c")
    assert story.good(DEAF_US + MS, "bc") == ""


def deaf(silent_us: int = 7_800, run: int = 0, *, deaf: bool = True) -> KernelShows:
    return shows(dead=True, silent_us=silent_us, run=run, deaf=deaf)


def test_a_verdict_is_in_doubt_while_nothing_is_heard_over_any_link() -> None:
    for first in (KernelDown("b", 7_800, deaf=True), deaf()):
        story = Story("up")
        assert story.at(0, first) == NOTHING
        assert story.link.up
        assert story.machine.doubts
        assert story.machine.often_until >= SURE_US, "it is looked at soon"
        assert story.at(MS, KernelDown("b", 7_800, deaf=True)) == NOTHING
        assert story.at(SURE_US - 1, deaf()) == NOTHING
        assert story.at(SURE_US, deaf()) == (LOST, DOWN)
        assert not story.machine.doubts


def test_a_verdict_counts_as_soon_as_another_link_is_heard_and_this_one_is_not() -> None:
    story = Story("up")
    story.at(0, KernelDown("b", 7_800, deaf=True))
    assert story.at(2 * MS, deaf(FRESH_US - 1, 9, deaf=False)) == NOTHING, "it answers"
    assert story.at(3 * MS, deaf(deaf=False)) == (LOST, DOWN)


def test_a_link_whose_verdict_is_in_doubt_was_never_down_if_it_answers() -> None:
    story = Story("up")
    story.at(0, said())
    story.at(0, KernelDown("b", 7_800, deaf=True))
    assert story.at(20 * MS, deaf(2 * MS, 9)) == NOTHING
    assert story.at(25 * MS, deaf(2 * MS, 10, deaf=False)) == (Revive("b", doubted=True),)
    assert story.at(30 * MS, shows(run=12)) == NOTHING
    assert story.link.up
    story.at(SECOND, KernelDown("b", 7_800, deaf=True))
    assert story.at(SECOND + SURE_US - 1, deaf()) == NOTHING, "a doubt of its own"
    story.at(SECOND + SURE_US, deaf())
    story.at(2 * SECOND, KernelWatches("b", "up"))
    assert story.at(3 * SECOND, KernelDown("b", 7_800)) == (LOST, DOWN)


def test_a_doubted_link_that_answers_was_never_down_however_late_it_is_looked_at() -> None:
    story = Story("up")
    story.at(0, KernelDown("b", 7_800, deaf=True))
    assert story.at(SECOND, deaf(2 * MS, 380, deaf=False)) == (Revive("b", doubted=True),)
    story.at(2 * SECOND, KernelDown("b", 7_800, deaf=True))
    story.at(2 * SECOND + MS, shows(dead=False))
    assert not story.machine.doubts, "somebody else has revived it"


@pytest.mark.parametrize("gap", [0, 30])
def test_a_gap_within_the_two_seconds_begins_them_anew(gap: int) -> None:
    story = Story("up", alone=False).down(0)
    story.at(SECOND, shows(dead=True, run=400))
    story.at(2 * SECOND, shows(dead=True, run=gap))  # 30: silent in between, good again
    assert story.at(3 * SECOND, shows(dead=True, run=430)) == NOTHING
    expected = 4 if gap else 5
    assert story.at(expected * SECOND - 1, shows(dead=True, run=800)) == NOTHING
    assert story.at(expected * SECOND, shows(dead=True, run=801)) == (Revive("b"),)


def test_answers_that_are_over_are_not_in_a_row() -> None:
    story = Story("up", alone=False).down(0)
    story.at(SECOND, shows(dead=True, run=400))
    assert story.at(4 * SECOND, shows(dead=True, run=400, silent_us=3 * SECOND)) == NOTHING
    assert story.at(5 * SECOND, shows(dead=True, run=800)) == NOTHING
    assert story.at(7 * SECOND, shows(dead=True, run=1600)) == (Revive("b"),)


@pytest.mark.parametrize(
    ("was", "at_once"), [("new", True), ("down", False), ("unjudged", True), ("up", None)]
)
def test_a_link_of_an_earlier_life_goes_on_as_it_was(was: str, at_once: bool | None) -> None:
    story = Story(was, alone=False)
    assert story.link.proven == (was != "new")
    assert story.link.up == (was == "up")
    if at_once is None:
        assert story.at(1, shows()) == NOTHING
    else:
        expected = (Revive("b", was == "new"),) if at_once else NOTHING
        assert story.at(1, shows(dead=True)) == expected
        later = story.at(1 + 2 * SECOND, shows(dead=not at_once, run=900))
        assert later == (NOTHING if at_once else (Revive("b"),))


def test_what_the_proxy_says_of_a_dead_link_is_kept_back_until_it_lives() -> None:
    story = Story("up", alone=False)
    assert story.at(0, said()) == (told(),)
    story.down(1)
    assert story.at(2, said()) == NOTHING, "its hellos are slower"
    assert story.at(3, said("suspected")) == NOTHING
    assert story.at(4, said("down")) == (told("down"),)
    assert story.at(5, said()) == NOTHING
    story.at(SECOND, shows(dead=True))
    assert story.at(3 * SECOND, shows(dead=True, run=900)) == (Revive("b"), told())
    assert story.at(3 * SECOND, said("suspected")) == (told("suspected"),)


def test_what_a_proxy_said_before_it_died_is_forgotten() -> None:
    story = Story("up", alone=False)
    story.at(0, said())
    story.down(1)
    assert story.at(2, ProxyStarts()) == NOTHING
    story.at(SECOND, shows(dead=True))
    assert story.at(3 * SECOND, shows(dead=True, run=900)) == (Revive("b"),)


@pytest.mark.parametrize("way", ["in", "out"])
def test_loss_in_either_direction_makes_a_link_gray_not_dead(way: str) -> None:
    story = Story("up")
    story.at(0, said())
    found: Effects = NOTHING
    for at in range(1, 200):
        found = story.at(at * 10 * MS, shows(**{f"came_{way}": 19, f"lost_{way}": 1}))
        if found:
            break
    loses, heard = found
    assert loses == KernelLoses("b", gray=True)
    assert type(heard) is MeshHears
    assert heard.link.gray
    assert heard.link.loss_ppm > 20_000
    assert story.link.gray
    assert story.link.lost == at
    assert [x.link.gray for x in story.at(at, said()) if type(x) is MeshHears] == [True]
    assert story.at(at, said("suspected")) == (told("suspected"),)


def test_hellos_that_were_heard_make_a_link_good_again_that_carries_no_data() -> None:
    story = Story("up")
    story.at(0, said())
    for at in range(20):
        story.at(at, shows(lost_out=1))
    assert story.link.gray
    found: Effects = NOTHING
    for at in range(20, 200):
        found = story.at(at, shows(heard=40 * at, came_in=0, came_out=0))
        if found:
            break
    assert found == (KernelLoses("b", gray=False), told())


def test_a_revived_link_begins_with_a_clean_slate() -> None:
    story = Story("up")
    for at in range(20):
        story.at(at, shows(lost_in=1))
    assert story.link.gray
    story.down(20)
    story.at(SECOND, shows(dead=True))
    story.at(3 * SECOND, shows(dead=True, run=900))
    assert not story.link.gray


def test_where_the_kernel_leaves_a_link_the_proxys_word_counts_again() -> None:
    story = Story("up")
    story.at(0, said())
    story.down(1)
    story.at(2, said())
    assert story.at(3, KernelLeaves("b")) == (told(),)
    assert story.at(4, KernelLeaves("b")) == NOTHING
    assert story.at(5, shows()) == NOTHING
    assert story.at(6, KernelDown("b", 1)) == NOTHING
    assert story.at(7, said("down")) == (told("down"),)
    assert story.at(8, Tick()) == NOTHING
    assert story.machine.forwarding == frozenset()
    story.at(9, KernelWatches("b"))
    assert not story.link.proven


def test_a_kernel_that_cannot_judge_is_told_the_proxys_verdict() -> None:
    story = Story("up", judges=False)
    assert story.at(0, said("down")) == (DeclareDead("b"), told("down"))
    assert story.at(1, shows(dead=True, silent_us=7_800, run=900, deaf=True)) == (LOST, DOWN)
    story.at(2, KernelLeaves("b"))
    assert story.at(3, said("down")) == (told("down"),)


def test_there_are_no_more_links_than_a_node_may_have() -> None:
    machine = Verdicts()
    for number in range(NEIGHBOURS_MAX + 1):
        machine.handle(Instant(0), KernelWatches(f"n{number}"))
    up = [
        machine.handle(Instant(1), shows(node=f"n{number}", dead=True))
        for number in range(NEIGHBOURS_MAX + 1)
    ]
    assert sum(map(bool, up)) == NEIGHBOURS_MAX
    far = LinkState("far", "up", 1, 0, True, True)
    assert machine.handle(Instant(2), ProxySays(far)) == (MeshHears(far),)


def test_links_are_looked_at_often_while_something_happens_and_then_seldom() -> None:
    story = Story()
    machine = story.machine
    story.at(SECOND, shows(dead=True))
    calm: dict[str, Any] = {"came_out": BUSY_PACKETS - 1}
    later = 10 * SECOND
    for event, stirs in (
        (shows(**calm), False),
        (shows(came_out=BUSY_PACKETS), True),  # Some of so many may be lost, and no hello.
        (shows(**calm, lost_in=1), True),
        (shows(**calm, lost_out=1), True),
        (shows(**calm, dead=True), True),
        (shows(**calm, dead=True, run=0), False),  # What comes back is said by the kernel.
        (shows(**calm, dead=True, run=3), True),
        (said("down"), False),
    ):
        later += 10 * SECOND
        story.at(later, event)
        assert (machine.often_until == later + OFTEN_US) == stirs, event
        assert stirs or machine.often_until < later
    assert Config().hold_us < OFTEN_US


def test_a_mere_suspicion_is_looked_into_for_a_moment_and_a_loss_for_longer() -> None:
    story = Story()
    machine = story.machine
    story.at(SECOND, shows(dead=True))
    story.at(10 * SECOND, KernelStirs())
    assert machine.often_until == 10 * SECOND + DOUBT_US
    story.at(10 * SECOND + 1, shows(lost_in=1))
    story.at(10 * SECOND + 2, KernelStirs())
    assert machine.often_until == 10 * SECOND + 1 + OFTEN_US


def test_few_hellos_will_do_where_the_kernel_judges_and_finds_a_link_good() -> None:
    story = Story()
    machine = story.machine
    assert machine.good == frozenset()
    story.at(SECOND, shows(dead=True))
    story.at(SECOND, shows())
    assert machine.good == {"b"}
    story.at(SECOND, shows(silent_us=STALE_US))  # Alive, and yet nobody says so.
    assert machine.good == frozenset()
    story.at(SECOND, shows())
    assert machine.good == {"b"}
    for _ in range(20):
        story.at(SECOND, shows(lost_in=8))
    assert machine.good == frozenset()
    for _ in range(200):
        story.at(SECOND, shows())
    assert machine.good == {"b"}
    story.at(SECOND, KernelDown("b", 8 * MS, deaf=True))
    assert machine.good == frozenset()
    story.at(SECOND, KernelDown("b", 8 * MS))
    assert machine.good == frozenset()
    story.at(4 * SECOND, shows(dead=True))
    story.at(7 * SECOND, shows(dead=True))
    story.at(7 * SECOND, shows())
    assert machine.good == {"b"}
    story.at(8 * SECOND, KernelLeaves("b"))
    assert machine.good == frozenset()
    blind = Story("up", judges=False)
    blind.at(SECOND, shows())
    assert blind.machine.good == frozenset()
