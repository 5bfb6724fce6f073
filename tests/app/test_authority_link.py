"""The agent's way to the authority, and what its desk shows of it: a real authority over TLS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from tests.fakes.authority_world import DOMAIN, World, eventually, play, world
from x0tta6bl4.app import authority_link
from x0tta6bl4.app.agent import RECORDS, AgentProcess
from x0tta6bl4.app.authority_link import AuthorityLink
from x0tta6bl4.app.settings import AuthorityAt, Link, NodeSettings
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.edge.authority_api.client import AuthorityClient
from x0tta6bl4.edge.tls.judge import Judge, allow_all
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.authority import BundleRotate, Issued, NodeEvict, Wanted
from x0tta6bl4.wire.errors import NotFound, Unavailable, X0Error
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.messages import ListenState, Notice, SessionGone

WEB = SpiffeId(f"spiffe://{DOMAIN}/web")
ALPHA = SpiffeId(f"spiffe://{DOMAIN}/node/alpha")


@contextlib.asynccontextmanager
async def agent_of(here: World, also: tuple[str, ...] = ()) -> AsyncIterator[AgentProcess]:
    """An agent that is enrolled, or goes on, and watches, without links and proxy."""
    if not here.wallet("alpha").bundle:
        await here.enrol("alpha")
    settings = NodeSettings(
        trust_domain=DOMAIN,
        node="alpha",
        state_dir=str(here.root / "node-alpha"),
        authority=AuthorityAt(address=here.address, also=also),
        link=(Link(node="beta"),),
    )
    agent = AgentProcess(settings, here.root / "node.toml")
    agent.wallet = here.wallet("alpha")
    agent._start_machine()
    await agent._admit()
    agent.authority = AuthorityLink(agent)
    agent._spawn(agent.authority.watch())
    try:
        await eventually(lambda: agent.authority.via == "direct")
        yield agent
    finally:
        await agent._end(for_good=False)
    assert agent.failure is None


def test_entries_come_and_their_svids_are_fetched(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with agent_of(here) as agent:
            await here.entry("alpha")
            await eventually(lambda: agent.machine.svid(WEB) is not None)
            status = agent.desk.status()
            assert status.authority.connected
            assert status.authority.error == ""
            assert abs(status.authority.clock_offset_ms) < 1000
            assert {svid.id for svid in status.svids} == {ALPHA, WEB}
            assert status.links == (admin.LinkView("beta", "connecting"),)
            first = agent.machine.svid(WEB)
            assert (await agent.desk.renew(admin.Renew(WEB))).text == "1 renewed"
            assert agent.machine.svid(WEB) != first
            assert agent.desk.counters()["svid_renewals_total"] == 2
            with pytest.raises(NotFound, match="X0-REN-001"):
                await agent.desk.renew(admin.Renew("spiffe://x/y"))

    play(tmp_path, story)


def test_a_lost_authority_is_told_and_renewals_are_refused_not_forgotten(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with agent_of(here) as agent:
            refused: list[tuple[int, str]] = []
            agent.not_renewed = (  # type: ignore[method-assign]
                lambda token, id, reason: refused.append((token, reason))
            )
            agent.authority.renew(98, SpiffeId(f"spiffe://{DOMAIN}/nobody"))
            await eventually(lambda: bool(refused))
            assert refused == [(98, "no entry names this node for it")]
            await here.process._api.stop()
            await eventually(lambda: agent.authority.via == "")
            assert agent.desk.authority_error
            assert not agent.desk.status().authority.connected
            agent.authority.renew(99, ALPHA)
            await eventually(lambda: len(refused) == 2)
            assert refused[1][0] == 99
            agent.authority.renew(100, ALPHA)
            await eventually(lambda: len(refused) == 3)
            assert refused[2] == (100, "authority not connected")

    play(tmp_path, story)


def test_it_goes_on_with_another_authority_when_one_is_gone(tmp_path: Path) -> None:
    async def story() -> None:
        store = str(tmp_path / "store")
        for name in "ab":
            (tmp_path / name).mkdir()
        async with contextlib.AsyncExitStack() as first:
            a = await first.enter_async_context(world(tmp_path / "a", name="a", store=store))
            async with (
                world(tmp_path / "b", name="b", store=store) as b,
                agent_of(a, (b.address,)) as agent,
            ):
                assert agent.desk.status().authority.address == a.address
                assert agent._node_config().authority == a.address
                await agent.authority._knock(b.address)
                assert agent.authority.away == set()
                gone = a.address
                await first.aclose()
                await eventually(lambda: agent.authority.address == b.address)
                await b.entry("alpha")
                await eventually(lambda: agent.machine.svid(WEB) is not None)
                status = agent.desk.status()
                assert (status.authority.address, status.authority.away) == (b.address, (gone,))
                assert agent._node_config().authority == b.address
                await agent.authority._knock(gone)
                assert agent.authority.away == {gone}

    asyncio.run(story())


def test_an_evicted_node_is_told_why(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with agent_of(here) as agent:
            await here.admin.node_evict(NodeEvict("alpha", "lost"))
            await eventually(lambda: "node was evicted" in agent.desk.authority_error)
            error = agent.desk.authority_error
            await eventually(lambda: agent.authority.via == "")
            assert agent.desk.status().authority.error == error
            assert error.startswith("X0-AUT-042")
            told = [e for e in agent.desk.status().events if e.text == error]
            assert len(told) == 1

    play(tmp_path, story)


def test_a_node_that_slept_past_its_svid_attests_by_its_key(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with agent_of(here) as agent:
            # The authority takes the one of now no more, as if it had ended.
            old = agent.trusts.svid
            here.process._revoked = (  # type: ignore[method-assign]
                lambda id, issued_unix_s, via: (
                    Denied("expired") if agent.trusts.svid is old else Allowed(id)
                )
            )
            here.process._context = None
            here.process._api.cut("alpha", "test")
            await eventually(lambda: agent.trusts.svid is not old, 10)
            await eventually(lambda: agent.authority.via == "direct", 10)
            assert agent.desk.status().authority.connected

    play(tmp_path, story)


async def change_ca(here: World) -> None:
    """Everything is signed by another CA from now on, the authority's own SVID too."""
    await here.admin.bundle_rotate(BundleRotate(step="prepare"))
    await eventually(lambda: _bundle(here) == 2)
    await here.admin.bundle_rotate(BundleRotate(step="activate", force=True))
    await eventually(lambda: _bundle(here) == 3)
    anchors = [here.process._machine.state.active().certificate]
    judge = Judge(DOMAIN, anchors, allow_all, unix_us)
    await eventually(
        lambda: type(judge.judge(here.process._own_svid().chain, ANYBODY).verdict) is Allowed
    )


