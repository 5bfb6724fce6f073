"""Authorities that share a store, as machines: what one has written another one takes in."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.authority_desk import OPERATOR, AuthorityDesk
from x0tta6bl4.core.authority.desk import AuthorityConfig
from x0tta6bl4.core.authority.machine import Authority
from x0tta6bl4.core.authority.rows import (
    Answer,
    Asked,
    Caller,
    Change,
    Drop,
    EntriesChanged,
    Leading,
    Learnt,
    NodeCut,
    NodeRow,
    NodeTold,
    NotPersisted,
    Persist,
    Persisted,
    PollWanted,
    Published,
    Put,
    RenewWanted,
    SetRow,
    Superseded,
    Withdrawn,
)
from x0tta6bl4.core.machine import NEVER, SECOND, ClockSet, Effect, Instant, Tick
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.records import Name

WEB = "spiffe://example.org/web"


class Follower:
    """Another authority with the rows of a desk; it learns what the desk changes."""

    def __init__(self, desk: AuthorityDesk) -> None:
        self.desk = desk
        self.at = len(desk.changes)
        rows = [row for table in desk.machine.state.tables.values() for row in table.values()]
        domain = desk.machine.state.the_domain()
        self.machine = Authority((domain, *rows), desk.keys, desk.config)
        self.machine.handle(desk.now, ClockSet(desk.unix_us))

    def hear(self) -> tuple[Effect, ...]:
        new, self.at = self.desk.changes[self.at :], len(self.desk.changes)
        return self.machine.handle(self.desk.now, Learnt(tuple(new)))

    def ask(self, method: str, request: Any) -> tuple[Effect, ...]:
        return self.machine.handle(self.desk.now, Asked(1, OPERATOR, method, request))

    def tick(self) -> tuple[Effect, ...]:
        return self.machine.handle(self.desk.now, Tick())


def tables(machine: Authority) -> dict[str, Any]:
    state = machine.state
    return {
        **{kind.__name__: dict(table) for kind, table in state.tables.items()},
        "by_node": {node: dict(of) for node, of in state.by_node.items()},
        "domain": state.domain,
        "crls": state.crls,
        "spans": state._last,
        "floors": state._floors,
    }


# ------------------------------------------------------------------ time
def test_who_does_not_lead_does_nothing_by_the_clock() -> None:
    desk = AuthorityDesk(AuthorityConfig(ca_ttl_s=36_000))
    follower = Follower(desk)
    assert follower.machine.deadline == NEVER
    desk.now = Instant(desk.now + 30_000 * SECOND)
    assert follower.tick() == ()


def test_who_begins_to_lead_signs_a_heartbeat_and_goes_on_with_its_chores() -> None:
    desk = AuthorityDesk()
    follower = Follower(desk)
    desk.now = Instant(desk.now + 300 * SECOND)
    follower.machine.handle(desk.now, Leading(True))
    effects = follower.tick()
    assert [e.set for e in effects if type(e) is Published] == ["heartbeat"]
    assert follower.machine.deadline > desk.now
    follower.machine.handle(desk.now, Leading(False))
    assert follower.machine.deadline == NEVER


def test_who_changes_something_signs_it_though_another_leads() -> None:
    desk = AuthorityDesk()
    follower = Follower(desk)
    effects = (*follower.ask("NameCreate", Name("web", WEB, ())), *follower.tick())
    assert [e.set for e in effects if type(e) is Published] == ["names"]
    (written,) = (c.row for e in effects if type(e) is Persist for c in e.changes
                  if type(c) is Put and type(c.row) is SetRow)  # fmt: skip
    assert written.sequence == desk.machine.state.sets["names"].sequence + 1


def test_a_new_leader_signs_what_nobody_has_signed() -> None:
    desk = AuthorityDesk()
    follower = Follower(desk)
    follower.machine.handle(desk.now, Learnt((Put(Name("web", WEB, ())),)))
    assert follower.tick() == ()
    follower.machine.handle(desk.now, Leading(True))
    published = [e.set for e in follower.tick() if type(e) is Published]
    assert sorted(published) == ["heartbeat", "names"]


# ------------------------------------------------------------------ superseded
def test_what_was_superseded_is_as_if_it_had_never_been_and_is_done_again() -> None:
    desk = AuthorityDesk()
    follower = Follower(desk)
    follower.machine.handle(desk.now, Leading(True))
    before = tables(follower.machine)
    asked = Asked(1, OPERATOR, "NameCreate", Name("web", WEB, ()))
    first = (*follower.machine.handle(desk.now, asked), *follower.tick())
    follower.machine.handle(desk.now, Superseded())
    assert tables(follower.machine) == before
    again = (*follower.machine.handle(desk.now, asked), *follower.tick())
    kinds = [type(e).__name__ for e in first]
    assert [type(e).__name__ for e in again] == kinds
    assert "Published" in kinds


def test_a_heartbeat_that_was_superseded_is_told_to_nobody_and_signed_again() -> None:
    """Its number may be another's; so it must not stand in what a new watch is told."""
    follower = Follower(AuthorityDesk())
    follower.machine.handle(follower.desk.now, Leading(True))
    while any(type(effect) is Persist for effect in follower.tick()):
        follower.machine.handle(follower.desk.now, Persisted())
        follower.desk.now = Instant(follower.desk.now + SECOND)
    follower.desk.now = follower.machine._heartbeat_at
    before = follower.machine.state.sets["heartbeat"]
    for _ in range(2):
        signed = [fact.set for fact in follower.tick() if type(fact) is Published]
        assert "heartbeat" in signed
        assert follower.machine.state.sets["heartbeat"] != before
        follower.machine.handle(follower.desk.now, Superseded())
        assert follower.machine.state.sets["heartbeat"] == before


