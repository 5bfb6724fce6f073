"""The proxy's composite: the agent's snapshot, routes, what is judged again, and its deadline."""

from __future__ import annotations

from msgspec.structs import replace

from tests.fakes.circuit import CLOCK_US, FOREVER, mac, memory
from x0tta6bl4.core.links.words import AgentAlive, LinkSuspected
from x0tta6bl4.core.machine import (
    NEVER,
    SECOND,
    Allowed,
    ClockSet,
    Denied,
    Done,
    Effects,
    Event,
    Failed,
    Instant,
    Received,
    Send,
    Tick,
)
from x0tta6bl4.core.proxy.composite import Proxy
from x0tta6bl4.core.proxy.words import AGENT, Changed, Dial, OpenSession
from x0tta6bl4.core.session import facts, frames
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.frames import Open, Reset
from x0tta6bl4.core.session.pipe import Hooks, Pipe
from x0tta6bl4.core.session.stream import Stream
from x0tta6bl4.wire.hello import EASY, INIT, UP, Hello
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import (
    ClockItem,
    Delta,
    DirectItem,
    Full,
    Item,
    LinkState,
    NameItem,
    NeedFull,
    NeighbourItem,
    NodeItem,
    PathBad,
    PathsItem,
    ReplicasItem,
    RevokedItem,
    ServiceItem,
    SessionGone,
    SvidItem,
)

WEB, CALLER = SpiffeId("spiffe://mesh.test/web"), SpiffeId("spiffe://mesh.test/caller")
A, B = NodeName("a"), NodeName("b")
NODE = NodeItem("mesh.test", "a", "")
ABOVE = FOREVER // SECOND


class Told(Stream):
    def __init__(self) -> None:
        super().__init__()
        self.reason: Reset | None = None

    def on_reset(self, reason: Reset) -> None:
        self.reason = reason


class Rig:
    def __init__(self) -> None:
        self.now = Instant(SECOND)
        self.pipes: dict[int, Pipe] = {}
        self.proxy = Proxy(
            incarnation=5,
            make_pipe=self.make_pipe,
            mac=mac,
            seed=0,
            now=self.now,
            clock_us=CLOCK_US,
        )
        self.version = 0

    def make_pipe(self, number: int, client: bool) -> Pipe:
        return self.pipes.setdefault(number, Pipe(memory, Hooks(), client))

    def give(self, event: Event) -> Effects:
        effects = self.proxy.handle(self.now, event)
        assert self.proxy.deadline > self.now or type(event) is not Tick
        return effects

    def full(self, *items: Item) -> Effects:
        self.version += 1
        return self.give(Received(AGENT, Full(self.version, items)))

    def delta(self, *items: Item, drops: tuple[str, ...] = ()) -> Effects:
        self.version += 1
        return self.give(Received(AGENT, Delta(self.version - 1, self.version, items, drops)))

    def session(self, own: bool = False) -> tuple[int, Dial]:
        number = self.proxy.token()
        effects = self.give(OpenSession(number, b"s" * 16, CALLER, WEB, B, own))
        return number, next(effect for effect in effects if type(effect) is Dial)

    def up(self, dial: Dial) -> Circuit:
        circuit = Circuit(dial.token, lambda *_: None)
        up = facts.Up(circuit, dial.path, FOREVER, b"e", b"k" * 32, peer_issued_unix_s=100)
        self.give(Done(dial.token, up))
        return circuit


def ready() -> Rig:
    rig = Rig()
    rig.full(
        NODE,
        SvidItem(CALLER, (b"chain",), b"key", ABOVE),
        NameItem("web", WEB, (CALLER,)),
        PathsItem("b", (("a", "r", "b"), ("a", "s", "b"), ("a", "s", "t", "b"))),
        ReplicasItem(WEB, (("b", 0),)),
    )
    return rig


def sent(effects: Effects) -> list[object]:
    return [effect.message for effect in effects if type(effect) is Send and effect.dst == AGENT]


