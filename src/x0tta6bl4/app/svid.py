"""`x0 svid`: the identity of a workload as files, or around a process, for as long as it lives.

What spiffe-helper does for SPIRE: an SVID is written when it comes and each time it is renewed,
and whoever uses it is told by a signal, by a command, or by being started again.  An identity that
is withdrawn or expires takes its files along, and ends the process that ran under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.sdk.identity.files import BUNDLE, CHAIN, KEY, Form, remove_x509, write_x509
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.wire.errors import BadInput, NotFound, Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import domain_of

TOLD_S: Final = 30.0
"""A command that is told of a new SVID has to end within this time."""
PATIENCE_S: Final = 2.0
"""Who waits longer is told for what."""
END_S: Final = 10.0
"""A process that is to end has this long before SIGKILL."""

_IDS_MAX: Final = 2**32 - 1
"""Numbers of users and groups are below it; it means nobody to chown(2)."""

Say = Callable[[str], None]
Act = Callable[[Svid | None, X509Source], Awaitable[None]]


@final
class Wanted(Value, frozen=True):
    """Which identity, of which Workload API."""

    socket: str = ""
    """Empty: SPIFFE_ENDPOINT_SOCKET."""
    id: str = ""
    hint: str = ""
    timeout_s: float = 30.0
    """For the first one."""


async def fetch(wanted: Wanted, say: Say) -> tuple[Svid, ...]:
    """All identities of this workload, once.

    Raises:
        X0Error: there is none within the time.
    """
    async with X509Source(wanted.socket or None) as source:
        await _first(source, wanted, say)
        return source.svids


async def _first(source: X509Source, wanted: Wanted, say: Say) -> None:
    """Wait for the first answer; somebody who has to wait long is told for what."""
    left_s = wanted.timeout_s - PATIENCE_S
    try:
        await source.wait(min(PATIENCE_S, wanted.timeout_s))
    except X0Error as error:
        if left_s <= 0 or isinstance(error, NotFound) or type(error) is BadInput:
            raise
        say(f"waiting up to {left_s:.0f} s more: {error.what}")
        await source.wait(left_s)


async def follow(wanted: Wanted, act: Act, say: Say, *, once: bool = False) -> None:
    """Hand over the identity now and whenever it changes; None when it is gone.

    Args:
        wanted: which.
        act: awaited for each; what it raises ends everything.
        say: hears why the first one takes long.
        once: only the first one.
    Raises:
        X0Error: no identity came within the time.
    """
    async with X509Source(wanted.socket or None) as source:
        await _first(source, wanted, say)
        held: Svid | None = None
        bundle: object = None
        first = True
        while True:
            version = source.version
            svid = _picked(source, wanted, must=first)
            anchors = source.bundles.get(domain_of(svid.id)) if svid is not None else None
            if first or svid != held or anchors != bundle:
                held, bundle, first = svid, anchors, False
                await act(svid, source)
            if once:
                return
            with contextlib.suppress(Unavailable):  # Nothing new within the time is no news.
                await source.changed(version, 3600.0)


def _picked(source: X509Source, wanted: Wanted, *, must: bool) -> Svid | None:
    try:
        return source.current(wanted.id or None, hint=wanted.hint or None)
    except Unavailable:
        if must:
            others = ", ".join(svid.id for svid in source.svids)
            raise NotFound(
                "X0-SVD-001", f"no identity {wanted.id or wanted.hint!r} here", f"there is {others}"
            ) from None
        return None


# ------------------------------------------------------------------------------------------ files
@final
class Told(Value, frozen=True):
    """Who is told that the files are new."""

    signal: int = 0
    pid: int = 0
    pid_file: str = ""
    command: tuple[str, ...] = ()


class Files:
    """An identity in a directory, and whoever reads it.

    Args:
        folder: where to.
        form: names, modes, owner.
        told: who is told after each change.
        say: hears a line about each change.
    """

    def __init__(self, folder: Path, form: Form, told: Told, say: Say) -> None:
        self._folder = folder
        self._form = form
        self._told = told
        self._say = say

    async def act(self, svid: Svid | None, source: X509Source) -> None:
        """Write it, or take it away; for `follow`."""
        if svid is None:
            remove_x509(self._folder, self._form)
            self._say(f"the identity is gone ({source.error or 'expired'}): its files, too")
            return
        write_x509(self._folder, svid, source.bundles[domain_of(svid.id)], self._form)
        self._say(f"{svid.id} written to {self._folder}")
        await self._tell()

    async def _tell(self) -> None:
        told = self._told
        pid = told.pid or (_pid_in(Path(told.pid_file)) if told.pid_file else 0)
        if pid:
            try:
                os.kill(pid, told.signal)
            except OSError as error:
                self._say(f"pid {pid} was not signalled: {error.strerror}")
        if told.command:
            status = await _run(told.command)
            if status:
                self._say(f"{told.command[0]} ended with status {status}")


def _pid_in(path: Path) -> int:
    """The pid in a file; 0 while there is none, since its process may start later."""
    try:
        return max(int(path.read_text()), 0)
    except (OSError, ValueError):
        return 0


async def _run(command: Sequence[str]) -> int | str:
    """Status of a command; a word where there is none."""
    try:
        child = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    except OSError as error:
        return f"{error.strerror}"
    try:
        return await asyncio.wait_for(child.wait(), TOLD_S)
    except TimeoutError:
        child.kill()
        await child.wait()
        return f"none within {TOLD_S:.0f} s"


# ---------------------------------------------------------------------------------------- process
class Process:
    """A process that runs under an identity: started with it, told of each new one, ended with it.

    Its environment names the files: X0_SVID_DIR, X0_SVID_CHAIN, X0_SVID_KEY, X0_SVID_BUNDLE.

    Args:
        command: with its arguments.
        on_new: signal for a new SVID; 0: it is ended and started again.
        say: hears a line about each change.
    """

    def __init__(self, command: Sequence[str], on_new: int, say: Say) -> None:
        self._command = command
        self._on_new = on_new
        self.say = say
        self._folder = Path(tempfile.mkdtemp(prefix="x0-svid-"))
        self._child: asyncio.subprocess.Process | None = None
        self._ended = asyncio.Event()
        self._starting = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self.status = 0

    async def act(self, svid: Svid | None, source: X509Source) -> None:
        """Start, tell or end it; for `follow`."""
        if svid is None:
            remove_x509(self._folder)
            self.say(f"the identity is gone ({source.error or 'expired'}): so is the process")
            await self._end()
            raise Refused("X0-SVD-002", "the process has lost its identity", "see x0 explain")
        write_x509(self._folder, svid, source.bundles[domain_of(svid.id)])
        if self._child is None:
            await self._start()
        elif self._on_new:
            self._child.send_signal(self._on_new)
            self.say(f"{svid.id} is new; told by {signal.Signals(self._on_new).name}")
        else:
            self.say(f"{svid.id} is new; starting again")
            await self._end()
            await self._start()

    async def ended(self) -> int:
        """Wait until it ends by itself; its status, 128 + number for a signal."""
        await self._ended.wait()
        return self.status

    async def close(self) -> None:
        """End it, and remove its files."""
        await self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def forward(self, number: int) -> None:
        """Hand a signal on; before there is a process, it ends the wait for an identity."""
        if self._child is None:
            self.status = 128 + number
            self._ended.set()
        elif self._child.returncode is None:
            self._child.send_signal(number)

    async def _start(self) -> None:
        try:
            self._child = await asyncio.create_subprocess_exec(
                *self._command, env=environment(self._folder, os.environ)
            )
        except OSError as error:
            raise BadInput(
                "X0-SVD-003", f"can't run {self._command[0]}: {error.strerror}"
            ) from None
        self._watch = asyncio.get_running_loop().create_task(self._wait(self._child))

    async def _wait(self, child: asyncio.subprocess.Process) -> None:
        status = await child.wait()
        self.status = status if status >= 0 else 128 - status
        self._ended.set()

    async def _end(self) -> None:
        child, self._child = self._child, None
        if self._watch is not None:
            self._watch.cancel()  # It is ended on purpose: that is not its own end.
        if child is None or child.returncode is not None:
            return
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), END_S)
        except TimeoutError:
            child.kill()
            await child.wait()


def environment(folder: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Where the files of `Process` are, beside what is in the environment already."""
    return {
        **base,
        "X0_SVID_DIR": str(folder),
        "X0_SVID_CHAIN": str(folder / CHAIN),
        "X0_SVID_KEY": str(folder / KEY),
        "X0_SVID_BUNDLE": str(folder / BUNDLE),
    }


