"""`x0 check`: what is wrong with a node, from its status and facts about its host.

Pure functions: one per finding, each with a stable id.  A finding says what it means and what to
do; thresholds stand here and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, final

import msgspec

from x0tta6bl4.wire.admin import Finding, LinkView, Status

CLOCK_ERROR_MS: Final = 30_000
CLOCK_WARNING_MS: Final = 2_000
AUTHORITY_AGE_MS: Final = 120_000
SVID_LIFE_LEFT: Final = 4
"""Warn when less than 1/4 of an SVID's life is left: it should have been renewed at 1/2."""
LOSS_PPM: Final = 50_000
OPEN_FILES_MIN: Final = 8192
KERNEL_MIN: Final = (5, 10)
DISK_FREE_MIN: Final = 64 * 1024 * 1024
FILES_MAX: Final = 256
PUBLIC: Final = (".pid", ".toml", ".log", ".json")
"""Files without secrets; the mode of the directory keeps them from others all the same."""
POST_QUANTUM: Final = ("X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024")
SILENT: Final = "direct_circuits_silent|"
_ORDER: Final = {"error": 0, "warning": 1, "notice": 2}


@final
class FileFact(msgspec.Struct, frozen=True):
    """A file or directory of the node."""

    path: str
    mode: int
    """Permission bits."""
    uid: int


@final
class HostFacts(msgspec.Struct, frozen=True):
    """What a status can't know."""

    uid: int
    open_files_max: int
    kernel: tuple[int, int]
    disk_free_bytes: int
    files: tuple[FileFact, ...] = ()
    """Of the state directory, itself first; at most FILES_MAX."""


def host_facts(state_dir: Path) -> HostFacts:
    """Facts about this process and its host.

    Args:
        state_dir: of the node.
    """
    files: list[FileFact] = []
    with contextlib.suppress(OSError):
        for path in (state_dir, *sorted(state_dir.iterdir())[: FILES_MAX - 1]):
            info = path.lstat()
            files.append(FileFact(str(path), stat.S_IMODE(info.st_mode), info.st_uid))
    free = 0
    with contextlib.suppress(OSError):
        disk = os.statvfs(state_dir)
        free = disk.f_bavail * disk.f_frsize
    return HostFacts(
        uid=os.geteuid(),
        open_files_max=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        kernel=_kernel(os.uname().release),
        disk_free_bytes=free,
        files=tuple(files),
    )


def findings(status: Status, facts: HostFacts) -> tuple[Finding, ...]:
    """All findings, worst first, in a stable order."""
    found = [one for check in CHECKS for one in check(status, facts)]
    return tuple(sorted(found, key=lambda one: (_ORDER[one.level], one.id, one.what)))


Found = Iterator[Finding]


# ------------------------------------------------------------------ clock, authority, identity
def clock(status: Status, _: HostFacts) -> Found:
    """X0-CHK-001."""
    off = status.authority.clock_offset_ms
    if abs(off) >= CLOCK_WARNING_MS:
        level = "error" if abs(off) > CLOCK_ERROR_MS else "warning"
        way = "behind" if off > 0 else "ahead of"
        yield Finding(
            "X0-CHK-001",
            level,
            f"this clock is {abs(off) / 1000:.1f} s {way} the authority's",
            "set it, for example with chrony; above 30 s nothing is renewed",
        )


def authority(status: Status, _: HostFacts) -> Found:
    """X0-CHK-002 and X0-CHK-024."""
    at = status.authority
    why = f" ({at.error})" if at.error else ""
    if at.heard_age_ms > AUTHORITY_AGE_MS:
        yield Finding(
            "X0-CHK-002",
            "error",
            f"the authority was last heard {at.heard_age_ms // 1000} s ago{why}",
            "is it running? connections go on until their SVIDs end",
        )
    elif at.heard_age_ms < 0:
        yield Finding(
            "X0-CHK-002",
            "error",
            f"the authority was never heard{why}",
            "check authority.address, and that it is running",
        )
    elif not at.connected:
        yield Finding(
            "X0-CHK-002",
            "warning",
            f"no connection to the authority{why}",
            "its word still arrives through other nodes, but nothing can be renewed",
        )
    if at.connected and at.away:
        yield Finding(
            "X0-CHK-024",
            "warning",
            f"one of several authorities does not answer: {_some(list(at.away))}",
            "is it running, and reachable from here? the others serve this node",
        )