# ---------------------------------------------------------------------- the snapshot
def test_an_svid_leaves_by_name_or_expiry_never_by_absence() -> None:
    rig = ready()
    effects = rig.full(NODE)
    changed = next(effect for effect in effects if type(effect) is Changed)
    assert "NameItem/web" in changed.drops
    assert rig.proxy.svid(CALLER) is not None
    rig.delta(drops=(f"SvidItem/{CALLER}",))
    assert rig.proxy.svid(CALLER) is None


def test_an_expired_svid_leaves_by_itself() -> None:
    rig = Rig()
    ends = (CLOCK_US + rig.now) // SECOND + 10
    rig.full(NODE, SvidItem(CALLER, (b"c",), b"k", ends))
    assert rig.proxy.deadline <= ends * SECOND - CLOCK_US
    rig.now = Instant(rig.now + 12 * SECOND)
    effects = rig.give(Tick())
    assert Changed((), (f"SvidItem/{CALLER}",)) in effects
    assert rig.proxy.svid(CALLER) is None


def test_deltas_fit_or_a_full_is_asked_for() -> None:
    rig = ready()
    assert sent(rig.give(Received(AGENT, Delta(7, 8)))) == [NeedFull(1)]
    assert sent(rig.give(Received(AGENT, Full(0, ())))) == [NeedFull(1)]
    assert rig.proxy.resolve("web") == WEB
    held = rig.proxy.snapshot.full()
    assert held.version == 1
    other = Rig()
    other.give(Received(AGENT, held))
    assert other.proxy.snapshot.items == rig.proxy.snapshot.items


def test_what_did_not_change_is_not_announced() -> None:
    rig = ready()
    effects = rig.full(*rig.proxy.snapshot.items.values())
    assert Changed((), ()) in effects


# ---------------------------------------------------------------------- routes and replicas
def test_a_path_that_refuses_does_not_keep_a_session_from_the_others() -> None:
    rig = ready()
    _, dial = rig.session()
    tried, under_way = [dial.path], [dial]
    while len(tried) < 4:
        effects = rig.give(Failed(under_way.pop(0).token, "refused: no thoroughfare"))
        new = [effect for effect in effects if type(effect) is Dial]
        while not under_way and not new:
            rig.now = rig.proxy.deadline
            new = [effect for effect in rig.give(Tick()) if type(effect) is Dial]
        under_way += new
        tried += [effect.path for effect in new]
        assert len({d.path for d in under_way}) == len(under_way), "two dials over one path"
    dial = under_way[-1]
    assert len(set(tried[:3])) == 3, tried
    rig.up(dial)
    assert rig.proxy.routes.route(A, B, ()) == dial.path


def test_a_dial_over_what_is_no_path_any_more_is_cancelled_and_made_anew_at_once() -> None:
    rig = ready()
    _, dial = rig.session()
    others = tuple(p for p in rig.proxy.routes.paths(A, B) if p != dial.path)
    effects = rig.delta(PathsItem("b", others))
    assert facts.CancelDial(dial.token) in effects
    effects = rig.give(Failed(dial.token, "cancelled"))
    while not any(type(effect) is Dial for effect in effects):
        rig.now = rig.proxy.deadline
        assert rig.now < 2 * SECOND
        effects = rig.give(Tick())
    assert next(effect for effect in effects if type(effect) is Dial).path in others


def test_a_dial_through_a_neighbour_that_went_down_is_cancelled() -> None:
    rig = ready()
    _, dial = rig.session()
    routes = rig.proxy.routes
    assert routes.through(dial.path[1]) == [dial.token]
    assert routes.through("nobody") == []
    assert routes.way(dial.token) == dial.path
    assert routes.way(dial.token + 999) == ()


def test_a_path_that_comes_back_has_no_failures() -> None:
    rig = ready()
    _, dial = rig.session()
    paths = rig.proxy.routes.paths(A, B)
    rig.give(Failed(dial.token, "reset"))
    assert rig.proxy.routes.route(A, B, ()) != dial.path
    rig.delta(PathsItem("b", tuple(p for p in paths if p != dial.path)))
    rig.delta(PathsItem("b", paths))
    assert rig.proxy.routes.route(A, B, ()) == dial.path


