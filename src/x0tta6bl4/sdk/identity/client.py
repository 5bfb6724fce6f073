"""Client of the SPIFFE Workload API: one call or one stream at a time, nothing is retried here.

Every call carries the security metadata, has a deadline, and raises from `wire.errors` only:

    PermissionDenied   Refused       no identity for this workload
    InvalidArgument    BadInput      never to be repeated as it was
    Unimplemented      NotFound      a profile that is switched off: never to be repeated
    a bad message      BadMessage    discarded; the stream goes on
    all others         Unavailable

Source: SPIFFE_Workload_Endpoint.md sections 3 to 6, SPIFFE_Workload_API.md (SP-091, SP-094, SP-098,
SP-102, SP-104, SP-110, SP-123).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import h2.exceptions
from google.protobuf.message import DecodeError
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from x0tta6bl4.edge.tls.judge import Clock
from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.sdk.identity.answers import (
    BundleSet,
    Seen,
    X509Set,
    domain_name,
    read_x509,
    read_x509_bundles,
)
from x0tta6bl4.sdk.identity.endpoint import endpoint as parse_endpoint
from x0tta6bl4.wire.errors import BadInput, BadMessage, NotFound, Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import TrustDomain, spiffe_id

DEADLINE_S: Final = 10.0
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
AUDIENCES_MAX: Final = 64
_WINDOW_BYTES: Final = 4 * 1024 * 1024

T = TypeVar("T")


class WorkloadClient:
    """One connection to a Workload API, made at the first call and again when it was lost.

    Args:
        endpoint: `unix:///path` or `tcp://ip:port`; None: SPIFFE_ENDPOINT_SOCKET.
        deadline_s: of each call with one answer, and of the dial of each stream.
        clock: wall time, microseconds.
    Raises:
        BadInput: no endpoint, or one that the specification does not allow.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        clock: Clock = unix_us,
    ) -> None:
        self.endpoint = parse_endpoint(endpoint)
        self.clock = clock
        self._deadline_s = deadline_s
        self._channel: Channel | None = None

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
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # ------------------------------------------------------------------------------- X.509
    async def stream_x509(self) -> AsyncGenerator[X509Set | BadMessage, None]:
        """Open one stream of full sets; a message that is not good comes as what is wrong with it.

        Raises:
            X0Error: the stream ended with a status, or broke; see the module.
        """
        seen: Seen = {}
        request = schema.X509SVIDRequest()
        async for item in self._stream(
            "FetchX509SVID", request, lambda message: read_x509(message, self.clock, seen)
        ):
            yield item

    async def fetch_x509(self) -> X509Set:
        """The first set of a stream that is closed again.

        Raises:
            BadMessage: it was not good.
            X0Error: see the module.
        """
        return await self._first(self.stream_x509())

    async def stream_x509_bundles(self) -> AsyncGenerator[BundleSet | BadMessage, None]:
        """As `stream_x509`, for bundles alone."""
        request = schema.X509BundlesRequest()
        async for item in self._stream("FetchX509Bundles", request, read_x509_bundles):
            yield item

    async def fetch_x509_bundles(self) -> BundleSet:
        """As `fetch_x509`, for bundles alone."""
        return await self._first(self.stream_x509_bundles())

    # --------------------------------------------------------------------------------- JWT
    async def stream_jwt_bundles(self) -> AsyncGenerator[Mapping[TrustDomain, bytes] | BadMessage]:
        """As `stream_x509`: JWKS documents by trust domain, not parsed."""
        request = schema.JWTBundlesRequest()
        async for item in self._stream("FetchJWTBundles", request, _read_jwt_bundles):
            yield item

    async def fetch_jwt_bundles(self) -> Mapping[TrustDomain, bytes]:
        """As `fetch_x509`: JWKS documents by trust domain, not parsed."""
        return await self._first(self.stream_jwt_bundles())

    async def fetch_tokens(
        self, audience: Sequence[str], id: str | None = None
    ) -> tuple[tuple[str, str, str], ...]:
        """JWT-SVIDs as they came: (SPIFFE ID, token, hint); `jwt.fetch_jwt_svids` looks at them.

        Args:
            audience: whom they are for; at least one.
            id: whose; None: of all identities of this workload (SP-118).
        Raises:
            BadInput: no audience, or not an ID.
            X0Error: see the module.
        """
        if not audience or not all(audience) or len(audience) > AUDIENCES_MAX:
            raise BadInput("X0-SDK-016", "no audience, or too many", f"1 to {AUDIENCES_MAX}")
        request = schema.JWTSVIDRequest(
            audience=list(audience), spiffe_id="" if id is None else spiffe_id(id)
        )
        answer = await self._call("FetchJWTSVID", request)
        if not answer.svids or not all(one.spiffe_id and one.svid for one in answer.svids):
            raise _bad("a JWT-SVID is missing, or has no spiffe_id or no svid")
        return tuple((one.spiffe_id, one.svid, one.hint) for one in answer.svids)

    async def ask_validity(self, token: str, audience: str) -> tuple[str, dict[str, Any]]:
        """Let the Workload API validate a token: its ID and claims.

        Raises:
            BadInput: it is not valid.
            X0Error: see the module.
        """
        request = schema.ValidateJWTSVIDRequest(audience=audience, svid=token)
        answer = await self._call("ValidateJWTSVID", request)
        if not answer.spiffe_id:
            raise _bad("a validated token has no spiffe_id")
        return spiffe_id(answer.spiffe_id), _plain(answer.claims)

    # ----------------------------------------------------------------------------- details
    def _open(self, method: str) -> Any:
        if self._channel is None:
            config = Configuration(
                http2_connection_window_size=_WINDOW_BYTES, http2_stream_window_size=_WINDOW_BYTES
            )
            to = self.endpoint
            place = {"path": to.path} if to.path else {"host": to.host, "port": to.port}
            self._channel = Channel(**place, codec=ProtoCodec(), config=config)
        request, answer, many = schema.METHODS[method]
        return self._channel.request(
            schema.path(method),
            Cardinality.UNARY_STREAM if many else Cardinality.UNARY_UNARY,
            request,
            answer,
            metadata=(schema.METADATA,),
        )

    async def _call(self, method: str, request: Any) -> Any:
        with _errors(str(self.endpoint)):
            async with asyncio.timeout(self._deadline_s), self._open(method) as stream:
                await stream.send_message(request, end=True)
                answer = await _receive(stream, schema.METHODS[method][1])
                if answer is None:
                    raise _bad("there is none")
            return answer

    async def _stream(
        self, method: str, request: Any, read: Callable[[Any], T]
    ) -> AsyncGenerator[T | BadMessage, None]:
        with _errors(str(self.endpoint)):
            async with self._open(method) as stream:
                async with asyncio.timeout(self._deadline_s):
                    await stream.send_message(request, end=True)
                while (message := await _receive(stream, schema.METHODS[method][1])) is not None:
                    try:
                        item: T | BadMessage = read(message)
                    except BadMessage as error:
                        item = error
                    yield item

    async def _first(self, stream: AsyncGenerator[T | BadMessage, None]) -> T:
        with _errors(str(self.endpoint)):
            async with asyncio.timeout(self._deadline_s), contextlib.aclosing(stream) as items:
                async for item in items:
                    if isinstance(item, BadMessage):
                        raise item
                    return item
        raise Unavailable("X0-SDK-015", "the Workload API ended the stream without an answer")