def svids(status: Status, _: HostFacts) -> Found:
    """X0-CHK-003 and X0-CHK-004."""
    now = status.unix_us // 1_000_000
    for svid in status.svids:
        left, life = svid.not_after_unix_s - now, svid.not_after_unix_s - svid.not_before_unix_s
        if left <= 0:
            yield Finding(
                "X0-CHK-003",
                "error",
                f"the SVID of {svid.id} has ended",
                "see why renewal fails; its connections are closed",
            )
        elif left * SVID_LIFE_LEFT < life:
            yield Finding(
                "X0-CHK-003",
                "warning",
                f"the SVID of {svid.id} ends in {left} s",
                "it should have been renewed; is the authority reachable?",
            )
        if svid.error:
            yield Finding(
                "X0-CHK-004",
                "warning",
                f"renewal of {svid.id} fails: {svid.error}",
                "the SVID in use stays good until its end",
            )


def duplicate(status: Status, _: HostFacts) -> Found:
    """X0-CHK-016."""
    if status.duplicate_name:
        yield Finding(
            "X0-CHK-016",
            "error",
            f"another node writes as {status.node!r}",
            "was its state_dir copied? enrol each host anew, then evict this name",
        )


# ------------------------------------------------------------------ links and paths
def plane(status: Status, _: HostFacts) -> Found:
    """X0-KRN-130 and further: what the kernel's plane finds; X0-KRN-146."""
    yield from status.plane.findings
    silent = [key[len(SILENT) :] for key, n in status.counters.items() if key.startswith(SILENT)]
    if silent:
        yield Finding(
            "X0-KRN-146",
            "warning",
            f"circuits through the kernel are not answered: {_some(sorted(silent))}",
            "they go through proxies; does a packet filter there, or on the way, drop TCP of the"
            " mesh addresses (fd00::/8)? nft list ruleset",
        )


def links(status: Status, _: HostFacts) -> Found:
    """X0-CHK-005, X0-CHK-006, X0-CHK-007 and X0-CHK-019."""
    for link in status.links:
        if link.state in ("down", "connecting"):
            if link.node in status.plane.explained:
                continue
            why = f": {link.reason}" if link.reason else ""
            yield Finding(
                "X0-CHK-005",
                "error",
                f"the link to {link.node} is {link.state}{why}",
                "is it running? are TCP and UDP of the data port and TCP of the control "
                "port open between the two?",
            )
            continue
        yield from _weak(link)


def _weak(link: LinkView) -> Found:
    if link.state == "suspected" or link.loss_ppm >= LOSS_PPM:
        yield Finding(
            "X0-CHK-006",
            "warning",
            f"the link to {link.node} loses {link.loss_ppm / 10_000:.1f} % of its hellos",
            "sessions avoid it; look at the network between the two",
        )
    if not link.udp:
        yield Finding(
            "X0-CHK-007",
            "notice",
            f"UDP to {link.node} is blocked; hellos go by TCP",
            "open UDP on the data port, so that loss is seen sooner",
        )
    if not link.agent_alive:
        yield Finding(
            "X0-CHK-019",
            "warning",
            f"the agent of {link.node} is gone, its proxy goes on",
            "start it again within 2 minutes; after that it gets no new paths",
        )


def paths(status: Status, _: HostFacts) -> Found:
    """X0-CHK-008 and X0-CHK-009."""
    lone = [
        path.node
        for path in status.paths
        if path.paths and (len(path.paths) < 2 or not path.disjoint)
    ]
    cut = [path.node for path in status.paths if not path.paths]
    if lone:
        yield Finding(
            "X0-CHK-008",
            "warning",
            f"no disjoint second path to {_some(lone)}",
            "one failure can cut them off; add a link",
        )
    if cut:
        yield Finding(
            "X0-CHK-009",
            "error",
            f"no path to {_some(cut)}",
            "see which links are down on both sides",
        )


