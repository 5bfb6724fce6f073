"""Every metric there is: declared once, here.

Rooms count in plain ints under these names without `x0_`, label values after `|` in the order
given here: `requests_total|client|ok`.  What is not declared is not exported, but counted in
`x0_undeclared`; docs/metrics.md is made from this module.
"""

from __future__ import annotations

from typing import Final, Literal, final

import msgspec

Kind = Literal["counter", "gauge"]
PREFIX: Final = "x0_"
SERIES_MAX: Final = 2048
"""Label sets of one metric; those beyond are added up under `other`."""


@final
class Metric(msgspec.Struct, frozen=True):
    """One metric."""

    name: str
    """Without PREFIX; counters end in `_total`, the others in their unit, if they have one."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    room: str = ""
    """Which room counts it."""
    process: str = "node"
    """`node` (agent and proxy, one endpoint) or `authority`."""
    per: int = 1
    """What the room's int is divided by: 1_000_000 where it counts microseconds."""


def _c(
    name: str, room: str, help: str, *labels: str, per: int = 1, process: str = "node"
) -> Metric:
    return Metric(name, "counter", help, labels, room, process, per)


def _g(
    name: str, room: str, help: str, *labels: str, per: int = 1, process: str = "node"
) -> Metric:
    return Metric(name, "gauge", help, labels, room, process, per)