def test_where_the_kernel_leads_the_first_path_has_no_relay_and_the_standby_takes_one() -> None:
    rig = ready()
    before = rig.proxy.routes.paths(A, B)
    rig.delta(DirectItem("b", "fd00::b"))
    direct = ("a", "b")
    assert rig.proxy.routes.paths(A, B) == (direct, *before)
    assert rig.proxy.routes.route(A, B, ()) == direct
    assert rig.proxy.routes.route(A, B, (direct,)) == before[0]
    rig.delta(DirectItem("b", "fd00::b", before[0][1]))  # The kernel goes by that one, too.
    assert rig.proxy.routes.route(A, B, (direct,)) == before[1]
    rig.proxy.routes.suspects.add("b")  # Its link may be dead: the kernel knows another way.
    assert rig.proxy.routes.route(A, B, ()) == direct
    rig.proxy.routes.suspects.discard("b")
    rig.delta(drops=("DirectItem/b",))
    assert rig.proxy.routes.paths(A, B) == before


def test_standby_goes_apart_from_active_and_around_suspects() -> None:
    rig = ready()
    proxy = rig.proxy
    one, two = ("a", "r", "b"), ("a", "s", "b")
    assert proxy.routes.route(A, B, ()) == one
    assert proxy.routes.route(A, B, (one,)) == two
    assert proxy.routes.route(A, B, (one, two)) == ("a", "s", "t", "b")
    proxy.routes.suspects.add("r")
    assert proxy.routes.route(A, B, ()) == two
    assert proxy.routes.route(A, B, (two,)) == ("a", "s", "t", "b")
    assert proxy.routes.route(A, NodeName("z"), ()) is None
    assert proxy.routes.route(A, NodeName("a"), ()) == ("a",)


def test_replicas_are_nearest_first_then_least_loaded() -> None:
    rig = ready()
    rig.delta(
        PathsItem("c", (("a", "c"),)),
        PathsItem("d", (("a", "d"),)),
        ReplicasItem(WEB, (("b", 0), ("c", 9), ("d", 1), ("unreachable", 0))),
    )
    assert rig.proxy.replicas(WEB) == ("d", "c", "b")
    rig.delta(ServiceItem(WEB, "127.0.0.1:1", ("unix:uid:1",)))
    assert rig.proxy.replicas(WEB)[0] == "a"


def test_a_session_without_a_path_waits_for_one() -> None:
    rig = Rig()
    rig.full(NODE)
    number = rig.proxy.token()
    effects = rig.give(OpenSession(number, b"s" * 16, CALLER, WEB, B))
    assert not any(type(effect) is Dial for effect in effects)
    assert rig.proxy.deadline < NEVER
    rig.delta(PathsItem("b", (("a", "b"),)))
    for _ in range(100):
        rig.now = rig.proxy.deadline
        effects = rig.give(Tick())
        if any(type(effect) is Dial for effect in effects):
            break
    else:
        raise AssertionError("never dialled")


# ---------------------------------------------------------------------- judged again
def test_revocation_ends_sessions_of_either_end_and_tells_the_agent() -> None:
    for subject in (WEB, CALLER, "spiffe://mesh.test/node/b"):
        rig = ready()
        number, dial = rig.session()
        rig.up(dial)
        effects = rig.delta(RevokedItem(subject, ABOVE))
        assert facts.SessionEnded(number, "revoked") in effects
        assert SessionGone(CALLER, WEB, "b", "revoked") in sent(effects)
        assert rig.proxy.session(CALLER, WEB, B) is None


