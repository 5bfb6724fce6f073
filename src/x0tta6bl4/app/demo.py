"""`x0 demo`: one story on the terminal, told by real processes.

A trust domain, six nodes in a ring with two chords, two replicas of an unmodified HTTP server and
an unmodified client.  Requests run without a pause through everything that then happens; a
download runs from the first act to the last.  The exit status says whether a request was lost or
an impostor was let in; timing never decides it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from x0tta6bl4.app import impostors
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.story import (
    LEAD_S,
    TAIL_S,
    Act,
    Report,
    Watcher,
    sleep_until,
    write_report,
)
from x0tta6bl4.app.up import CLIENT, GUEST_NODE, Tell, Up
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.errors import Unavailable, X0Error
from x0tta6bl4.wire.records import Name

DOMAIN: Final = "demo.mesh"
BULK_BYTES: Final = 512 * 1024 * 1024
BULK_PACE: Final = 7_000_000


class Demo:
    """The mesh of the demo with its load and its acts."""

    def __init__(self, root: Path, tell: Tell) -> None:
        self.root = root
        self.tell = tell
        self.report = Report()
        self.up = Up(root, DOMAIN, BULK_BYTES)
        self.mesh = self.up.mesh
        self._load: Watcher | None = None
        self._hurt = ""

    # -------------------------------------------------------------- the acts
    def tell_story(self) -> None:
        """All acts, in order, under load."""
        self._load = Watcher(
            self.up.address(CLIENT, "plain"),
            self.up.page,
            ["--bulk", "/bulk", "--pace", str(BULK_PACE)],
        )
        sleep_until(time.monotonic() + 1.5)
        self._act("nothing happens", "the control window", lambda: "")
        self.report.control_gap_ms_max = self.report.acts[-1].gap_ms_max
        self._act("relay killed", "SIGKILL of the relay in use, agent and proxy", self._kill_relay)
        self._act("relay frozen", "SIGSTOP of the relay in use", self._freeze_relay)
        self._act("agent killed", f"SIGKILL of the agent of {CLIENT}", self._kill_agent)
        self._act(
            "agent and authority killed", f"SIGKILL of both, agent of {CLIENT}", self._kill_both
        )
        self._act("all SVIDs rotated", "every node renews every SVID", self._rotate)
        self._act("policy changed", "guest may not call web any more", self._policy)
        self._act("identity revoked", "guest's SVIDs are revoked", self._revoke)
        self._act("impostors", "strangers, forgers and thieves try every door", self._impostors)
        self._load.finish(120)
        self._sum_up()

    def _act(self, name: str, what: str, do: Callable[[], str]) -> None:
        """One act: something happens at an instant, then TAIL_S of watching."""
        assert self._load is not None
        sleep_until(time.monotonic() + LEAD_S)
        before = self._path()
        event = time.monotonic()
        detail = do()
        sleep_until(event + TAIL_S)
        after = self._path()
        sleep_until(event + TAIL_S + 0.3)  # Answers of the last requests, and the load's lines.
        requests, failed, gap = self._load.window(event - LEAD_S, event + TAIL_S)
        act = Act(name, what, requests, len(failed), round(gap, 1), before, after, detail)
        self.report.acts.append(act)
        for sample in failed[:3]:
            self.report.failures.append(f"{name}: {sample.why}")
        self.tell(_line(act, self.report.control_gap_ms_max))
        self._mend()

    def _path(self) -> tuple[str, ...]:
        """Path of the client's busiest session, as its own agent sees it; none while it is dead."""
        try:
            sessions = self._sessions()
        except X0Error:
            return ()
        best = max(sessions, key=lambda s: (s.streams, s.bytes_in), default=None)
        return best.path if best else ()

    def _sessions(self) -> list[admin.SessionView]:
        """The client's sessions, as its own agent sees them; an X0Error while it is dead."""
        return [s for s in self.up.status(CLIENT).sessions if s.source == self.up.shop]

    def _relay(self) -> str:
        path = self._path()
        if len(path) < 3:
            raise Unavailable("X0-DEMO-002", f"no relay on the path {path}")
        return path[1]

    def _kill_relay(self) -> str:
        self._hurt = self._relay()
        self.mesh.kill(self._hurt)
        return self._hurt

    def _freeze_relay(self) -> str:
        self._hurt = self._relay()
        self.mesh.freeze(self._hurt)
        return self._hurt

    def _kill_agent(self) -> str:
        self._hurt = CLIENT
        self.mesh.kill(CLIENT, "agent")
        return CLIENT

    def _kill_both(self) -> str:
        self.mesh.kill("authority")
        return self._kill_agent() + ", authority"

    def _mend(self) -> None:
        """Bring back whom the last act hurt, outside of any window."""
        if not self.mesh.pids("authority"):
            self.up.start_authority()
        hurt, self._hurt = self._hurt, ""
        if hurt:
            self.mesh.thaw(hurt)
            if not self.mesh.pids(hurt, "agent"):
                self.mesh.start(hurt)
            self.up.wait_ready(hurt)
        wait_for(self._is_whole, "a standby apart from the path in use")

    def _is_whole(self) -> bool:
        """Whether every session that the client uses could lose any one relay again.

        One without streams looks for other paths when a stream comes, or after a minute or two.
        """
        try:
            used = [s for s in self._sessions() if s.streams]
        except X0Error:
            return False
        return bool(used) and all(
            s.path and s.standby and not set(s.path[1:-1]) & set(s.standby[1:-1]) for s in used
        )

    def _rotate(self) -> str:
        count = 0
        for node in self.mesh.plan.nodes:
            before = {s.id: s.serial for s in self.up.status(node).svids}
            with AdminClient(self.mesh.state(node), 20) as client:
                client.ask(admin.Renew(), admin.Fine)
            count += sum(before.get(s.id) != s.serial for s in self.up.status(node).svids)
        self.report.rotations += count
        return f"{count} SVIDs"

    def _policy(self) -> str:
        guest = self._guest()
        end = self._last_answer(
            guest, lambda: self.up.operator.update_name(Name("web", self.up.web, (self.up.shop,)))
        )
        self.up.operator.update_name(Name("web", self.up.web, (self.up.shop, self.up.guest)))
        wait_for(lambda: self.up.get_page(GUEST_NODE), "guest to be let in again")
        return f"guest's last byte {end:.0f} ms after the command"

    def _revoke(self) -> str:
        guest = self._guest()
        end = self._last_answer(guest, lambda: self.up.operator.revoke(self.up.guest, "demo"))
        return f"guest's last byte {end:.0f} ms after the command"

    def _guest(self) -> Watcher:
        guest = Watcher(
            self.up.address(GUEST_NODE, "plain"),
            self.up.page,
            ["--kept", "2", "--rate", "40", "--fresh", "10"],
        )
        sleep_until(time.monotonic() + 1.2)
        return guest

    def _last_answer(self, guest: Watcher, change: Callable[[], object]) -> float:
        """Apply a change that ends guest's access; ms from its return to guest's last answer."""
        change()
        returned = time.monotonic()
        sleep_until(returned + 2.0)
        guest.finish(5)
        answers = [s.at + s.took for s in guest.samples if s.ok]
        early = [s for s in guest.failed() if s.at + s.took < returned - 1.0]
        late = max(answers, default=returned) - returned
        if not answers or early:
            self.report.failures.append("guest did not get through before its access ended")
        if late > 1.0:
            self.report.failures.append(f"guest got an answer {late:.1f} s after its access ended")
        return max(0.0, late * 1e3)

    def _impostors(self) -> str:
        found = impostors.try_all(self.mesh)
        self.report.impostors = found
        return f"{found.tried} tried, {found.accepted} accepted"

    def _sum_up(self) -> None:
        load, report = self._load, self.report
        assert load is not None
        report.requests = len(load.samples)
        report.failed = len(load.failed())
        for sample in load.failed()[:5]:
            report.failures.append(sample.why)
        report.bulk.bytes = int(str(load.bulk.get("bulk", 0)))
        report.bulk.sha256_ok = load.bulk.get("sha256") == self.up.digest
        report.bulk.why = str(load.bulk.get("why", "not finished"))

    # -------------------------------------------------------------- the end
    def close(self) -> None:
        """End every process that the demo started."""
        if self._load is not None:
            self._load.finish(1)
        self.up.stop()


