"""Client of the authority API: for agents over mutual TLS, for operators over the local socket.

Every call has a deadline and raises from `wire.errors` only.  A client is one connection, made at
the first call; when it is lost the call fails with Unavailable and the next one dials again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import h2.exceptions
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.config import Configuration
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from x0tta6bl4.edge.authority_api.codec import Codec, from_grpc
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import Refused, Unavailable, X0Error
from x0tta6bl4.wire.records import Name, Revocation

DEADLINE_S: Final = 10.0
WATCH_SILENCE_S: Final = 100.0
"""A watch is dead after this without an update: three heartbeats of 30 s."""
_WINDOW_BYTES = 4 * 1024 * 1024

R = TypeVar("R")


class _Connection:
    """One lazily dialled gRPC channel and the calls over it."""

    def __init__(self, target: str, tls: Any, service: str, deadline_s: float) -> None:
        self._target = target
        self._service = service
        self._deadline_s = deadline_s
        self._codec = Codec(words.REPLY_BYTES_MAX)
        self._tls = tls
        self._channel: Channel | None = None

    def _open(self) -> Channel:
        if self._channel is None:
            config = Configuration(
                http2_connection_window_size=_WINDOW_BYTES,
                http2_stream_window_size=_WINDOW_BYTES,
                ssl_target_name_override="authority" if self._tls is not None else None,
            )
            if self._target.startswith("unix:"):
                self._channel = Channel(
                    path=self._target[5:], codec=self._codec, ssl=self._tls, config=config
                )
            else:
                host, port = split_address(self._target)
                self._channel = Channel(host, port, codec=self._codec, ssl=self._tls, config=config)
        return self._channel

    async def call(self, method: str, request: Any, reply: type[R]) -> R:
        call = UnaryUnaryMethod(self._open(), f"/{self._service}/{method}", type(request), reply)
        with _errors(self._target):
            async with asyncio.timeout(self._deadline_s):
                answer: R = await call(request, timeout=self._deadline_s)
                return answer

    async def watch(self, request: words.WatchRequest) -> AsyncIterator[words.Update]:
        method = UnaryStreamMethod(
            self._open(), f"/{self._service}/Watch", words.WatchRequest, words.Update
        )
        with _errors(self._target):
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(self._deadline_s):
                    stream = await stack.enter_async_context(method.open())
                    await stream.send_message(request, end=True)
                while True:
                    async with asyncio.timeout(WATCH_SILENCE_S):
                        update = await stream.recv_message()
                    if update is None:
                        return
                    yield update

    def peer(self) -> Any:
        """`ssl_object` of the live connection, for its verdict; None while there is none."""
        protocol = self._channel._protocol if self._channel is not None else None
        if protocol is None:
            return None
        return protocol.connection._transport.get_extra_info("ssl_object")

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class AuthorityClient:
    """A node's connection to the authority.

    Args:
        target: `host:port`, or `unix:/path` (the proxy's `authority.sock`).
        tls: client context of `edge.tls.aio` that judges the peer as an authority; without an SVID
            of its own only Trust, Challenge, Enrol and Attest are answered.
        unix_us: reads the wall clock; both ends compare.
        deadline_s: for each call, dialling included.
    """

    def __init__(
        self, target: str, tls: Any, unix_us: Callable[[], int], deadline_s: float = DEADLINE_S
    ) -> None:
        self._connection = _Connection(target, tls, words.SERVICE, deadline_s)
        self._unix_us = unix_us

    async def __aenter__(self) -> Self:
        """Use as a context: closes at its end."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; a later call dials again."""
        self._connection.close()

    def peer(self) -> Any:
        """`ssl_object` of the live connection (verdict, group, exporter); None without one."""
        return self._connection.peer()

    async def trust(self, held: bytes) -> words.TrustReply:
        """Bundles from the one with this digest to the newest; nothing in it is verified here.

        Raises:
            NotFound: the authority never had, or has forgotten, a bundle with this digest.
            Unavailable: no answer within the deadline.
        """
        reply = await self._connection.call(
            "Trust", words.TrustRequest(held=held), words.TrustReply
        )
        self._compare(reply.unix_us)
        return reply

    async def challenge(self) -> bytes:
        """Nonce for `attest`, bound to this connection.

        Raises:
            Refused: clocks differ by more than 30 s.
            Unavailable: no answer within the deadline.
        """
        request = words.ChallengeRequest(unix_us=self._unix_us())
        reply = await self._connection.call("Challenge", request, words.ChallengeReply)
        self._compare(reply.unix_us)
        return reply.nonce

    async def enrol(self, request: words.EnrolRequest) -> words.Admission:
        """Spend an enrolment token.

        Raises:
            Refused: token unknown, used or expired; clocks differ; node evicted.
            Conflict: the name is taken.
            BadInput: key, CSR or proof is malformed.
            Unavailable: no answer; the token may be spent, then `attest` succeeds.
        """
        return await self._connection.call("Enrol", request, words.Admission)

    async def attest(self, request: words.AttestRequest) -> words.Admission:
        """Come back by possession of the long-lived key; `proof` covers the `challenge` nonce.

        Raises:
            Refused: unknown or evicted node, wrong proof, stale nonce, clocks differ.
            Unavailable: no answer within the deadline.
        """
        return await self._connection.call("Attest", request, words.Admission)

    async def issue(self, wanted: tuple[words.Wanted, ...]) -> tuple[words.Issued, ...]:
        """Fetch at most ISSUE_MAX SVIDs; one answer per request, in order.

        Raises:
            Refused: this node may not ask (evicted, revoked, clocks differ).
            Unavailable: no answer, or the authority can't write; the SVIDs in use stay good.
        """
        request = words.IssueRequest(wanted=wanted, unix_us=self._unix_us())
        reply = await self._connection.call("Issue", request, words.IssueReply)
        self._compare(reply.unix_us)
        return reply.issued

    async def mint(self, entry: str, audience: tuple[str, ...]) -> words.Minted:
        """A JWT-SVID for one of this node's entries; `refused` says why there is none.

        Raises:
            Refused: this node may not ask (evicted, revoked, clocks differ).
            BadInput: no audience, too many, or one too long.
            Unavailable: no answer within the deadline.
        """
        request = words.MintRequest(entry=entry, audience=audience, unix_us=self._unix_us())
        reply = await self._connection.call("Mint", request, words.Minted)
        self._compare(reply.unix_us)
        return reply

    async def watch(self) -> AsyncIterator[words.Update]:
        """Everything for this node: first a full update, then changes as they are committed.

        Ends, or raises Unavailable, when the connection does: the caller watches again.

        Raises:
            Refused: this node may not watch; clocks differ by more than 30 s.
            Unavailable: connection lost, or silent for WATCH_SILENCE_S.
        """
        async for update in self._connection.watch(words.WatchRequest(unix_us=self._unix_us())):
            yield update

    def _compare(self, authority_unix_us: int) -> None:
        ahead_us = self._unix_us() - authority_unix_us
        if abs(ahead_us) > words.CLOCK_SKEW_US_MAX:
            raise Refused(
                "X0-AUT-010",
                f"this clock is {ahead_us / 1e6:+.0f} s off the authority's",
                "set the clock (NTP); at most 30 s are tolerated",
            )


class AdminClient:
    """An operator's connection to the authority on this machine.

    Args:
        path: the admin socket, `<data>/admin.sock`; only its owner and root are let in.
        deadline_s: for each call.
    """

    def __init__(self, path: str, deadline_s: float = DEADLINE_S) -> None:
        self._connection = _Connection(f"unix:{path}", None, words.ADMIN, deadline_s)

    async def __aenter__(self) -> Self:
        """Use as a context: closes at its end."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._connection.close()

    async def call(self, method: str, request: Any) -> Any:
        """Any of `wire.authority.ADMIN_METHODS` by name; the methods below are its typed form.

        Raises:
            BadInput, Refused, Conflict, NotFound: as the authority answered.
            Unavailable: not running, or no answer within the deadline.
        """
        return await self._connection.call(method, request, words.ADMIN_METHODS[method][1])

    async def health(self) -> words.Health:
        """State of the authority."""
        return await self._connection.call("Health", words.Nothing(), words.Health)

    async def entry_list(self, page: words.Page) -> words.Entries:
        """A page of entries, by key."""
        return await self._connection.call("EntryList", page, words.Entries)

    async def entry_show(self, key: str) -> words.Entry:
        """One entry."""
        return await self._connection.call("EntryShow", words.Key(key=key), words.Entry)

    async def entry_create(self, entry: words.Entry) -> words.Entry:
        """Register who on which node may be what."""
        return await self._connection.call("EntryCreate", entry, words.Entry)

    async def entry_update(self, entry: words.Entry) -> words.Entry:
        """Replace an entry; Conflict when `revision` is not the newest."""
        return await self._connection.call("EntryUpdate", entry, words.Entry)

    async def entry_delete(self, key: str) -> words.Entry:
        """Delete an entry: no new SVIDs; those out live to their end unless revoked."""
        return await self._connection.call("EntryDelete", words.Key(key=key), words.Entry)

    async def name_list(self, page: words.Page) -> words.Names:
        """A page of service names."""
        return await self._connection.call("NameList", page, words.Names)

    async def name_show(self, key: str) -> Name:
        """One service name."""
        return await self._connection.call("NameShow", words.Key(key=key), Name)

    async def name_create(self, name: Name) -> Name:
        """Give a service name to a SPIFFE ID."""
        return await self._connection.call("NameCreate", name, Name)

    async def name_update(self, name: Name) -> Name:
        """Replace a service name."""
        return await self._connection.call("NameUpdate", name, Name)

    async def name_delete(self, key: str) -> Name:
        """Delete a service name."""
        return await self._connection.call("NameDelete", words.Key(key=key), Name)

    async def token_create(self, request: words.TokenCreate) -> words.TokenMade:
        """Make an enrolment token; it is shown this once."""
        return await self._connection.call("TokenCreate", request, words.TokenMade)

    async def token_list(self, page: words.Page) -> words.Tokens:
        """Tokens without their secrets."""
        return await self._connection.call("TokenList", page, words.Tokens)

    async def token_delete(self, key: str) -> words.TokenInfo:
        """Make a token worthless."""
        return await self._connection.call("TokenDelete", words.Key(key=key), words.TokenInfo)

    async def node_list(self, page: words.Page) -> words.Nodes:
        """A page of nodes."""
        return await self._connection.call("NodeList", page, words.Nodes)

    async def node_show(self, key: str) -> words.Node:
        """One node."""
        return await self._connection.call("NodeShow", words.Key(key=key), words.Node)

    async def node_evict(self, request: words.NodeEvict) -> words.Node:
        """Ban a node and revoke all that was issued to it and through it."""
        return await self._connection.call("NodeEvict", request, words.Node)

    async def node_drain(self, request: words.NodeDrain) -> words.Node:
        """Ask a node to drain, or to stop draining."""
        return await self._connection.call("NodeDrain", request, words.Node)

    async def node_delete(self, key: str) -> words.Node:
        """Forget an evicted node, so that its name may be enrolled again."""
        return await self._connection.call("NodeDelete", words.Key(key=key), words.Node)

    async def policy_show(self) -> words.Policy:
        """All rules and their version."""
        return await self._connection.call("PolicyShow", words.Nothing(), words.Policy)

    async def policy_apply(self, policy: words.Policy) -> words.Policy:
        """Replace all rules; Conflict when they changed since `version`."""
        return await self._connection.call("PolicyApply", policy, words.Policy)

    async def revoke(self, request: words.Revoke) -> Revocation:
        """Revoke all SVIDs of a subject."""
        return await self._connection.call("Revoke", request, Revocation)

    async def revocation_list(self) -> words.Revocations:
        """What is revoked and who is banned."""
        return await self._connection.call("RevocationList", words.Nothing(), words.Revocations)

    async def unban(self, key: str) -> words.Nothing:
        """Let a banned subject have SVIDs again; those revoked stay so."""
        return await self._connection.call("Unban", words.Key(key=key), words.Nothing)

    async def crl_show(self) -> words.Crls:
        """The revocation list of each CA."""
        return await self._connection.call("CrlShow", words.Nothing(), words.Crls)

    async def bundle_show(self) -> words.BundleInfo:
        """The bundle and the life of its CAs."""
        return await self._connection.call("BundleShow", words.Nothing(), words.BundleInfo)

    async def bundle_rotate(self, request: words.BundleRotate) -> words.BundleInfo:
        """Move the CA life cycle on."""
        return await self._connection.call("BundleRotate", request, words.BundleInfo)

    async def federation_list(self, page: words.Page) -> words.Federations:
        """A page of foreign trust domains."""
        return await self._connection.call("FederationList", page, words.Federations)

    async def federation_show(self, key: str) -> words.Federation:
        """One foreign trust domain, with the bundle held of it."""
        return await self._connection.call("FederationShow", words.Key(key=key), words.Federation)

    async def federation_create(self, wanted: words.Federation) -> words.Federation:
        """Begin to hold the bundle of a foreign trust domain."""
        return await self._connection.call("FederationCreate", wanted, words.Federation)

    async def federation_update(self, wanted: words.Federation) -> words.Federation:
        """Change where the bundle of a foreign trust domain comes from."""
        return await self._connection.call("FederationUpdate", wanted, words.Federation)

    async def federation_delete(self, key: str) -> words.Federation:
        """Forget a foreign trust domain."""
        return await self._connection.call("FederationDelete", words.Key(key=key), words.Federation)

    async def federation_refresh(self, key: str) -> words.Federation:
        """Poll the bundle of a foreign trust domain now; the answer doesn't wait for it."""
        return await self._connection.call(
            "FederationRefresh", words.Key(key=key), words.Federation
        )

    async def renew_all(self) -> words.Nothing:
        """Have every node renew every SVID now."""
        return await self._connection.call("RenewAll", words.Nothing(), words.Nothing)


@contextlib.contextmanager
def _errors(target: str) -> Iterator[None]:
    """Whatever goes wrong on the wire, in the words of `wire.errors`."""
    try:
        yield
    except X0Error:
        raise
    except GRPCError as error:
        raise from_grpc(error) from None
    except TimeoutError:
        raise Unavailable(
            "X0-AUT-006",
            f"the authority at {target} does not answer",
            "is it running, and reachable from here?",
        ) from None
    except (OSError, EOFError, AssertionError) as error:  # grpclib asserts on a short stream.
        raise Unavailable(
            "X0-AUT-007",
            f"no connection to the authority at {target}: {error}",
            "is it running, and reachable from here?",
        ) from None
    except (StreamTerminatedError, ProtocolError, h2.exceptions.ProtocolError) as error:
        raise Unavailable(
            "X0-AUT-008", f"the authority at {target} closed the connection: {error}", "see its log"
        ) from None
