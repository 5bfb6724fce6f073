"""What `x0 status`, `x0 check` and metrics say of the links of a node in kernel mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, final

from x0tta6bl4.app.kernel_links import KernelLink
from x0tta6bl4.core.machine import Instant
from x0tta6bl4.edge.kernel.detector import LinkReport
from x0tta6bl4.edge.kernel.layout import Reason
from x0tta6bl4.edge.kernel.programs import Programs
from x0tta6bl4.wire.admin import Finding
from x0tta6bl4.wire.errors import X0Error

_FINE: Final = (Reason.HELLO_ANSWERED, Reason.HELLO_ACCEPTED, Reason.FILTER_PASSED)
PASSING: Final = ("X0-KRN-133", "X0-KRN-136", "X0-KRN-145")
PASSING_US: Final = 3_000_000
DEAF_US: Final = 3_000_000
"""A link that is up for its proxies and dead for the kernel so long is told."""


def findings(
    links: Iterable[KernelLink], refused: Mapping[str, str], now: Instant
) -> Iterator[Finding]:
    """Links that are not the kernel's, and why.

    Args:
        links: of the node.
        refused: by neighbour, why its link is not the kernel's.
        now: of the clock of machines.
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
        elif deaf(link, now):
            yield Finding(
                "X0-KRN-142",
                "warning",
                f"{link.node} does not answer the kernel's hellos",
                "does anything between the two drop UDP of port 8464 over IPv6, or come before our"
                " programs? tc filter show dev ... ingress, nft list ruleset (table netdev)",
            )


@final
class Passing:
    """Findings that are settled once they are found; whoever asks soon after hears of them, too."""

    __slots__ = ("_found", "_until")

    def __init__(self) -> None:
        self._found: list[Finding] = []
        self._until = Instant(0)

    def told(self, found: list[Finding], now: Instant) -> tuple[Finding, ...]:
        """What is to be told of what was found now.

        Args:
            found: by this look.
            now: of the clock of machines.
        """
        passing = [one for one in found if one.id in PASSING]
        if passing:
            self._found, self._until = passing, Instant(now + PASSING_US)
        elif now < self._until:
            return (*found, *self._found)
        return tuple(found)


def unpinned(programs: Programs) -> Iterator[Finding]:
    """What others have unpinned is pinned again."""
    try:
        gone = programs.keep()
    except X0Error as error:
        yield Finding(
            "X0-KRN-145",
            "warning",
            f"nothing outlives the agent: {error.what}",
            "data goes on; a restart puts the programs in anew, which takes some seconds",
        )
        return
    if gone:
        yield Finding(
            "X0-KRN-145",
            "notice",
            f"somebody had unpinned {len(gone)} programs and maps; they are pinned again",
            "look for what unmounts the BPF file system, or cleans up in it",
        )


def unwritten(why: str) -> Iterator[Finding]:
    """What was agreed with neighbours is not on the disk, for this reason; empty: it is."""
    if why:
        yield Finding(
            "X0-KRN-151",
            "warning",
            f"links are not written down: {why}",
            "make room; data goes on, and the next agent would have to agree on them anew",
        )


def deaf(link: KernelLink, now: Instant) -> bool:
    """Whether the kernels do not hear each other over a link that works for the proxies."""
    if link.kept is None or link.rests:
        return False
    judged = link.judged
    return not judged.proven or now - judged.apart_since > DEAF_US


def explained(
    links: Iterable[KernelLink], works: Callable[[int], bool], now: Instant
) -> tuple[str, ...]:
    """Neighbours whose link is down for what a finding says.

    Args:
        links: of the node.
        works: whether an interface is as it must be, by number.
        now: of the clock of machines.
    """
    return tuple(
        link.node for link in links if link.kept and (deaf(link, now) or not works(link.kept.index))
    )


def dropped(programs: Programs) -> dict[str, int]:
    """Packets and hellos that were dropped, by reason."""
    return {
        f"kernel_dropped_total|{reason.name.lower()}": count
        for reason, count in programs.counters().items()
        if reason not in _FINE
    }


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
