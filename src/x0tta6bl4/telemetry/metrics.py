"""`/metrics`: plain ints of the rooms, as Prometheus text.

Nothing is bound to the hot path: the rooms count in ints, and a scrape reads them here.  The
endpoint is on loopback only, and answers GET /metrics and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from x0tta6bl4.telemetry.catalogue import BY_NAME, PREFIX, SERIES_MAX
from x0tta6bl4.wire.admin import Status
from x0tta6bl4.wire.authority import Health

if TYPE_CHECKING:  # It brings an HTTP server along: imported when somebody asks for metrics.
    from prometheus_client.metrics_core import Metric

OTHER: Final = "other"
REQUEST_BYTES_MAX: Final = 8192
REQUEST_S: Final = 5.0
CONNECTIONS_MAX: Final = 16
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
STATES: Final = ("starting", "ready", "draining", "alone")

Sums = Mapping[str, int]


class HasStatistics(Protocol):
    """What counts."""

    def statistics(self) -> dict[str, int]:
        """Sums by `name|label|label`."""
        ...


class Collector:
    """A prometheus_client collector over a function that reads plain ints.

    Args:
        read: sums by `name|label|label`, see `catalogue`.
    """

    def __init__(self, read: Callable[[], Sums]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """One family per declared metric that has a value."""
        families: dict[str, dict[tuple[str, ...], float]] = {}
        undeclared = 0
        for key, value in self._read().items():
            name, *labels = key.split("|")
            declared = BY_NAME.get(name)
            if declared is None or len(labels) != len(declared.labels):
                undeclared += 1
                continue
            series = families.setdefault(name, {})
            at = tuple(labels)
            if at not in series and len(series) >= SERIES_MAX:
                at = (OTHER,) * len(labels)
            series[at] = series.get(at, 0.0) + value / declared.per
        if "undeclared" not in families:
            families["undeclared"] = {(): float(undeclared)}
        for name, series in families.items():
            yield _family(name, series)


def render(status: Status) -> str:
    """Prometheus text of a node."""
    return text_of(node_sums(status))


def text_of(sums: Sums) -> str:
    """Prometheus text of sums."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(lambda: sums))
    return generate_latest(registry).decode()


def node_sums(status: Status) -> dict[str, int]:
    """All sums of a node: its counters, and what its status says in other words."""
    sums = dict(status.counters)
    for link in status.links:
        up = link.state in ("up", "suspected")
        sums[f"link_up|{link.node}"] = int(up)
        sums[f"link_suspected|{link.node}"] = int(link.state == "suspected")
        if up:
            sums[f"link_rtt_seconds|{link.node}"] = link.rtt_us
            sums[f"link_loss_ratio|{link.node}"] = link.loss_ppm
    for svid in status.svids:
        sums[f"svid_not_after_seconds|{svid.id}"] = svid.not_after_unix_s
    disjoint = sum(len(path.paths) > 1 and path.disjoint for path in status.paths)
    sums |= {
        "records": status.records,
        "members": len(status.members),
        "destinations|disjoint": disjoint,
        "destinations|none": len(status.paths) - disjoint,
        "authority_connected": int(status.authority.connected),
        "authority_age_seconds": status.authority.heard_age_ms,
        "authority_clock_offset_seconds": status.authority.clock_offset_ms,
        f"build_info|{status.version}": 1,
        "up_seconds": status.uptime_ms,
        **{f"state|{state}": int(state == status.state) for state in STATES},
    }
    return sums


def authority_sums(health: Health, statistics: Sums) -> dict[str, int]:
    """All sums of an authority.

    Args:
        health: as its admin API answers.
        statistics: plain sums of its process (`app.authority`); those of other names are left out,
            `health` says the same.
    """
    sums: dict[str, int] = {}
    for key, value in statistics.items():
        name, bar, labels = key.partition("|")
        if name in _OF_AUTHORITY:
            sums[f"authority_{_OF_AUTHORITY[name]}{bar}{labels}"] = int(value)
    sums |= {f"authority_rows|{what}": count for what, count in health.counts.items()}
    sums |= {f"authority_set_sequence|{name}": at for name, at in health.sequences.items()}
    sums["authority_ca_not_after_seconds"] = health.ca_not_after_unix_s
    sums["authority_read_only"] = int(bool(health.read_only))
    sums["authority_heartbeat_seconds"] = health.heartbeat_unix_us
    sums["authority_watchers"] = health.watchers
    sums["authority_leading"] = int(health.leading)
    sums["authority_others"] = len(health.others)
    sums[f"build_info|{health.version}"] = 1
    return sums


_OF_AUTHORITY: Final = {
    "calls": "calls_total",
    "connections": "connections",
    "anonymous": "anonymous",
    "done": "decisions_total|done",
    "refused": "decisions_total|refused",
    "undone": "decisions_total|undone",
    "issued": "issued_total",
    "minted": "minted_total",
    "polls": "polls_total",
    "polls_failed": "polls_failed_total",
    "ocsp_answered": "ocsp_answered_total",
    "bundles_served": "bundles_served_total",
    "behind": "behind",
    "learnt": "learnt_total",
    "superseded": "superseded_total",
    "issue_cpu_us": "issue_cpu_seconds_total",
    "commits": "commits_total|ok",
    "commits_failed": "commits_total|failed",
    "commit_us": "commit_seconds_total",
    "changes": "changes_total",
    "handshakes_refused": "handshakes_refused_total",
}


def agent_counters(machine: HasStatistics) -> dict[str, int]:
    """Sums of an agent's machine (`core.agent`)."""
    return dict(machine.statistics())


class MetricsServer:
    """Serves `/metrics` on loopback, inside a running event loop.

    Args:
        address: `127.0.0.1:port`; port 0 takes a free one.
        text: makes the answer.
    """

    def __init__(self, address: str, text: Callable[[], str]) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._text = text
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen.

        Returns:
            The port.
        Raises:
            OSError: the address is taken.
        """
        self._server = await asyncio.start_server(
            self._serve, self._host, self._port, limit=REQUEST_BYTES_MAX
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS_MAX:
                async with asyncio.timeout(REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # Not somebody who wanted metrics.
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _http("405 Method Not Allowed", "only GET\n", "text/plain")
        if path != b"/metrics":
            return _http("404 Not Found", "there is only /metrics\n", "text/plain")
        body = self._text()
        return _http("200 OK", body, CONTENT_TYPE, send_body=method == b"GET")


def _http(status: str, body: str, kind: str, send_body: bool = True) -> bytes:
    data = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (data if send_body else b"")


def _family(name: str, series: Mapping[tuple[str, ...], float]) -> Metric:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    declared = BY_NAME[name]
    kind = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
    family = kind(PREFIX + name, declared.help, labels=declared.labels)
    for labels, value in _sorted(series.items()):
        family.add_metric(labels, value)
    return family


def _sorted(
    items: Iterable[tuple[tuple[str, ...], float]],
) -> list[tuple[tuple[str, ...], float]]:
    return sorted(items)
