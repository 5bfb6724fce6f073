"""Laws of the agent: replay under any hash seed, honest deadlines, truth in the end, no forgery."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.agents import TTL_S, UNIX, FakeProxy, Mesh, neighbour, svid
from tests.fakes.signing import DOMAIN, set_records
from x0tta6bl4.core.agent import words
from x0tta6bl4.core.machine import SECOND, ClockSet, Instant, Received, Tick
from x0tta6bl4.wire.authority import Entry, Update
from x0tta6bl4.wire.messages import (
    Flood,
    PathBad,
    PathsItem,
    Ready,
    ReplicasItem,
    SvidItem,
)
from x0tta6bl4.wire.records import (
    Name,
    Revocation,
    Word,
    encode_body,
)

NAMES = ["a", "b", "c", "d"]
LINKS = [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d"), ("a", "c")]


def wander(seed: int, steps: int) -> Mesh:
    """A small mesh to which anything happens."""
    random = Random(seed)
    mesh = Mesh(NAMES, LINKS)
    sequence = 0
    for _ in range(steps):
        name = random.choice(NAMES)
        node, (a, b) = mesh[name], random.choice(LINKS)
        luck = random.randrange(12)
        if luck == 0:
            mesh.cut(a, b, proxies=random.random() < 0.7)
        elif luck == 1:
            mesh.connect(a, b)
        elif luck == 2:
            count = random.randrange(4)
            ids = [f"spiffe://{DOMAIN}/{name}/{number}" for number in range(count)]
            node.entries(*(Entry(id, name, ("unix:uid:1",), address="x:1", key=id) for id in ids))
        elif luck == 3:
            node.issue = not node.issue
        elif luck == 4:
            node.give(words.ProxyGone())
            if random.random() < 0.5:
                node.proxy = FakeProxy(node.proxy.incarnation + 1)
            node.meet_proxy()
        elif luck == 5:
            node.born(node.agent.held())
            node.meet_proxy()
            for link in sorted(mesh.links):
                if name in link:
                    mesh.connect(*link)
        elif luck == 6:
            sequence += 1
            sets: dict[str, tuple[Word, ...]] = {
                "names": (Name("web", f"spiffe://{DOMAIN}/{name}/0", ()),),
                "revocations": (Revocation(f"spiffe://{DOMAIN}/{name}/1", UNIX + 9 * TTL_S),),
            }
            for set, value in sets.items():
                node.records(
                    *set_records(
                        set, sequence, encode_body(value), key="k1",
                        generation=UNIX + mesh.now // SECOND + sequence % 40,
                        expires_unix_s=UNIX + random.randrange(60, 9 * TTL_S),
                    )
                )  # fmt: skip
        elif luck == 7:
            node.give(words.ProxySaid(PathBad(tuple(random.sample(NAMES, 3)), "corrupted")))
        elif luck == 8:
            node.give(ClockSet(UNIX * SECOND + mesh.now + random.randrange(-5, 5) * SECOND))
        elif luck == 9:
            node.give(words.Configured(words.NodeConfig(authority=random.choice(["", "x:1"]))))
        elif luck == 10:
            node.give(Received(b, Flood((random.randbytes(30),))))
        else:
            mesh.run(random.choice([0.01, 0.5, 3, 30, 400]))
    return mesh


def digest(seed: int) -> str:
    mesh = wander(seed, 60)
    heard = "\n".join(repr(effect) for name in NAMES for effect in mesh[name].said)
    return hashlib.sha256(heard.encode()).hexdigest()


def test_the_same_events_give_the_same_effects_under_any_hash_seed() -> None:
    code = "from tests.core.test_agent_laws import digest; print([digest(n) for n in range(6)])"
    found = []
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "src:."}
        found.append(
            subprocess.run(
                [sys.executable, "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout
        )
    assert found[0] == found[1]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_whatever_happens_all_proxies_end_up_with_what_is_true(seed: int) -> None:
    # The fakes check on the way: deadlines are honest, ticks make progress, deltas only say what
    # changed, and no order is refused by the proxy's own snapshot.
    mesh = wander(seed, 40)
    now_s = UNIX + mesh.now // SECOND
    for a, b in LINKS:
        mesh.connect(a, b)
    for name in NAMES:
        node = mesh[name]
        node.issue = True
        node.give(ClockSet(UNIX * SECOND + mesh.now))
        node.give(words.SvidHeld(svid(node.id, now_s + 9 * TTL_S)))
        node.give(words.AuthorityState(True))
        id = f"spiffe://{DOMAIN}/{name}/9"
        entry = Entry(id, name, ("unix:uid:1",), address="127.0.0.1:1", key=id)
        node.give(words.AuthoritySaid(Update(0, full=True, entries=(entry,))))
    # Renewals pause for up to 66 s, penalties of bad paths are forgiven after three half-lives.
    mesh.run(500)
    for name in NAMES:
        proxy = mesh[name].proxy
        assert [item.id for item in proxy.items(SvidItem) if type(item) is SvidItem] == [
            f"spiffe://{DOMAIN}/{name}/9"
        ]
        replicas = {
            item.id: [node for node, _ in item.nodes]
            for item in proxy.items(ReplicasItem)
            if type(item) is ReplicasItem
        }
        assert replicas == {f"spiffe://{DOMAIN}/{other}/9": [other] for other in NAMES}
        for other in NAMES:
            item = proxy.item(f"PathsItem/{other}")
            assert type(item) is PathsItem
            assert item.paths[0][0] == name
            assert item.paths[0][-1] == other


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcx"), st.binary(max_size=80)), max_size=20))
def test_bytes_that_nobody_signed_change_nothing(floods: list[tuple[str, bytes]]) -> None:
    mesh = Mesh("ab", [("a", "b")])
    mesh.run(1)
    before = mesh["a"].agent.view()
    items = dict(mesh["a"].proxy.snapshot.items)
    for src, data in floods:
        effects = mesh["a"].give(Received(src, Flood((data,))))
        assert all(type(effect) is words.Noticed for effect in effects)
    after = mesh["a"].agent.view()
    assert (after.nodes, after.records) == (before.nodes, before.records)
    assert mesh["a"].proxy.snapshot.items == items


def test_an_early_tick_does_nothing_before_and_after_everything() -> None:
    mesh = Mesh("a", [])
    agent = mesh["a"].agent
    for _ in range(5):
        assert agent.deadline > mesh.now
        assert agent.handle(Instant(agent.deadline - 1), Tick()) == ()
        mesh.now = agent.deadline
        mesh["a"].give(Tick())
        mesh["a"].give(words.ProxySaid(Ready(1, 1, 0, 1, 1)))
        mesh["a"].give(words.NeighbourUp(neighbour("z")))