def _read_jwt_bundles(message: Any) -> Mapping[TrustDomain, bytes]:
    """Documents by trust domain; they are parsed where they are used.

    Raises:
        BadMessage: none at all, or a name that is none.
    """
    if not message.bundles:
        raise _bad("it has no bundle")
    try:
        return {domain_name(name): message.bundles[name] for name in sorted(message.bundles)}
    except BadInput as error:
        raise _bad(error.what) from None


async def _receive(stream: Any, kind: Any) -> Any:
    """Next message of a stream, None at its end; grpclib's own takes any length.

    Raises:
        BadMessage: too long, compressed, or not such a message.
    """
    if not stream._recv_initial_metadata_done:
        await stream.recv_initial_metadata()
    with stream._wrapper:
        head = await stream._stream.recv_data(5)
        if not head:
            return None
        compressed, size = struct.unpack(">BI", head)
        if compressed:
            raise _bad("it is compressed")
        if size > MESSAGE_BYTES_MAX:
            raise _bad(f"it is longer than {MESSAGE_BYTES_MAX} bytes")
        data = await stream._stream.recv_data(size)
        try:
            return kind.FromString(data)
        except (DecodeError, RecursionError):
            raise _bad(f"it is no {kind.DESCRIPTOR.name}") from None


def _plain(claims: Any) -> dict[str, Any]:
    """A google.protobuf.Struct as plain values."""
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(claims)
    return found


@contextlib.contextmanager
def _errors(where: str) -> Iterator[None]:
    """Whatever goes wrong on the wire, in the words of `wire.errors`."""
    try:
        yield
    except X0Error:
        raise
    except GRPCError as error:
        raise of_status(error.status, error.message or "") from None
    except TimeoutError:
        raise Unavailable(
            "X0-SDK-017", f"the Workload API at {where} does not answer", "is the agent alive?"
        ) from None
    except (OSError, EOFError, AssertionError, ValueError) as error:  # grpclib asserts on a cut.
        raise Unavailable(
            "X0-SDK-018", f"no connection to the Workload API at {where}: {error}", "is it running?"
        ) from None
    except (StreamTerminatedError, ProtocolError, h2.exceptions.ProtocolError) as error:
        raise Unavailable(
            "X0-SDK-019", f"the Workload API at {where} broke the connection: {error}"
        ) from None


def of_status(status: Status, message: str) -> X0Error:
    """The error that stands for a gRPC status (SP-098, SP-123)."""
    said = f": {message[:200]}" if message else ""
    if status is Status.PERMISSION_DENIED:
        return Refused(
            "X0-SDK-011", f"no identity for this workload{said}", "is there an entry for it?"
        )
    if status is Status.INVALID_ARGUMENT:
        return BadInput("X0-SDK-012", f"the Workload API refuses the request{said}")
    if status is Status.UNIMPLEMENTED:
        return NotFound("X0-SDK-013", f"the Workload API does not offer this{said}")
    return Unavailable("X0-SDK-010", f"the Workload API answered {status.name}{said}")


def _bad(what: str) -> BadMessage:
    return BadMessage("X0-SDK-014", f"message of the Workload API discarded: {what}")
