"""What `x0 up` and `x0 status` show: nodes, links, paths, services, sessions, events.

`Screen` turns statuses into something that rich can draw; nothing here asks anybody anything.  It
fits 80 columns, and the rows there are: what does not fit is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from x0tta6bl4.app.checks import POST_QUANTUM
from x0tta6bl4.app.cli.gather import Silent
from x0tta6bl4.wire.admin import EventView, LinkView, SessionView, Status

REFRESH_S: Final = 1.0
LOW_LINES: Final = 24
Source = Callable[[], "Sequence[Status | Silent]"]
_STYLES = {
    "up": "green",
    "ready": "green",
    "suspected": "yellow",
    "draining": "yellow",
    "starting": "yellow",
    "connecting": "yellow",
    "down": "red",
    "alone": "red",
}


@final
class Rate(msgspec.Struct, frozen=True):
    """What moved between two looks."""

    requests: float = 0.0
    bytes: float = 0.0


class Screen:
    """Draws one look after the other, and remembers the last for rates.

    Args:
        footer: lines at the bottom, e.g. how to send a request through.
    """

    def __init__(self, footer: Sequence[str] = ()) -> None:
        self._footer = tuple(footer)
        self._last: dict[tuple[str, ...], tuple[float, int, int]] = {}

    def draw(self, looks: Sequence[Status | Silent], lines: int, now: float) -> RenderableType:
        """Everything, in about `lines` lines.

        Args:
            looks: a status for each node, or why there is none.
            lines: height of the terminal; 0: as long as it takes.
            now: seconds, for rates.
        """
        nodes = [look for look in looks if isinstance(look, Status)]
        silent = [look for look in looks if isinstance(look, Silent)]
        rates = self._rates(nodes, now)
        room = _Room(lines - 1 - len(self._footer) - len(silent)) if lines else _Room(10**6)
        parts: list[RenderableType] = [_head(nodes, rates)]
        parts += [Text(str(one), "red", no_wrap=True, overflow="ellipsis") for one in silent]
        shared = room.take(max(len(nodes), sum(1 for _ in _pairs(nodes))), 0.5, 3)
        parts.append(_side_by_side(_nodes(nodes, shared), _links(nodes, shared)))
        parts.append(_sessions(nodes, rates, room))
        parts.append(_services(nodes, room))
        if len(nodes) == 1:
            parts.append(_paths(nodes[0], room))
            room.left -= 1
            line = f"data plane: {nodes[0].plane.text}"
            parts.append(Text(line, no_wrap=True, overflow="ellipsis"))
            if nodes[0].workload_api:
                room.left -= 1
                line = f"Workload API at {nodes[0].workload_api}"
                parts.append(Text(line, no_wrap=True, overflow="ellipsis"))
        parts.append(_events(nodes, room))
        parts += [Text(line, "bold", no_wrap=True, overflow="ellipsis") for line in self._footer]
        return Group(*parts)

    def _rates(self, nodes: Iterable[Status], now: float) -> dict[tuple[str, ...], Rate]:
        rates: dict[tuple[str, ...], Rate] = {}
        seen: dict[tuple[str, ...], tuple[float, int, int]] = {}
        for node in nodes:
            for session in node.sessions:
                if not _is_client(node, session):
                    continue
                key = _key(node, session)
                total = session.bytes_in + session.bytes_out
                seen[key] = now, session.requests, total
                then, requests, moved = self._last.get(key, (now, session.requests, total))
                passed = now - then
                if passed > 0:
                    rates[key] = Rate(
                        max(0, session.requests - requests) / passed, max(0, total - moved) / passed
                    )
        self._last = seen
        return rates


class _Room:
    """Lines that are left; every table takes its share."""

    def __init__(self, lines: int) -> None:
        self.left = lines

    def take(self, wanted: int, share: float, least: int = 2) -> int:
        """How many rows a table may have; its heading is taken too."""
        rows = max(least, min(wanted, int((self.left - 1) * share)))
        self.left -= rows + 1
        return rows


def live(
    source: Source, footer: Sequence[str] = (), alive: Callable[[], bool] = lambda: True
) -> None:
    """Look and draw once a second until Ctrl-C, or until `alive()` says no."""
    screen, console = Screen(footer), Console()
    with Live(console=console, screen=True, auto_refresh=False) as display:
        try:
            while alive():
                began = time.monotonic()
                display.update(screen.draw(source(), console.height, began), refresh=True)
                time.sleep(max(0.0, began + REFRESH_S - time.monotonic()))
        except KeyboardInterrupt:
            return


def lines(source: Source, alive: Callable[[], bool]) -> None:
    """Print each event once, as it comes, until Ctrl-C or until `alive()` says no."""
    told: set[tuple[str, EventView]] = set()
    while alive():
        began = time.monotonic()
        now = {(n.node, e) for n in source() if isinstance(n, Status) for e in n.events}
        for node, event in sorted(now - told, key=lambda pair: pair[1].unix_us):
            print(f"{_clock(event)} {event.node or node} {event.kind}: {event.text}", flush=True)
        told = now
        time.sleep(max(0.0, began + REFRESH_S - time.monotonic()))


def print_once(looks: Sequence[Status | Silent]) -> None:
    """One look, as long as it takes."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 120))
    console.print(Screen().draw(looks, 0, time.monotonic()))