def _bundle(here: World) -> int:
    """Sequence of the newest bundle that the authority has made."""
    sequence: int = here.process._machine.state.newest_bundle().sequence
    return sequence


def test_a_node_that_was_away_when_the_ca_changed_comes_back_by_its_key(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.enrol("alpha")
        await change_ca(here)
        async with agent_of(here) as agent:
            assert agent.machine.view().bundle_sequence == 3

    play(tmp_path, story)


def test_a_node_that_dies_just_after_a_change_of_the_ca_believes_the_new_one(
    tmp_path: Path,
) -> None:
    """`records` is written once a second, and the newest bundle at once, beside the SVID."""

    async def story(here: World) -> None:
        records = here.root / "node-alpha" / RECORDS
        async with agent_of(here) as agent:
            await eventually(records.exists)
            behind = records.read_bytes()
            await change_ca(here)
            await eventually(lambda: agent.machine.view().bundle_sequence == 3)
        records.write_bytes(behind)
        async with agent_of(here) as agent:
            assert agent.machine.view().bundle_sequence == 3
            told = [event.text for event in agent.desk.status().events]
            assert told[0] == f"kept as {ALPHA}"
            assert told[1] == "connected, direct"

    play(tmp_path, story)


def test_a_renewal_waits_for_the_next_connection(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with agent_of(here) as agent:
            old = agent.machine.svid(ALPHA)
            here.process._api.cut("alpha", "test")
            await eventually(lambda: agent.authority.via == "")
            assert (await agent.desk.renew(admin.Renew(ALPHA))).text == "1 renewed"
            assert agent.machine.svid(ALPHA) != old
            assert agent.desk.renewal_failures == 0

    play(tmp_path, story)


class Client:
    """In the place of a client: keeps who asks, or answers less than it was asked for."""

    def __init__(self, answers: tuple[Issued, ...] | X0Error | None) -> None:
        self.answers = answers
        self.asked = asyncio.Event()

    async def issue(self, wanted: Sequence[Wanted]) -> tuple[Issued, ...]:
        self.asked.set()
        if self.answers is None:
            await asyncio.Event().wait()
        if isinstance(self.answers, X0Error):
            raise self.answers
        return self.answers or ()


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        (None, True),
        ((), False),
        (Unavailable("X0-AUT-008", "the authority closed the connection", ""), True),
        (Unavailable("X0-AUT-006", "the authority does not answer", ""), False),
    ],
)
def test_every_token_is_answered(
    tmp_path: Path, answers: tuple[Issued, ...] | X0Error | None, kept: bool
) -> None:
    """Also when the connection is lost in the midst of it, or the answer is too short."""

    async def story(here: World) -> None:
        async with agent_of(here) as agent:
            refused: list[int] = []
            agent.not_renewed = (  # type: ignore[method-assign]
                lambda token, id, reason: refused.append(token)
            )
            link, fake = AuthorityLink(agent), Client(answers)
            link._client = client = cast(AuthorityClient, fake)
            task = asyncio.create_task(link._issue_for_ever(client))
            link.renew(7, ALPHA)
            await fake.asked.wait()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            link._lost("hung up")
            assert refused == ([] if kept else [7])
            link._lost("gone")
            assert refused == [7]

    play(tmp_path, story)