def test_a_revoked_circuit_is_not_taken_and_a_held_one_closes() -> None:
    rig = ready()
    circuit = Circuit(77, lambda *_: None)
    up = facts.Up(circuit, ("b", "a"), FOREVER, b"e", peer_issued_unix_s=50, peer_via="b")
    rig.give(facts.Accepted(77, WEB, CALLER, up))
    effects = rig.delta(RevokedItem("spiffe://mesh.test/node/b", ABOVE))
    assert facts.CloseCircuit(77, "revoked") in effects
    again = rig.give(facts.Accepted(78, WEB, CALLER, up))
    assert facts.CloseCircuit(78, "revoked") in again


def test_nothing_is_opened_by_or_to_a_banned_identity() -> None:
    for banned in (CALLER, WEB):
        rig = ready()
        assert rig.proxy.open(CALLER, WEB, "web") == Allowed(WEB)
        rig.delta(RevokedItem(banned, ABOVE, 100))  # Of single SVIDs: it is issued anew.
        assert rig.proxy.open(CALLER, WEB, "web") == Allowed(WEB)
        rig.delta(RevokedItem(banned, ABOVE))
        assert rig.proxy.open(CALLER, WEB, "web") == Denied("revoked")


def test_streams_are_cut_when_policy_no_longer_allows_them() -> None:
    rig = ready()
    number, dial = rig.session()
    rig.up(dial)
    stream = Told()
    rig.pipes[number].open(stream, Open("web"))
    rig.delta(NameItem("other", WEB, ()))
    assert stream.reason is None
    rig.delta(NameItem("web", WEB, ()))
    assert stream.reason is Reset.WITHDRAWN


def test_old_revocations_fail_closed_where_it_is_asked_for() -> None:
    rig = ready()
    unix_us = CLOCK_US + rig.now
    strict = NodeItem("mesh.test", "a", "", revocation_max_age_s=30)
    rig.delta(ClockItem(unix_us), strict)
    number, dial = rig.session()
    rig.up(dial)
    stream = Told()
    rig.pipes[number].open(stream, Open("web"))
    assert rig.proxy.open(CALLER, WEB, "web") == Allowed(WEB)
    rig.now = Instant(rig.now + 31 * SECOND)
    rig.give(Tick())
    assert rig.proxy.open(CALLER, WEB, "web") == Denied("revocations are too old")
    assert stream.reason is Reset.WITHDRAWN
    rig.delta(ClockItem(CLOCK_US + rig.now))
    assert rig.proxy.open(CALLER, WEB, "web") == Allowed(WEB)


def test_a_withdrawn_svid_takes_its_sessions_with_it() -> None:
    rig = ready()
    number, dial = rig.session()
    rig.up(dial)
    effects = rig.delta(drops=(f"SvidItem/{CALLER}",))
    assert facts.SessionEnded(number, "withdrawn") in effects


# ---------------------------------------------------------------------- the rest
def test_bad_paths_and_links_are_told_to_the_agent() -> None:
    rig = ready()
    _, dial = rig.session()
    rig.up(dial)
    effects = rig.give(facts.CircuitLost(dial.token, "tls: bad record mac"))
    assert PathBad(dial.path, "tls: bad record mac") in sent(effects)
    rig.delta(NeighbourItem("r", 1, ("192.0.2.1:1",), 9, 100_000, b"", b"", b"", b""))
    rig.proxy._out.append(LinkSuspected("r"))
    effects = rig.give(ClockSet(CLOCK_US + rig.now))
    assert LinkState("r", "suspected", 0, 0, True, True) in sent(effects)
    assert rig.proxy.routes.route(A, B, ()) == ("a", "s", "b")


def test_a_neighbour_that_the_kernel_watches_is_asked_for_few_hellos() -> None:
    rig = ready()
    item = NeighbourItem("r", 1, ("192.0.2.1:1",), 9, 100_000, b"", b"", b"", b"")
    rig.delta(item)
    for sequence, state in ((1, INIT), (2, UP)):
        rig.give(Received("r", Hello(1, 9, sequence, state, 0, 100_000, 3, sequence)))
    rig.give(AgentAlive(True))
    asked = [e.message for e in rig.delta(replace(item, watched=True)) if type(e) is Send]
    assert [hello.flags & EASY for hello in asked if type(hello) is Hello] == [EASY]