# ------------------------------------------------------------------ parts
def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", expand=False)
    for column in columns:
        name, _, form = column.partition(":")
        table.add_column(
            name,
            justify="right" if form == "r" else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=len(name),
        )
    return table


def _head(nodes: Sequence[Status], rates: dict[tuple[str, ...], Rate]) -> Text:
    if not nodes:
        return Text("no node answers", "bold red")
    ages = [node.authority.heard_age_ms for node in nodes if node.authority.heard_age_ms >= 0]
    age = f"{max(ages) / 1000:.0f} s ago" if ages else "never"
    requests = sum(rate.requests for rate in rates.values())
    moved = sum(rate.bytes for rate in rates.values())
    return Text.assemble(
        (nodes[0].trust_domain, "bold"),
        f"  {len(nodes)} nodes  authority heard {age}  ",
        (f"{requests:.0f} req/s  {_bytes(moved)}/s", "bold"),
        no_wrap=True,
        overflow="ellipsis",
    )


def _side_by_side(left: RenderableType, right: RenderableType) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0), expand=False)
    grid.add_row(left, right)
    return grid


def _nodes(nodes: Sequence[Status], shared: int) -> Table:
    table = _table("NODE", "STATE", "UP:r", "LINKS:r", "SVID:r")
    rows = _fitting(len(nodes), shared)
    for node in nodes[:rows]:
        up = sum(link.state == "up" for link in node.links)
        own = [svid for svid in node.svids if f"/node/{node.node}" in svid.id] or list(node.svids)
        left = min((svid.not_after_unix_s for svid in own), default=0) - node.unix_us // 10**6
        table.add_row(
            node.node,
            Text(node.state, _STYLES.get(node.state, "")),
            _span(node.uptime_ms / 1000),
            Text(f"{up}/{len(node.links)}", "" if up == len(node.links) else "yellow"),
            _span(left) if own else "-",
        )
    _rest(table, len(nodes) - rows)
    return table


def _links(nodes: Sequence[Status], shared: int) -> Table:
    classical = _classical(nodes)
    table = _table("LINK", "STATE", "RTT:r", "LOSS:r", *(("KEYS",) if classical else ()))
    pairs = list(_pairs(nodes))
    rows = _fitting(len(pairs), shared)
    for one, other, link in pairs[:rows]:
        table.add_row(
            f"{one}-{other}",
            Text(link.state, _STYLES.get(link.state, "")),
            f"{link.rtt_us / 1000:.1f} ms" if link.rtt_us else "-",
            Text(
                f"{link.loss_ppm / 10_000:.1f}%" if link.rtt_us else "-",
                "red" if link.loss_ppm >= 10_000 else "",
            ),
            *((Text(link.group, "" if link.group in POST_QUANTUM else "yellow"),) * classical),
        )
    _rest(table, len(pairs) - rows)
    return table


def _classical(nodes: Sequence[Status]) -> bool:
    """Whether a link's keys come from an exchange that a quantum computer breaks."""
    groups = {link.group for node in nodes for link in node.links}
    return bool(groups - {"", *POST_QUANTUM})


def _pairs(nodes: Sequence[Status]) -> Iterable[tuple[str, str, LinkView]]:
    """Each link once, by the worse of the views that its two ends have."""
    order = {"down": 0, "connecting": 1, "suspected": 2, "up": 3}
    worst: dict[tuple[str, str], LinkView] = {}
    for node in nodes:
        for link in node.links:
            pair = (min(node.node, link.node), max(node.node, link.node))
            had = worst.get(pair)
            if had is None or (order.get(link.state, 3), -link.loss_ppm) < (
                order.get(had.state, 3),
                -had.loss_ppm,
            ):
                worst[pair] = link
    for (one, other), link in sorted(worst.items()):
        yield one, other, link