def test_only_so_many_renewals_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority_link, "WAITING_MAX", 1)

    async def story(here: World) -> None:
        async with agent_of(here) as agent:
            refused: list[str] = []
            agent.not_renewed = (  # type: ignore[method-assign]
                lambda token, id, reason: refused.append(reason)
            )
            link = AuthorityLink(agent)
            link._client = cast(AuthorityClient, Client(None))
            link.renew(1, ALPHA)
            link.renew(2, ALPHA)
            await asyncio.sleep(0)
            assert refused == ["too many renewals wait"]

    play(tmp_path, story)


# ------------------------------------------------------------------ the desk
def test_the_desk_keeps_what_the_proxy_says(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with agent_of(here) as agent:
            desk = agent.desk
            desk.proxy_said(ListenState("127.0.0.1:0", "127.0.0.1:7", "plain", "web"))
            desk.proxy_said(ListenState("127.0.0.1:8", "", "plain", "web", "in use"))
            desk.proxy_said(Notice("setup", "no setup frame in time"))
            desk.proxy_said(SessionGone(WEB, WEB, "beta", "revoked"))
            status = desk.status()
            assert admin.ListenerView("127.0.0.1:7", "plain", "web") in status.listeners
            texts = {(event.kind, event.text) for event in status.events}
            assert ("bound", "can't listen at 127.0.0.1:8: in use") in texts
            assert ("setup", "no setup frame in time") in texts
            assert ("session", f"{WEB} -> {WEB} at beta: revoked") in texts
            with pytest.raises(NotFound, match="X0-PTH-001"):
                await desk.path(admin.GetPath("", "nowhere"))
            assert set((await desk.support()).files) >= {"status.json", "check.txt"}
            assert (await desk.stop()).text == "stopping"

    play(tmp_path, story)


def test_a_renewal_that_never_ends_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x0tta6bl4.app.desk.RENEW_S", 0.05)

    async def story(here: World) -> None:
        async with agent_of(here) as agent:
            monkeypatch.setattr(agent.authority, "renew", lambda token, id: None)
            with pytest.raises(Unavailable, match="X0-REN-002: 1 of 1 not renewed"):
                await agent.desk.renew(admin.Renew(ALPHA))

    play(tmp_path, story)
