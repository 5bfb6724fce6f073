"""What `x0 status`, `x0 check` and metrics say of the links of a node in kernel mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from x0tta6bl4.app.kernel_links import KernelLink
from x0tta6bl4.edge.kernel.detector import LinkReport
from x0tta6bl4.wire.admin import Finding


def findings(links: Iterable[KernelLink], refused: Mapping[str, str]) -> Iterator[Finding]:
    """Links that are not the kernel's, and why.

    Args:
        links: of the node.
        refused: by neighbour, why its link is not the kernel's.
    """
    for link in links:
        why = refused.get(link.node)
        if link.kept is None and why:
            yield Finding(
                "X0-KRN-141",
                "notice",
                f"the link to {link.node} goes through user space: {why}",
                "the kernel forwards between nodes on one interface that both ask for it",
            )
        elif link.kept is not None and not link.proven:
            yield Finding(
                "X0-KRN-142",
                "warning",
                f"{link.node} does not answer the kernel's hellos",
                "does anything between the two drop UDP of port 8464 over IPv6?",
            )


def counters(link: KernelLink, report: LinkReport, slot: int) -> dict[str, int]:
    """Sums of one link by `name|labels`, see `telemetry.catalogue`.

    Args:
        link: with what was made of it.
        report: what the kernel knows of it.
        slot: of its keys.
    """
    node, judged = link.node, link.judged
    return {
        f"kernel_link_up|{node}": int(judged.up),
        f"kernel_link_gray|{node}": int(judged.gray),
        f"kernel_link_slot|{node}": slot,
        f"kernel_link_rtt_seconds|{node}": int(report.rtt_us),
        f"kernel_hellos_total|{node}|asked": report.asked,
        f"kernel_hellos_total|{node}|answered": report.answers,
        f"kernel_verdicts_total|{node}|suspect": report.suspicions,
        f"kernel_verdicts_total|{node}|down": max(report.downs - 1, 0),
        f"kernel_verdicts_total|{node}|late": report.late,
        f"kernel_packets_total|{node}|sent": report.sent,
        f"kernel_packets_total|{node}|received": report.received,
        f"kernel_packets_total|{node}|lost": judged.lost,
        f"kernel_packets_total|{node}|diverted": report.diverted,
        f"kernel_packets_total|{node}|repaired": report.repaired,
        f"kernel_packets_total|{node}|duplicated": report.duplicated,
        f"kernel_packets_total|{node}|undeliverable": report.undeliverable,
        f"kernel_tcp_segments_total|{node}|sent": report.tcp,
        f"kernel_tcp_segments_total|{node}|retransmitted": report.retransmitted,
    }