def test_who_was_superseded_by_the_same_change_refuses_it() -> None:
    desk = AuthorityDesk()
    follower = Follower(desk)
    follower.ask("NameCreate", Name("web", WEB, ()))
    desk.ask("NameCreate", Name("web", WEB, ()))
    follower.machine.handle(desk.now, Superseded())
    follower.hear()
    (refusal,) = follower.ask("NameCreate", Name("web", WEB, ()))
    assert getattr(refusal, "id", "") == "X0-AUT-050"
    assert follower.machine.state.sets["names"] == desk.machine.state.sets["names"]


# ------------------------------------------------------------------ facts
def told(desk: AuthorityDesk, *asked: tuple[str, Any]) -> list[Effect]:
    follower = Follower(desk)
    for method, request in asked:
        desk.ask(method, request)
    return [e for e in follower.hear() if type(e) is not Published]


def test_the_nodes_of_another_hear_the_same() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    entry = desk.entry("alpha")
    moved = words.Entry(id=WEB, node="beta", selectors=("unix:uid:1",), key=entry.key)
    facts = told(desk, ("EntryUpdate", moved))
    new = desk.machine.state.entries[entry.key]
    assert facts == [EntriesChanged("alpha", (), (entry.key,)), EntriesChanged("beta", (new,))]
    assert told(desk, ("EntryDelete", words.Key(entry.key))) == [
        EntriesChanged("beta", (), (entry.key,))
    ]
    assert told(desk, ("NodeDrain", words.NodeDrain("alpha", True))) == [NodeTold("alpha", True)]
    (renew,) = told(desk, ("RenewAll", words.Nothing()))
    assert type(renew) is RenewWanted
    cut = told(desk, ("NodeEvict", words.NodeEvict("alpha")))
    assert {type(fact) for fact in cut} == {NodeCut}
    assert {fact.node for fact in cut if type(fact) is NodeCut} == {"alpha"}
    other = words.Federation(trust_domain="o.test", url="https://o.test/", profile="https_web")
    assert told(desk, ("FederationCreate", other)) == [PollWanted()]
    assert told(desk, ("FederationDelete", words.Key("o.test"))) == [PollWanted()]


def test_every_set_is_told_once_and_never_an_older_one() -> None:
    desk = AuthorityDesk()
    follower = Follower(desk)
    desk.ask("NameCreate", Name("web", WEB, ()))
    old = desk.machine.state.sets["names"]
    assert [e for e in follower.hear() if type(e) is Published] == [Published("names", old.records)]
    desk.ask("NameCreate", Name("db", WEB, ()))
    new = desk.machine.state.sets["names"]
    follower.hear()
    assert follower.machine.handle(desk.now, Learnt((Put(old),))) == ()
    assert follower.machine.state.sets["names"] == new


def test_lists_of_revocations_come_with_their_set() -> None:
    desk = AuthorityDesk()
    follower = Follower(desk)
    desk.ask("Withdrawn", Withdrawn(("1f",)), Caller(own=True))
    follower.hear()
    assert follower.machine.state.crls == desk.machine.state.crls
    assert follower.machine.state.crls
    follower.machine.handle(desk.now, Asked(1, Caller(own=True), "Withdrawn", Withdrawn(("1f",))))
    numbers = [int(crl.split()[1]) for crl in
               (*desk.machine.state.crls, *follower.machine.state.crls)]  # fmt: skip
    assert numbers[0] < numbers[1]


# ------------------------------------------------------------------ laws
@settings(max_examples=20)
@given(st.integers(0, 2**32), st.booleans())
def test_who_has_learnt_everything_has_the_same_tables(seed: int, whole: bool) -> None:
    desk = AuthorityDesk(AuthorityConfig(ca_ttl_s=36_000, set_ttl_s=5000), seed=str(seed))
    follower, draw = Follower(desk), Random(seed)
    for _ in range(25):
        desk.act(draw)
        if not whole and draw.random() < 0.5:
            follower.hear()
    if whole:
        state = desk.machine.state
        rows: list[Change] = [Put(row) for of in state.tables.values() for row in of.values()]
        follower.machine.handle(desk.now, Learnt((Put(state.the_domain()), *rows), True))
    follower.hear()
    assert tables(follower.machine) == tables(desk.machine)


def test_learning_waits_for_what_is_under_way() -> None:
    desk = AuthorityDesk()
    follower = Follower(desk)
    (persist, answer) = follower.ask("TokenCreate", words.TokenCreate())
    assert (type(persist), type(answer)) == (Persist, Answer)
    with pytest.raises(AssertionError):
        follower.machine.handle(desk.now, Learnt(()))
    follower.machine.handle(desk.now, NotPersisted("X0-STO-005"))
    follower.machine.handle(desk.now, Learnt(()))
    follower.ask("TokenCreate", words.TokenCreate())
    follower.machine.handle(desk.now, Persisted())
    row = NodeRow("alpha", b"p", 1, 1)
    follower.machine.handle(desk.now, Learnt((Put(row), Drop("Entry", "none"))))
    assert follower.machine.state.nodes == {"alpha": row}