def groups(status: Status, _: HostFacts) -> Found:
    """X0-CHK-010."""
    made = {
        key.partition("|")[2]: count
        for key, count in status.counters.items()
        if key.startswith("handshake_groups_total|")
    }
    weak = {group: count for group, count in made.items() if group not in POST_QUANTUM and count}
    for group, count in sorted(weak.items()):
        yield Finding(
            "X0-CHK-010",
            "error" if status.require_pq else "notice",
            f"{count} handshakes have used {group}, which is not post-quantum",
            "the other end is older: upgrade it; require_pq = true refuses such connections",
        )


# ------------------------------------------------------------------ services and host
def services(status: Status, _: HostFacts) -> Found:
    """X0-CHK-011, X0-CHK-021 and X0-CHK-022."""
    for service in status.services:
        if service.exposed:
            yield Finding(
                "X0-CHK-011",
                "warning",
                f"every local user can connect to {service.id} at {service.address}, past policy",
                "let it listen on a Unix socket that admits the proxy's user alone",
            )
        if service.exposed and service.proxy_header:
            yield Finding(
                "X0-CHK-022",
                "warning",
                f"{service.id} is to get PROXY headers on a port that every local user can reach",
                "a local user can send a header of his own; use a Unix socket",
            )
        if service.name and not service.nodes:
            yield Finding(
                "X0-CHK-021",
                "warning",
                f"{service.name}.mesh is nowhere to be reached",
                "does it listen? has its node an entry for it? see x0 entry list",
            )


def files(_: Status, facts: HostFacts) -> Found:
    """X0-CHK-012 and X0-CHK-013."""
    for file in facts.files:
        if file.mode & 0o077 and not file.path.endswith(PUBLIC):
            yield Finding(
                "X0-CHK-012",
                "error",
                f"{file.path} has mode {file.mode:04o}",
                f"chmod go= {file.path}",
            )
        if file.uid not in (facts.uid, 0):
            yield Finding(
                "X0-CHK-013",
                "error",
                f"{file.path} belongs to uid {file.uid}",
                f"chown it to uid {facts.uid}, or remove it",
            )


def host(_: Status, facts: HostFacts) -> Found:
    """X0-CHK-014, X0-CHK-015 and X0-CHK-018."""
    if facts.open_files_max < OPEN_FILES_MIN:
        yield Finding(
            "X0-CHK-014",
            "warning",
            f"at most {facts.open_files_max} open files",
            f"raise it: LimitNOFILE=65536 in the unit, or ulimit -n {OPEN_FILES_MIN}",
        )
    if facts.kernel < KERNEL_MIN:
        release = ".".join(map(str, facts.kernel))
        yield Finding(
            "X0-CHK-015",
            "warning",
            f"Linux {release} is older than 5.10",
            "callers can't be told apart safely there; upgrade",
        )
    if facts.disk_free_bytes < DISK_FREE_MIN:
        yield Finding(
            "X0-CHK-018",
            "error",
            f"{facts.disk_free_bytes // 2**20} MiB are free on the disk of state_dir",
            "free some: a new SVID could not be kept",
        )


def state(status: Status, _: HostFacts) -> Found:
    """X0-CHK-017 and X0-CHK-023."""
    if status.state == "alone":
        yield Finding(
            "X0-CHK-017",
            "error",
            "the agent has no proxy: nothing is carried",
            "look into out.log of the node",
        )
    if status.state == "draining":
        yield Finding(
            "X0-CHK-023",
            "notice",
            "this node is draining",
            "stop it, or start it anew to take traffic again",
        )


CHECKS: Final[tuple[Callable[[Status, HostFacts], Found], ...]] = (
    clock,
    authority,
    svids,
    duplicate,
    links,
    plane,
    paths,
    groups,
    services,
    files,
    host,
    state,
)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _kernel(release: str) -> tuple[int, int]:
    major, _, rest = release.partition(".")
    minor = "".join(c for c in rest.partition(".")[0] if c.isdigit())
    return (int(major), int(minor)) if major.isdigit() and minor else (0, 0)
