"""JWT-SVIDs: fetch them, keep them fresh, validate those of others.

Validation is local, against the bundle of the token's own trust domain; the Workload API is not
asked (`WorkloadClient.ask_validity` does).

Source: JWT-SVID.md (SP-043 to SP-055), SPIFFE_Workload_API.md section 6 (SP-118, SP-122).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from x0tta6bl4.core.machine import SECOND, Denied
from x0tta6bl4.edge.bundle.document import Document
from x0tta6bl4.edge.jwt.svid import JwtSvid, judge_token, read_unverified
from x0tta6bl4.edge.tls.judge import Clock
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.identity.follow import Follow
from x0tta6bl4.sdk.identity.source import Source, documents_of
from x0tta6bl4.wire.errors import BadMessage, Refused, X0Error
from x0tta6bl4.wire.ids import TrustDomain, spiffe_id

TOKENS_MAX: Final = 256
"""Kept by one JWTSource; the one that was not asked for longest goes first."""


class Documents(Protocol):
    """What validation needs: a BundleSource or a JWTSource."""

    clock: Clock

    @property
    def documents(self) -> Mapping[TrustDomain, Document]:
        """Keys of JWT-SVIDs by trust domain."""
        ...


async def fetch_jwt_svids(
    audience: str | Sequence[str],
    *,
    id: str | None = None,
    client: WorkloadClient | None = None,
) -> tuple[JwtSvid, ...]:
    """Get JWT-SVIDs of this workload, the default identity first.

    Args:
        audience: whom they are for.
        id: whose; None: of all identities (SP-118).
        client: the Workload API; None: that of SPIFFE_ENDPOINT_SOCKET.
    Raises:
        BadMessage: one of them is not what it should be; none is used.
        X0Error: see `sdk.identity.client`.
    """
    if client is None:
        async with WorkloadClient() as own:
            return await fetch_jwt_svids(audience, id=id, client=own)
    wanted = (audience,) if isinstance(audience, str) else tuple(audience)
    found: list[JwtSvid] = []
    hints: set[str] = set()
    for given_id, token, hint in await client.fetch_tokens(wanted, id):
        svid = read_unverified(token)
        if isinstance(svid, Denied):
            raise _bad(given_id, svid.reason)
        if svid.id != spiffe_id(given_id) or (id is not None and svid.id != spiffe_id(id)):
            raise _bad(given_id, "it is about somebody else")
        if not set(wanted) <= set(svid.audience):
            raise _bad(given_id, "it is for another audience")
        if svid.expires_unix_s * SECOND <= client.clock():
            raise _bad(given_id, "it has expired")
        if hint and hint in hints:
            continue  # SP-115
        hints.add(hint)
        found.append(msgspec.structs.replace(svid, hint=hint))
    return tuple(found)


def validate_jwt(token: str, audience: str, source: Documents, *, leeway_s: int = 0) -> JwtSvid:
    """Validate a token that somebody presents; its `claims` are in the answer.

    Args:
        token: as it came, without `Bearer`.
        audience: who we are; has to be one of the token's own (SP-049).
        source: whose bundles count.
        leeway_s: by how much clocks may differ.
    Raises:
        Refused: with the reason.
    """
    found = judge_token(token, audience, source.documents, source.clock(), leeway_s)
    if isinstance(found, Denied):
        raise Refused("X0-SDK-041", f"token refused: {found.reason}")
    return found


class JWTSource(Source):
    """JWT-SVIDs of this workload, fresh at every call, and the bundles to validate others' by.

    A token is fetched when it is first asked for, and again after half of its life; while that
    fails, one that is valid stays in use.

    Args:
        client: see `Source`.
    """

    def __init__(self, client: WorkloadClient | str | None = None) -> None:
        super().__init__(client)
        self._documents: Mapping[TrustDomain, Document] | None = None
        self._tokens: OrderedDict[tuple[tuple[str, ...], str | None], JwtSvid] = OrderedDict()
        self._fetching = asyncio.Lock()

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        stream = self.client.stream_jwt_bundles
        return [Follow(stream, self._take, self._failed, self._random).run()]

    @property
    def ready(self) -> bool:
        """Whether bundles are there."""
        return self._documents is not None

    @property
    def documents(self) -> Mapping[TrustDomain, Document]:
        """Keys of JWT-SVIDs by trust domain (SP-122)."""
        return self._documents or {}

    async def token(self, audience: str | Sequence[str], *, id: str | None = None) -> JwtSvid:
        """A token that is valid now.

        Args:
            audience: whom it is for.
            id: whose; None: of the default identity.
        Raises:
            X0Error: none is held that is valid, and none could be fetched.
        """
        wanted = (audience,) if isinstance(audience, str) else tuple(audience)
        key = (wanted, id)
        async with self._fetching:
            held = self._tokens.get(key)
            now = self.clock()
            if held is not None and now < _half_life_us(held):
                self._tokens.move_to_end(key)
                return held
            try:
                fresh = (await fetch_jwt_svids(wanted, id=id, client=self.client))[0]
            except Refused:
                self._tokens.pop(key, None)
                raise
            except X0Error:
                if held is not None and now < held.expires_unix_s * SECOND:
                    return held
                self._tokens.pop(key, None)
                raise
            self._tokens[key] = fresh
            if len(self._tokens) > TOKENS_MAX:
                self._tokens.popitem(last=False)
            return fresh

    def validate(self, token: str, audience: str, *, leeway_s: int = 0) -> JwtSvid:
        """See `validate_jwt`."""
        return validate_jwt(token, audience, self, leeway_s=leeway_s)

    def _take(self, given: Mapping[TrustDomain, bytes]) -> None:
        self.error = None
        self._documents = documents_of(given, self.problems)
        self._tell()

    def _forget(self) -> None:
        self._tokens.clear()
        if self._documents is not None:
            self._documents = None
            self._tell()


def _half_life_us(svid: JwtSvid) -> int:
    return (svid.issued_unix_s + svid.expires_unix_s) * SECOND // 2


def _bad(id: str, what: str) -> BadMessage:
    return BadMessage("X0-SDK-040", f"the JWT-SVID of {id[:256]!r} is not used: {what}")
