"""Programs that take long to look at: nobody loses an identity to that, nobody gets one by it."""

from __future__ import annotations

import asyncio

from tests.app.test_identities import Process, Table, names, soon, told
from x0tta6bl4.core.identity.selectors import Attributes
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.errands import PENDING
from x0tta6bl4.edge.attest.process import Needs


class Slow(Process):
    """A caller whose program is found out when a test says so."""

    def __init__(self, uid: int) -> None:
        super().__init__(uid)
        self.answer: Attributes | Denied = PENDING

    def attributes(self, wanted: Needs) -> Attributes | Denied:
        if not wanted.process:
            return super().attributes(wanted)
        self.looks += 1
        return self.answer


SCRIPT = ("unix:uid:7", "python:script:/srv/web.py")
WEB = Attributes(7, (100,), facts=frozenset({"python:script:/srv/web.py"}))


def test_who_is_slow_to_look_at_is_told_when_it_is_known_without_another_change() -> None:
    async def story(table: Table) -> None:
        table.world.add("web", *SCRIPT)
        table.world.add("plain", "unix:uid:7")
        table.changed()
        await asyncio.sleep(0.01)
        process = Slow(7)
        stream = table.subscribe(process)
        assert names(await anext(stream)) == ["plain"]
        later = soon(anext(stream))
        while process.looks < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not later.done()
        process.answer = WEB
        assert names(await later) == ["web", "plain"]
        looks = process.looks
        after = soon(anext(stream))
        await asyncio.sleep(0.1)
        assert process.looks == looks, "who is known is left alone"
        after.cancel()
        await asyncio.gather(after, return_exceptions=True)
        assert table.refused == []

    told(story)


def test_nobody_loses_an_identity_while_being_looked_at_again() -> None:
    async def story(table: Table) -> None:
        table.world.add("web", *SCRIPT)
        table.changed()
        await asyncio.sleep(0.01)
        process = Slow(7)
        process.answer = WEB
        stream = table.subscribe(process)
        assert names(await anext(stream)) == ["web"]
        process.answer = PENDING
        before = process.looks
        later = soon(anext(stream))
        table.world.add("other", "unix:uid:7")
        table.changed()
        while process.looks < before + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not later.done()
        process.answer = Denied("script was changed after the process began")
        assert names(await later) == ["other"]
        assert table.refused == ["script was changed after the process began"]

    told(story)


def test_callers_are_remembered_as_they_were() -> None:
    async def story(table: Table) -> None:
        table.world.add("web", *SCRIPT)
        table.changed()
        await asyncio.sleep(0.01)
        for uid in range(40):
            process = Slow(uid)
            process.pid = 1000 + uid
            process.answer = Denied("executable is no Python")
            await table.now(process)
        seen = table.identities.seen()
        assert len(seen) == 32
        assert (seen[0].pid, seen[0].uid) == (1039, 39)
        await table.now(Slow(7))
        last = table.identities.seen()[0]
        assert last.pending
        assert PENDING in last.looks.values()

    told(story)