def test_answers_come_once_and_late_ones_are_ignored() -> None:
    rig = ready()
    number, dial = rig.session()
    rig.give(facts.Withdraw(number, "drained"))
    circuit = Circuit(dial.token, lambda *_: None)
    up = facts.Up(circuit, dial.path, FOREVER, b"e", b"k" * 32)
    assert facts.CloseCircuit(dial.token, "ended") in rig.give(Done(dial.token, up))
    assert rig.give(Failed(dial.token, "late")) == ()
    assert rig.give(facts.CircuitLost(dial.token, "late")) == ()


def test_one_session_for_each_source_target_and_node() -> None:
    rig = ready()
    number, _ = rig.session()
    assert rig.proxy.session(CALLER, WEB, B) == number
    second = rig.proxy.token()
    effects = rig.give(OpenSession(second, b"t" * 16, CALLER, WEB, B))
    assert effects == (facts.SessionEnded(second, "busy"),)


def test_an_own_session_is_shared_with_nobody() -> None:
    rig = ready()
    first, one = rig.session(own=True)
    assert rig.proxy.session(CALLER, WEB, B) is None
    shared, _ = rig.session()
    second, other = rig.session(own=True)
    assert rig.proxy.session(CALLER, WEB, B) == shared
    assert one.token != other.token
    assert {client.machine.number for client in rig.proxy.clients.values()} == {
        first,
        shared,
        second,
    }
    # The agent knows of sessions by who speaks with whom: it is told when the last has ended.
    assert sent(rig.give(facts.Withdraw(first, "drained"))) == []
    assert rig.proxy.session(CALLER, WEB, B) == shared
    assert sent(rig.give(facts.Withdraw(shared, "drained"))) == []
    assert rig.proxy.session(CALLER, WEB, B) is None
    gone = SessionGone(CALLER, WEB, "b", "drained")
    assert sent(rig.give(facts.Withdraw(second, "drained"))) == [gone]


def test_revocation_finds_every_own_session() -> None:
    rig = ready()
    numbers = [rig.session(own=True)[0] for _ in range(3)]
    effects = rig.delta(RevokedItem(WEB, ABOVE))
    assert [e.session for e in effects if type(e) is facts.SessionEnded] == numbers


def test_a_session_that_its_client_has_left_is_judged_too() -> None:
    rig = ready()
    accepted: list[tuple[int, int, bytes]] = []
    circuit = Circuit(77, lambda _, kind, value, body: accepted.append((kind, value, body)))
    up = facts.Up(circuit, ("b", "a"), FOREVER, b"e", peer_issued_unix_s=50, peer_via="b")
    rig.give(facts.Accepted(77, WEB, CALLER, up))
    join = frames.Join(b"s" * 16, 1, 0, 0, secret=b"k" * 32)
    new = frames.signed_join(frames.NEW, join, mac, b"k" * 32, frames.LABEL_CLIENT, b"e")
    circuit.feed(memoryview(new))
    kind, value, body = accepted[0]
    rig.give(facts.Heard(77, kind, value, body))
    (session,) = rig.proxy.server.sessions.values()
    stream = Told()
    stream.number, stream.pipe, stream.ended, stream.finished = 1, session.pipe, True, True
    session.pipe.streams[1] = stream
    rig.give(facts.Heard(77, frames.GONE))
    assert rig.proxy.server.sessions
    assert not rig.proxy.server.circuits
    effects = rig.delta(RevokedItem(WEB, ABOVE))
    assert facts.SessionEnded(session.number, "revoked") in effects
    assert stream.reason is Reset.WITHDRAWN


def test_a_tick_before_its_deadline_does_nothing() -> None:
    rig = ready()
    rig.session()
    deadline = rig.proxy.deadline
    assert rig.proxy.deadline > rig.now
    assert rig.give(Tick()) == ()
    assert rig.proxy.deadline == deadline
