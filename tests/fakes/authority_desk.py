"""An authority's machine on a desk: asked, ticked and committed by hand, on its own clock."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

from tests.fakes.authority_keys import FakeKeys, point, sign
from x0tta6bl4.core.authority.desk import AuthorityConfig
from x0tta6bl4.core.authority.life import genesis
from x0tta6bl4.core.authority.machine import Authority
from x0tta6bl4.core.authority.rows import (
    Answer,
    Asked,
    Caller,
    Change,
    Leading,
    NotPersisted,
    Persist,
    Persisted,
    Refusal,
    Row,
)
from x0tta6bl4.core.machine import SECOND, ClockSet, Effect, Instant, Tick
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.ids import NodeName, trust_domain
from x0tta6bl4.wire.token import Token, read_token

START_US = 1_790_000_000 * SECOND
OPERATOR = Caller(operator=True)


class AuthorityDesk:
    """Drives one machine; `changes` are all that were committed."""

    def __init__(self, config: AuthorityConfig | None = None, seed: str = "authority") -> None:
        self.config = config or AuthorityConfig(authorities=("127.0.0.1:7000",))
        self.keys = FakeKeys(seed)
        self.now = Instant(1_000 * SECOND)
        self.skew_us = START_US - self.now
        rows = genesis(trust_domain("example.org"), "main", self.unix_us, self.keys, self.config)
        self.changes: list[Change] = []
        self.facts: list[Effect] = []
        self.restart(rows)

    def restart(self, rows: tuple[Row, ...]) -> None:
        """A new machine from these rows."""
        self.rows = rows
        self.machine = Authority(rows, self.keys, self.config)
        self.machine.handle(self.now, ClockSet(self.unix_us))
        self.machine.handle(self.now, Leading(True))
        self.tick()

    @property
    def unix_us(self) -> int:
        return self.now + self.skew_us

    @property
    def unix_s(self) -> int:
        return self.unix_us // SECOND

    # -------------------------------------------------------------- time
    def tick(self) -> list[Effect]:
        return self._take(self.machine.handle(self.now, Tick()))

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, waking the machine whenever it wants to be."""
        end = Instant(self.now + round(seconds * SECOND))
        told: list[Effect] = []
        while self.machine.deadline <= end:
            self.now = max(self.now, self.machine.deadline)
            told += self.tick()
            assert self.machine.deadline > self.now
        self.now = end
        return told

    # -------------------------------------------------------------- requests
    def ask(self, method: str, request: Any = None, caller: Caller = OPERATOR) -> Any:
        """Ask and commit; the answer, or the Refusal."""
        effects = self.machine.handle(
            self.now, Asked(7, caller, method, request or words.Nothing())
        )
        answers = [e for e in effects if type(e) in (Answer, Refusal)]
        assert len(answers) == 1, effects
        self._take(effects)
        self.tick()
        answer: Any = answers[0]
        return answer.value if type(answer) is Answer else answer

    def lose(self, method: str, request: Any, caller: Caller = OPERATOR) -> None:
        """Ask, and let the disk refuse."""
        self.machine.handle(self.now, Asked(8, caller, method, request))
        if self.machine.deadline <= self.now:
            self.machine.handle(self.now, Tick())
        self.machine.handle(self.now, NotPersisted("X0-STO-005"))

    def _take(self, effects: tuple[Effect, ...]) -> list[Effect]:
        changes = [c for e in effects if type(e) is Persist for c in e.changes]
        self.changes += changes
        if changes:
            self.machine.handle(self.now, Persisted())
        told = [e for e in effects if type(e) not in (Persist, Answer, Refusal)]
        self.facts += told
        return told

    # -------------------------------------------------------------- a node's part
    def token(self, node: str = "", **options: Any) -> Token:
        made = self.ask("TokenCreate", words.TokenCreate(node=node, **options))
        return read_token(made.token)

    def enrol(self, node: str, token: Token | None = None, key: bytes | None = None) -> Any:
        token = token or self.token(node)
        private = key or node.encode()
        request = words.EnrolRequest(
            token=token.id, secret=token.secret, node=node, key=point(private),
            csr=f"csr {node}".encode(), proof=b"", unix_us=self.unix_us,
        )  # fmt: skip
        return self.ask("Enrol", _proven(request, private), Caller())

    def attest(self, node: str, key: bytes | None = None, nonce: bytes = b"nonce") -> Any:
        private = key or node.encode()
        request = words.AttestRequest(node=node, csr=b"csr x", proof=b"", unix_us=self.unix_us)
        proof = sign(private, words.attest_signed_part(b"nonce", request))
        request = words.AttestRequest(node=node, csr=b"csr x", proof=proof, unix_us=self.unix_us)
        return self.ask("Attest", request, Caller(nonce=nonce))

    def issue(self, node: str, *keys: str, not_before_unix_s: int | None = None) -> Any:
        """What `node` gets for these entries ('' is itself)."""
        wanted = tuple(words.Wanted(entry=key, csr=b"csr y") for key in keys)
        caller = self.node(node, not_before_unix_s)
        return self.ask("Issue", words.IssueRequest(wanted, self.unix_us), caller)

    def node(self, name: str, not_before_unix_s: int | None = None) -> Caller:
        start = self.unix_s if not_before_unix_s is None else not_before_unix_s
        return Caller(node=NodeName(name), not_before_unix_s=start)

    def act(self, draw: Random) -> None:
        """Some time passes, and an operator or a node does something, be it possible or not."""
        self.wait(draw.choice((0, 1, 20, 500, 3000)))
        web = "spiffe://example.org/web"
        node = draw.choice(("alpha", "beta", "gamma"))
        entry = draw.choice(sorted(self.machine.state.entries) or ["none"])
        match draw.randrange(9):
            case 0:
                self.enrol(node, self.token(""))
            case 1:
                self.entry(node, draw.choice(("web", "db")))
            case 2:
                self.issue(node, "", entry)
            case 3:
                self.ask("Revoke", words.Revoke(web, ban=draw.random() < 0.5))
            case 4:
                self.ask("Unban", words.Key(web))
            case 5:
                self.ask("NodeEvict", words.NodeEvict(node))
            case 6:
                self.ask("EntryDelete", words.Key(entry))
            case 7:
                self.ask("NodeDelete", words.Key(node))
            case _:
                self.attest(node)

    def entry(self, node: str, id: str = "web", **options: Any) -> Any:
        entry = words.Entry(
            id=f"spiffe://example.org/{id}", node=node,
            selectors=options.pop("selectors", ("unix:uid:1000",)), **options,
        )  # fmt: skip
        return self.ask("EntryCreate", entry)


def _proven(request: words.EnrolRequest, private: bytes) -> words.EnrolRequest:
    proof = sign(private, words.enrol_signed_part(request))
    return words.EnrolRequest(
        token=request.token, secret=request.secret, node=request.node, key=request.key,
        csr=request.csr, proof=proof, unix_us=request.unix_us,
    )  # fmt: skip


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