NODE: Final = (
    # --- streams and sessions: what programs see
    _c(
        "requests_total",
        "session",
        "Streams that have ended, one per application connection: ok, or "
        "why they were refused or reset.",
        "side",
        "outcome",
    ),
    _c(
        "stream_bytes_total",
        "session",
        "Application bytes of streams that have ended.",
        "side",
        "direction",
    ),
    _g("streams", "session", "Streams open now."),
    _g("sessions", "session", "Sessions now.", "side"),
    _c("session_moves_total", "session", "Times that a session went over to another circuit."),
    _c("resent_bytes_total", "session", "Bytes sent again on another circuit."),
    # --- circuits
    _g("circuits", "session", "Circuits now, standbys included."),
    _c("circuits_opened_total", "session", "Circuits made.", "side"),
    _c("circuits_closed_total", "session", "Circuits closed, by reason: lost, refused ...", "how"),
    _c("proxy_ticks_late_total", "session", "Ticks that came too late to judge anybody by."),
    _c(
        "handshakes_total",
        "edge/tls",
        "TLS handshakes by where (circuit, link) and result: ok, or the reason of the refusal.",
        "where",
        "result",
    ),
    _c("handshake_groups_total", "edge/tls", "Completed handshakes by key exchange.", "group"),
    # --- who may what
    _c(
        "refused_total",
        "policy",
        "Callers, listeners, hops and frames refused, by what and why.",
        "what",
        "reason",
    ),
    # --- hops and relaying
    _g("hops", "runtime/loop", "Hops now, by kind.", "kind"),
    _c("hops_total", "runtime/loop", "Hops accepted, by kind.", "kind"),
    _c("relayed_bytes_total", "runtime/loop", "Bytes spliced for others."),
    _c(
        "hop_setups_refused_total",
        "runtime/loop",
        "Setup frames refused: with a reason (refused) "
        "or because they were none of ours (hostile).",
        "how",
    ),
    _c("dial_backs_total", "runtime/loop", "Dial-backs asked for."),
    # --- links
    _g("link_up", "links", "1 while a link is up, suspected or not.", "peer"),
    _g(
        "link_udp",
        "runtime/loop",
        "1 while hellos of the peer come by UDP, 0 while only by TCP.",
        "peer",
    ),
    _g("link_suspected", "links", "1 while a link is suspected.", "peer"),
    _g("link_rtt_seconds", "links", "Round-trip time of hellos, smoothed.", "peer", per=1_000_000),
    _g("link_loss_ratio", "links", "Hellos lost, smoothed.", "peer", per=1_000_000),
    _c("link_downs_total", "links", "Times that a link was lost.", "peer"),
    _c(
        "hellos_total",
        "runtime/loop",
        "Hellos by direction and way (udp, channel).",
        "direction",
        "way",
    ),
    _c(
        "hellos_refused_total",
        "runtime/loop",
        "Hellos refused: foreign, forged or replayed.",
        "why",
    ),
    _c(
        "link_connections_total",
        "runtime/aio",
        "Connections of agents, by what became of them.",
        "what",
    ),
    # --- the kernel's data plane, where it is in force
    _g("kernel_link_up", "edge/kernel", "1 while the kernel forwards over a link.", "peer"),
    _g(
        "kernel_link_rtt_seconds",
        "edge/kernel",
        "Round-trip time of the kernel's hellos, smoothed.",
        "peer",
        per=1_000_000,
    ),
    _g(
        "kernel_link_gray",
        "edge/kernel",
        "1 while a link loses too much to be trusted: its cost counts four times.",
        "peer",
    ),
    _g("kernel_link_slot", "edge/kernel", "Key slot in use; it turns with each new key.", "peer"),
    _c("kernel_hellos_total", "edge/kernel", "Hellos asked, and answered.", "peer", "what"),
    _c(
        "kernel_verdicts_total",
        "edge/kernel",
        "Verdicts on a link: suspect, down, or late, which were not given because the fault may "
        "have been ours.",
        "peer",
        "what",
    ),
    _c(
        "kernel_packets_total",
        "edge/kernel",
        "Data packets of a link: sent, received, lost (as both ends count), diverted from it while "
        "it is dead, duplicated while it is suspect, repaired (of these two, by a source route), "
        "undeliverable for want of an alternate.",
        "peer",
        "what",
    ),
    _c(
        "kernel_tcp_segments_total",
        "edge/kernel",
        "TCP segments with data on a link: sent, and sent again.",
        "peer",
        "what",
    ),
    _c(
        "kernel_dropped_total",
        "edge/kernel",
        "Packets and hellos that were dropped, and data without an alternate, by reason.",
        "reason",
    ),
    _c(
        "direct_circuits_total",
        "runtime/loop",
        "Circuits over mesh addresses: dialled, accepted, or from strangers and refused.",
        "how",
    ),
    _g(
        "direct_circuits_silent",
        "runtime/loop",
        "Calls in vain, one after the other, over mesh addresses; only nodes with two or more.",
        "node",
    ),
    # --- records and routes
    _g("records", "records", "Records held."),
    _g("records_bytes", "records", "Bytes of records held."),
    _c("records_accepted_total", "records", "Records taken in."),
    _c("records_refused_total", "records", "Records refused: forged, stale, oversized, over rate."),
    _c("records_verified_total", "records", "Signatures verified."),
    _g("members", "routing", "Nodes in the map."),
    _g(
        "destinations",
        "routing",
        "Nodes to which there is a path, by whether a backup shares nothing with it.",
        "backup",
    ),
    # --- identity
    _g("svid_not_after_seconds", "identity", "End of each SVID, seconds since 1970.", "id"),
    _c("svid_renewals_total", "identity", "SVIDs renewed."),
    _c("svid_renewal_failures_total", "identity", "Renewals that failed."),
    # --- Workload API
    _g("workload_api_connections", "edge/workload_api", "Connections of workloads now."),
    _g("workload_api_calls", "edge/workload_api", "Calls open now, streams among them."),
    _c(
        "workload_api_calls_total",
        "edge/workload_api",
        "Calls that have ended, by method and gRPC status.",
        "method",
        "code",
    ),
    _c("workload_api_pushes_total", "edge/workload_api", "Messages of streams.", "method"),
    _c(
        "workload_api_refused_total",
        "edge/workload_api",
        "Connections and callers refused: attestation failed, or a bound was met.",
        "reason",
    ),
    # --- authority, as the node sees it
    _g("authority_connected", "app", "1 while there is a connection to the authority."),
    _g(
        "authority_age_seconds",
        "app",
        "Age of its newest signed heartbeat; -1: none yet.",
        per=1000,
    ),
    _g("authority_clock_offset_seconds", "app", "Its clock minus this one's.", per=1000),
    # --- processes
    _g("build_info", "app", "1; the version is a label.", "version"),
    _g("up_seconds", "app", "Time since the agent has started.", per=1000),
    _g("state", "app", "1 for the state that the node is in.", "state"),
    _g("proxy_snapshot_version", "agent", "Version of the snapshot that the proxy holds."),
    _c(
        "access_log_lines_total",
        "telemetry",
        "Lines of the access log, by whether they were written or dropped.",
        "what",
    ),
    _g("undeclared", "telemetry", "Counters that this catalogue does not know: a bug."),
)

