"""The proxy's plain counters under the names that `telemetry.catalogue` declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from x0tta6bl4.wire.ids import NodeName

if TYPE_CHECKING:
    from x0tta6bl4.app.proxy import ProxyProcess

SILENT_AFTER: Final = 2
"""Calls in vain over mesh addresses until a node is named."""


def proxy_sums(proxy: ProxyProcess) -> dict[str, int]:
    """All sums of a proxy since its start, for `messages.Counters`."""
    endpoint = proxy.endpoint
    s, hops, hellos = endpoint.statistics(), proxy.hops.statistics(), proxy.hellos.statistics()
    local = proxy.ingress.statistics()
    clients = sum(session.client for session in endpoint.sessions.values())
    sums = {
        "sessions|client": clients,
        "sessions|server": s.sessions - clients,
        "streams": s.streams,
        "circuits": s.circuits,
        "circuits_closed_total|lost": s.circuits_lost,
        "circuits_closed_total|refused": s.circuits_refused,
        "session_moves_total": s.moves,
        "proxy_ticks_late_total": s.ticks_late,
        "circuits_opened_total|client": s.circuits_dialled,
        "circuits_opened_total|server": s.circuits_accepted,
        "resent_bytes_total": s.resent_bytes,
        "hops|relay": hops.relays,
        "hops|circuit": hops.circuits,
        "hops|channel": hops.channels,
        "hops_total|relay": hops.relayed,
        "hops_total|enrol": hops.enrols,
        "relayed_bytes_total": hops.bytes_relayed,
        "hop_setups_refused_total|refused": hops.refused,
        "hop_setups_refused_total|hostile": hops.hostile,
        "dial_backs_total": hops.asked,
        "direct_circuits_total|dialled": proxy.hops.direct.dialled,
        "direct_circuits_total|accepted": proxy.hops.direct.accepted,
        "direct_circuits_total|stranger": proxy.hops.direct.strangers,
        "hellos_total|sent|udp": hellos.sent_udp,
        "hellos_total|sent|channel": hellos.sent_channel,
        "hellos_total|received|udp": hellos.received_udp,
        "hellos_total|received|channel": hellos.received_channel,
        "hellos_refused_total|foreign": hellos.foreign,
        "hellos_refused_total|forged": hellos.forged,
        "refused_total|caller|no entry": local.strangers,
        "refused_total|greeting|rejected": local.rejected,
        "proxy_snapshot_version": endpoint.proxy.snapshot.version,
    }
    for node, count in proxy.hops.direct.silent.items():
        if count >= SILENT_AFTER:
            sums[f"direct_circuits_silent|{node}"] = count
    for reason, count in endpoint.closings.items():
        sums[f"circuits_closed_total|{reason}"] = count
    for (side, outcome), count in proxy.outcomes.items():
        sums[f"requests_total|{side}|{outcome}"] = count
    for (side, direction), count in proxy.carried.items():
        sums[f"stream_bytes_total|{side}|{direction}"] = count
    for (result, group), count in proxy.contexts.handshakes.items():
        key = f"handshakes_total|circuit|{result}"
        sums[key] = sums.get(key, 0) + count
        if group:
            sums[f"handshake_groups_total|{group}"] = count
    for link in endpoint.proxy.links.statistics():
        sums[f"link_downs_total|{link.node}"] = link.downs
        if link.state in ("up", "suspected"):
            sums[f"link_udp|{link.node}"] = int(not proxy.hellos.deaf(NodeName(link.node)))
    if proxy.access is not None:
        sums["access_log_lines_total|written"] = proxy.access.lines
        sums["access_log_lines_total|dropped"] = proxy.access.dropped
    return sums