def _sessions(nodes: Sequence[Status], rates: dict[tuple[str, ...], Rate], room: _Room) -> Table:
    table = _table("SESSION", "PATH", "STANDBY", "STR:r", "REQ/S:r", "B/S:r", "MOVES:r")
    found = [(node, s) for node in nodes for s in node.sessions if _is_client(node, s)]
    none = Rate()
    found.sort(key=lambda pair: -rates.get(_key(*pair), none).bytes)
    rows = _fitting(len(found), room.take(max(1, len(found)), 0.4))
    for node, session in found[:rows]:
        rate = rates.get(_key(node, session), none)
        table.add_row(
            f"{_short(session.source)} > {_short(session.target)}",
            " ".join(session.path),
            " ".join(session.standby) or Text("none", "yellow"),
            str(session.streams),
            f"{rate.requests:.0f}",
            _bytes(rate.bytes),
            str(session.moves),
        )
    if not found:
        table.add_row("no session", "", "", "", "", "", "")
    _rest(table, len(found) - rows)
    return table


def _services(nodes: Sequence[Status], room: _Room) -> Table:
    table = _table("SERVICE", "ID", "AT")
    found: dict[str, tuple[str, set[str]]] = {}
    for node in nodes:
        for service in node.services:
            name, at = found.setdefault(service.id, (service.name, set()))
            at.update(service.nodes)
            found[service.id] = name or service.name, at
    named = [(id, name, at) for id, (name, at) in sorted(found.items()) if name or at]
    rows = _fitting(len(named), room.take(max(1, len(named)), 0.4))
    for id, name, at in named[:rows]:
        table.add_row(
            f"{name}.mesh" if name else "-", id, _some(sorted(at)) or Text("nowhere", "red")
        )
    if not named:
        table.add_row("none", "", "")
    _rest(table, len(named) - rows)
    return table


def _paths(node: Status, room: _Room) -> Table:
    table = _table("TO", "PATH IN USE", "BACKUP")
    rows = _fitting(len(node.paths), room.take(max(1, len(node.paths)), 0.5))
    for path in node.paths[:rows]:
        ways = [" ".join(way) for way in path.paths]
        table.add_row(
            path.node,
            ways[0] if ways else Text("none", "red"),
            ways[1] if len(ways) > 1 else Text("none", "yellow"),
        )
    _rest(table, len(node.paths) - rows)
    return table


def _events(nodes: Sequence[Status], room: _Room) -> Table:
    table = _table("TIME", "NODE", "EVENT")
    events = [(event.unix_us, event.node or node.node, event) for node in nodes
              for event in node.events]  # fmt: skip
    events.sort(key=lambda row: row[0])
    # What a node says again and again is one line, at the time when it said it last.
    said: dict[tuple[str, str], tuple[EventView, int]] = {}
    for _, node, event in events:
        _, times = said.pop((node, event.text), (event, 0))
        said[node, event.text] = event, times + 1
    rows = max(2, min(20, room.left - 1))
    for (node, text), (event, times) in list(said.items())[-rows:]:
        again = f" ({times} times)" if times > 1 else ""
        table.add_row(
            _clock(event), node, Text(text + again, "red" if event.kind == "refused" else "")
        )
    if not events:
        table.add_row("-", "", "nothing has happened")
    return table


def _some(nodes: Sequence[str]) -> str:
    return " ".join(nodes) if len(nodes) <= 4 else " ".join((*nodes[:3], f"+{len(nodes) - 3}"))


def _clock(event: EventView) -> str:
    return time.strftime("%H:%M:%S", time.localtime(event.unix_us / 1e6))


def _fitting(count: int, lines: int) -> int:
    """How many of `count` rows are shown in `lines`; the last line says how many are not."""
    return count if count <= lines else lines - 1


def _rest(table: Table, count: int) -> None:
    if count > 0:
        table.add_row(f"+{count} more")


def _is_client(node: Status, session: SessionView) -> bool:
    """Whether the caller is on this node; the other end tells of the same session."""
    return any(svid.id == session.source for svid in node.svids)


def _key(node: Status, session: SessionView) -> tuple[str, ...]:
    return node.node, session.source, session.target, session.node


def _short(id: str) -> str:
    return id.partition("://")[2].partition("/")[2] or id


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _span(seconds: float) -> str:
    """A duration in its largest unit."""
    if seconds < 0:
        return "ended"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