AUTHORITY: Final = (
    _c(
        "authority_calls_total",
        "edge/authority_api",
        "Calls by method and result.",
        "method",
        "result",
        process="authority",
    ),
    _g("authority_connections", "edge/authority_api", "Nodes connected now.", process="authority"),
    _g(
        "authority_anonymous",
        "edge/authority_api",
        "Connections without an SVID now.",
        process="authority",
    ),
    _c(
        "authority_decisions_total",
        "authority",
        "Requests by what became of them.",
        "what",
        process="authority",
    ),
    _g(
        "authority_rows",
        "authority",
        "What is registered: entries, names, rules, nodes, tokens, revocations, bans, SVIDs alive.",
        "what",
        process="authority",
    ),
    _g(
        "authority_set_sequence",
        "authority",
        "Sequence of each signed set.",
        "set",
        process="authority",
    ),
    _g(
        "authority_ca_not_after_seconds",
        "authority",
        "End of the active CA, seconds since 1970.",
        process="authority",
    ),
    _g(
        "authority_read_only",
        "edge/store",
        "1 while nothing can be written (full disk).",
        process="authority",
    ),
    _g(
        "authority_heartbeat_seconds",
        "authority",
        "When the last heartbeat was signed, seconds since 1970.",
        per=1_000_000,
        process="authority",
    ),
    _g(
        "authority_watchers",
        "edge/authority_api",
        "Nodes that are told of changes now.",
        process="authority",
    ),
    _g(
        "authority_leading",
        "edge/store",
        "1 at the one authority of a store that signs heartbeats and moves CAs on.",
        process="authority",
    ),
    _g(
        "authority_others",
        "edge/store",
        "Other authorities that run on the same store.",
        process="authority",
    ),
    _g(
        "authority_behind",
        "edge/store",
        "1 while another authority has changed something that is not known here yet.",
        process="authority",
    ),
    _c(
        "authority_learnt_total",
        "edge/store",
        "Changes taken over from other authorities of the store.",
        process="authority",
    ),
    _c(
        "authority_superseded_total",
        "edge/authority_api",
        "Batches decided anew because another authority was faster.",
        process="authority",
    ),
    _c("authority_issued_total", "edge/authority_api", "SVIDs issued.", process="authority"),
    _c(
        "authority_polls_total",
        "edge/bundle",
        "Polls of bundles of foreign trust domains.",
        process="authority",
    ),
    _c(
        "authority_polls_failed_total",
        "edge/bundle",
        "Polls that failed; the bundle held stays.",
        process="authority",
    ),
    _c(
        "authority_bundles_served_total",
        "edge/bundle",
        "Times that the bundle endpoint gave our bundle.",
        process="authority",
    ),
    _c("authority_ocsp_answered_total", "edge/tls", "OCSP answers signed.", process="authority"),
    _c("authority_minted_total", "edge/authority_api", "JWT-SVIDs signed.", process="authority"),
    _c(
        "authority_issue_cpu_seconds_total",
        "edge/authority_api",
        "CPU spent on issuing.",
        per=1_000_000,
        process="authority",
    ),
    _c(
        "authority_commits_total",
        "edge/store",
        "Transactions, by whether they are on the disk.",
        "result",
        process="authority",
    ),
    _c(
        "authority_commit_seconds_total",
        "edge/store",
        "Time spent on committing.",
        per=1_000_000,
        process="authority",
    ),
    _c("authority_changes_total", "edge/store", "Rows changed.", process="authority"),
    _c(
        "authority_handshakes_refused_total",
        "edge/tls",
        "TLS handshakes refused, by reason.",
        "reason",
        process="authority",
    ),
)

METRICS: Final = NODE + AUTHORITY
BY_NAME: Final = {metric.name: metric for metric in METRICS}
assert len(BY_NAME) == len(METRICS), "a metric is declared twice"