def _line(act: Act, control: float) -> str:
    way = " -> ".join(act.path_before)
    if act.path_after and act.path_after != act.path_before:
        way += "   then   " + " -> ".join(act.path_after)
    lines = [
        f"{act.name}: {act.what}" + (f" ({act.detail})" if act.detail else ""),
        f"    {act.requests} requests, {act.failed} failed; longest gap {act.gap_ms_max:.0f} ms"
        f" (no fault: {control:.0f} ms)",
    ]
    if way:
        lines.append(f"    path {way}")
    return "\n".join(lines)


def main(json_path: Path | None = None, keep: bool = False) -> int:
    """Tell the story; the exit status of `x0 demo`.

    Args:
        json_path: where to write the report; None: nowhere.
        keep: leave the processes' files behind, for looking at.
    """
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="x0-demo-"))

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)

    demo = Demo(root, tell)
    report = demo.report
    try:
        demo.up.start(tell)
        report.setup_s = round(time.monotonic() - began, 2)
        tell(f"the mesh is up, the first page came through after {report.setup_s} s")
        demo.tell_story()
    except X0Error as error:
        report.failures.append(str(error))
        for name in ("authority", *demo.mesh.plan.nodes):
            if tail := demo.mesh.tail(name):
                print(f"--- {name}\n{tail}", file=sys.stderr)
    except KeyboardInterrupt:
        report.failures.append("interrupted")
    finally:
        demo.close()
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
    report.story_s = round(time.monotonic() - began, 2)
    if json_path is not None:
        write_report(report, json_path)
    return _verdict(report, tell)


def _verdict(report: Report, tell: Tell) -> int:
    good = (
        report.requests > 0
        and not report.failed
        and not report.failures
        and report.bulk.sha256_ok
        and not report.impostors.accepted
        and report.impostors.tried > 0
    )
    tell(
        f"{report.requests} requests, {report.failed} failed; bulk of {report.bulk.bytes >> 20}"
        f" MiB {'equal' if report.bulk.sha256_ok else 'BROKEN: ' + report.bulk.why};"
        f" {report.rotations} SVIDs rotated; {report.impostors.accepted} of"
        f" {report.impostors.tried} impostors accepted"
    )
    for failure in report.failures[:10]:
        tell("FAILED: " + failure)
    return 0 if good else 1
