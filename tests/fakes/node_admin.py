"""A node that answers commands without being one."""

from __future__ import annotations

import msgspec

from x0tta6bl4.wire.admin import (
    AuthorityView,
    CheckAnswer,
    Drain,
    EventView,
    Explain,
    ExplainDenied,
    Explanation,
    Finding,
    Fine,
    GetPath,
    LinkView,
    ListenerView,
    MemberView,
    PathAnswer,
    PathView,
    Renew,
    ServiceView,
    SessionView,
    Status,
    Support,
    SvidView,
    Text,
)
from x0tta6bl4.wire.errors import NotFound

UNIX_S = 1_800_000_000


class FakeNode:
    """Answers at once, and remembers what it was asked."""

    __slots__ = ("_uptime_ms", "asked", "name")

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.asked: list[str] = []
        self._uptime_ms = 1000

    def status(self) -> Status:
        self._uptime_ms += 1
        return a_status(self.name, self._uptime_ms)

    async def path(self, request: GetPath) -> PathAnswer:
        self.asked.append("path")
        if request.target == "nowhere":
            raise NotFound("X0-PTH-001", "no node 'nowhere'", "see x0 status")
        return PathAnswer("a", "c", (("a", "b", "c"),), (32,))

    async def check(self) -> CheckAnswer:
        self.asked.append("check")
        return CheckAnswer((Finding("X0-CHK-001", "error", "the clock is off", "set it"),))

    async def metrics(self) -> Text:
        self.asked.append("metrics")
        return Text("x0_sessions 1\n")

    async def support(self) -> Support:
        self.asked.append("support")
        return Support({"status.json": "{}"})

    async def explain(self, request: Explain) -> Explanation:
        self.asked.append("explain")
        return Explanation(True, "allowed by name", request.source, request.target, "web")

    async def explain_denied(self, request: ExplainDenied) -> CheckAnswer:
        self.asked.append("explain_denied")
        what = f"no entry gives {request.id}"
        return CheckAnswer((Finding("X0-DEN-004", "error", what, "make one"),))

    async def renew(self, request: Renew) -> Fine:
        self.asked.append("renew")
        return Fine("2 renewed")

    async def drain(self, request: Drain) -> Fine:
        self.asked.append("drain")
        return Fine()

    async def stop(self) -> Fine:
        self.asked.append("stop")
        return Fine()


def a_status(node: str = "a", uptime_ms: int = 1000, **changes: object) -> Status:
    """A healthy node of six, with something in every field."""
    others = tuple(name for name in "abcdef" if name != node)
    status = Status(
        node=node,
        trust_domain="example.org",
        version="0.1.0",
        state="ready",
        unix_us=UNIX_S * 1_000_000,
        uptime_ms=uptime_ms,
        agent_pid=100,
        proxy_pid=101,
        data_address="0.0.0.0:7100",
        control_address="0.0.0.0:7101",
        metrics_address="127.0.0.1:9100",
        authority=AuthorityView("192.0.2.1:7000", True, (), 4000, 3, 17),
        links=(
            LinkView(others[0], "up", 412, 0),
            LinkView(others[4], "suspected", 1804, 21_000),
        ),
        members=tuple(
            MemberView(name, UNIX_S, 2, expires_unix_s=UNIX_S + 3000) for name in "abcdef"
        ),
        paths=(PathView(others[1], ((node, others[0], others[1]), (node, others[4], others[1]))),),
        services=(
            ServiceView("web", "spiffe://example.org/web", nodes=("c", "d")),
            ServiceView("", "spiffe://example.org/client", "127.0.0.1:8080", (node,)),
        ),
        listeners=(ListenerView("127.0.0.1:1080", "socks5"),),
        sessions=(
            SessionView(
                "spiffe://example.org/client",
                "spiffe://example.org/web",
                "c",
                ("a", "b", "c"),
                ("a", "f", "c"),
                32,
                "active",
                requests=1000,
                bytes_out=100_000,
                bytes_in=1_000_000_000,
                resent_bytes=512,
                moves=1,
            ),
        ),
        sessions_total=1,
        svids=(
            SvidView("spiffe://example.org/node/a", "1f", UNIX_S - 600, UNIX_S + 3000, 2),
            SvidView("spiffe://example.org/client", "20", UNIX_S - 600, UNIX_S + 3000),
        ),
        events=(EventView(UNIX_S * 1_000_000, "link", f"link to {others[4]} suspected"),),
        counters={"requests_total|client|ok": 1000},
        records=12,
    )
    return msgspec.structs.replace(status, **changes)
