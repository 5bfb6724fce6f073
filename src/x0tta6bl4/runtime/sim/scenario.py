"""Transcripts: commands and expected answers in a text file, in the manner of etcd/raft.

    # A comment.
    link a b latency=2ms
    start
    run 1s
    ----
    0.006 a: link b up

A block is some commands, one a line, then `----`, then what they answer, up to an empty line.
Playing a file gives the same file with the answers of now: read the diff.

    link A B [latency=T] [jitter=T] [loss=PPM]    lay wires (hosts appear as they are named)
    start [HOST ...]                              start proxy and agent of these, or of all
    run T                                         let time pass; answers with what was told
    fault KIND TARGET ... [NUMBER]                begin a fault (kinds: see `faults`)
    mend KIND TARGET ...                          end it
    open A B BYTES                                A's workload sends BYTES to B's, and gets as many
    show links                                    each host's links as its proxy holds them
    show paths A B                                paths from A to B by A's map
    show streams                                  what was opened, and how it ended
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from x0tta6bl4.core.machine import MS, SECOND, Effect, Effects, Event, Send
from x0tta6bl4.core.session import facts
from x0tta6bl4.runtime.sim.faults import KINDS
from x0tta6bl4.runtime.sim.fleet import Fleet
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.network import Shape
from x0tta6bl4.runtime.sim.plan import FOREVER, Fault, Undo
from x0tta6bl4.runtime.sim.traffic import Traffic
from x0tta6bl4.runtime.sim.world import Clock, Process, World, shown
from x0tta6bl4.wire.errors import BadInput
from x0tta6bl4.wire.messages import LinkState

_RULE: Final = "----"


class Scenario:
    """One transcript being played."""

    def __init__(self) -> None:
        self.world = World("scenario")
        self.mesh = Mesh(self.world)
        self.world.observe(self._observe)
        self._fleet: Fleet | None = None
        self._traffic: Traffic | None = None
        self._told: list[str] = []
        self._undo: dict[tuple[str, tuple[str, ...]], Undo] = {}
        self._commands: dict[str, Callable[[list[str]], list[str]]] = {
            "link": self._link,
            "start": self._start,
            "run": self._run,
            "fault": self._fault,
            "mend": self._mend,
            "open": self._open,
            "show": self._show,
        }

    def perform(self, line: str) -> list[str]:
        """Carry one command out.

        Raises:
            BadInput: no such command, or its words make no sense.
        """
        word, *rest = line.split()
        command = self._commands.get(word)
        if command is None:
            raise BadInput("X0-SIM-001", f"no command {word!r}", f"one of {sorted(self._commands)}")
        try:
            return command(rest)
        except (IndexError, KeyError, ValueError) as error:
            raise BadInput("X0-SIM-002", f"{line!r} makes no sense: {error!r}") from None

    def _link(self, words: list[str]) -> list[str]:
        a, b, *settings = words
        shape = Shape()
        for setting in settings:
            name, _, value = setting.partition("=")
            if name == "loss":
                shape.loss_ppm = int(value)
            else:
                setattr(shape, {"latency": "latency_us", "jitter": "jitter_us"}[name], time(value))
        for name in (a, b):
            if name not in self.mesh.hosts:
                self.mesh.host(name, Clock(SECOND))
        self.mesh.link(a, b, shape)
        return []

    @property
    def fleet(self) -> Fleet:
        """The mesh with its processes; wires are laid before the first use of it."""
        if self._fleet is None:
            self._fleet = Fleet(self.world, self.mesh, sorted(self.mesh.hosts)[:1])
        return self._fleet

    def _start(self, words: list[str]) -> list[str]:
        self.fleet.start(words or None)
        return []

    def _observe(self, process: Process, event: Event, effects: Effects) -> None:
        name = process.name.partition("/")[0]
        for effect in effects:
            said = _said(effect)
            if said:
                self._told.append(f"{shown(self.world.now)} {name}: {said}")

    def _run(self, words: list[str]) -> list[str]:
        self.world.run(self.world.now + time(words[0]))
        told, self._told = self._told, []
        return told

    def _fault(self, words: list[str]) -> list[str]:
        kind, *rest = words
        number = int(rest.pop()) if rest[-1].lstrip("-").isdigit() else 0
        fault = Fault(kind, self.world.now, FOREVER, tuple(rest), number)
        self._undo[kind, fault.target] = KINDS[kind](self.fleet, fault)
        return []

    def _mend(self, words: list[str]) -> list[str]:
        self._undo.pop((words[0], tuple(words[1:])))()
        return []

    def _open(self, words: list[str]) -> list[str]:
        source, target, size = words[0], words[1], int(words[2])
        if self._traffic is None:
            self._traffic = Traffic(self.fleet, SECOND)
        if self._traffic.open(source, target, size, size) is None:
            return [f"refused: {self._traffic.refused}"]
        return []

    def _show(self, words: list[str]) -> list[str]:
        what, *rest = words
        if what == "links":
            return self._show_links()
        if what == "paths":
            paths = self.mesh.hosts[rest[0]].agent.machine.paths(rest[0], rest[1])[0]
            return ["-".join(path) for path in paths] or ["none"]
        if what == "streams":
            calls = self._traffic.calls if self._traffic is not None else []
            return [
                f"{call.name} {call.source} to {call.target}: {call.app.end or 'open'}"
                f"{' ' + call.app.reason if call.app.reason else ''}"
                for call in calls
            ]
        raise ValueError(what)

    def _show_links(self) -> list[str]:
        lines: list[str] = []
        for name, host in sorted(self.mesh.hosts.items()):
            if host.proxy is None:
                lines.append(f"{name}: no proxy")
                continue
            lines += [
                f"{name}: {link.node} {link.state}, {link.rtt_us / MS:.1f} ms,"
                f" {link.loss_ppm} ppm{', gray' if link.gray else ''}"
                f"{'' if link.agent_alive else ', no agent'}"
                for link in host.proxy.machine.links.statistics()
            ]
        return lines


def time(text: str) -> int:
    """Microseconds of `2ms`, `1.5s`, `300us`.

    Raises:
        ValueError: anything else.
    """
    for unit, factor in (("us", 1), ("ms", MS), ("s", SECOND)):
        if text.endswith(unit) and text[: -len(unit)].replace(".", "", 1).isdigit():
            return int(float(text[: -len(unit)]) * factor)
    raise ValueError(f"{text!r} is no time")


def play(text: str) -> str:
    """Play a transcript; the same text if everything is answered as written.

    Raises:
        BadInput: a command makes no sense.
    """
    out: list[str] = []
    scenario = Scenario()
    answers: list[str] = []
    expecting = False
    for line in text.splitlines():
        if expecting:
            if line:
                continue
            expecting = False
            out.append(line)
        elif line == _RULE:
            out += [line, *answers]
            answers = []
            expecting = True
        else:
            out.append(line)
            if line and not line.startswith("#"):
                answers += scenario.perform(line)
    return "\n".join(out) + "\n"


def _said(effect: Effect) -> str:
    """An effect for people; empty where it is of no interest."""
    if type(effect) is Send and type(effect.message) is LinkState:
        state = effect.message
        words = [f"{state.rtt_us / MS:.1f} ms"] if state.rtt_us else []
        words += [f"{state.loss_ppm} ppm"] if state.loss_ppm else []
        words += [word for word, said in (("gray", state.gray), (state.reason, True)) if said]
        words += ["no agent"] if state.state == "up" and not state.agent_alive else []
        return f"link {state.node} {state.state} {', '.join(filter(None, words))}".rstrip()
    if type(effect) is facts.Joined:
        return f"session {effect.session} joined over {'-'.join(effect.path)}, {effect.reason}"
    if type(effect) is facts.SessionEnded:
        return f"session {effect.session} ended: {effect.reason}"
    return ""