async def run(wanted: Wanted, process: Process) -> int:
    """Keep a process under an identity until it ends; its exit status.

    Raises:
        X0Error: no identity came within the time, it was lost, or the process can't be started.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, process.forward, number)
    following = loop.create_task(follow(wanted, process.act, process.say))
    ending = loop.create_task(process.ended())
    try:
        await asyncio.wait((following, ending), return_when=asyncio.FIRST_COMPLETED)
        if not following.done():
            return ending.result()
        following.result()
        raise AssertionError("following an identity never ends by itself")
    finally:
        for task in (following, ending):
            task.cancel()
        await asyncio.gather(following, ending, return_exceptions=True)
        await process.close()


def told_by(signal_name: str, pid: int, pid_file: str, command: Sequence[str]) -> Told:
    """What the options of `x0 svid write` say.

    Raises:
        BadInput: no such signal, or a signal for nobody.
    """
    number = signal_number(signal_name) if signal_name else 0
    if bool(number) != bool(pid or pid_file):
        raise BadInput(
            "X0-SVD-004", "a signal needs somebody, and somebody a signal",
            "give --signal together with --pid or --pid-file",
        )  # fmt: skip
    return Told(number, pid, pid_file, tuple(command))


def signal_number(name: str) -> int:
    """`HUP`, `SIGHUP` or `1`.

    Raises:
        BadInput: no such signal.
    """
    try:
        if name.isdigit():
            return int(signal.Signals(int(name)))
        upper = name.upper()
        return int(signal.Signals[upper if upper.startswith("SIG") else f"SIG{upper}"])
    except (KeyError, ValueError):
        raise BadInput("X0-SVD-005", f"no signal {name!r}", "for example HUP or USR1") from None


def owner(text: str) -> tuple[int, int]:
    """`user`, `user:group` or `:group`, as names or numbers; -1 for what is not said.

    Raises:
        BadInput: nobody of that name.
    """
    import grp
    import pwd

    user, _, group = text.partition(":")
    try:
        uid = -1 if not user else int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        gid = -1 if not group else int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        uid = gid = _IDS_MAX
    if max(uid, gid) >= _IDS_MAX:
        raise BadInput("X0-SVD-006", f"no owner {text!r} here", "user, user:group or :group")
    return uid, gid
