"""How the words of `wire.authority` travel in gRPC: msgpack bodies, bounded, and typed errors.

An error keeps its stable id, sentence and hint on the way: they are the three lines of the gRPC
status message, and the status says which class of `wire.errors` it was.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError

from x0tta6bl4.wire.errors import (
    BadInput,
    BadMessage,
    Conflict,
    NotFound,
    Refused,
    Unavailable,
    X0Error,
)

_ENCODER = msgspec.msgpack.Encoder()
_LINE_CHARS_MAX: Final = 1000


class Codec(CodecBase):
    """The codec that grpclib calls on both sides.

    Args:
        bytes_max: longest message that is decoded.
    """

    __content_subtype__ = "x0"

    def __init__(self, bytes_max: int) -> None:
        self._max = bytes_max
        self._decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}

    def encode(self, message: Any, message_type: Any) -> bytes:
        """One message body."""
        assert type(message) is message_type
        return _ENCODER.encode(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        """The message in a body.

        Raises:
            BadMessage: too long, or not of the type.
        """
        if len(data) > self._max:
            raise BadMessage("X0-AUT-002", f"message of {len(data)} bytes", f"at most {self._max}")
        decoder = self._decoders.get(message_type)
        if decoder is None:  # One per type: bounded by the number of methods.
            decoder = self._decoders[message_type] = msgspec.msgpack.Decoder(message_type)
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadMessage("X0-AUT-003", f"not a {message_type.__name__}: {error}") from None


_STATUS: Final[tuple[tuple[type[X0Error], Status], ...]] = (
    (BadInput, Status.INVALID_ARGUMENT),
    (Refused, Status.PERMISSION_DENIED),
    (NotFound, Status.NOT_FOUND),
    (Conflict, Status.FAILED_PRECONDITION),
    (Unavailable, Status.UNAVAILABLE),
)
_CLASS: Final[dict[Status, type[X0Error]]] = {
    **{status: kind for kind, status in _STATUS},
    Status.ALREADY_EXISTS: Conflict,
    Status.UNAUTHENTICATED: Refused,
}


def to_grpc(error: X0Error) -> GRPCError:
    """What goes over the wire for an error."""
    status = next((s for kind, s in _STATUS if isinstance(error, kind)), Status.INTERNAL)
    lines = (error.id, error.what, error.hint)
    return GRPCError(status, "\n".join(x.replace("\n", " ")[:_LINE_CHARS_MAX] for x in lines))


def from_grpc(error: GRPCError) -> X0Error:
    """The error that `to_grpc` was given; Unavailable for what did not come from there."""
    lines = (error.message or "").split("\n")
    if len(lines) == 3 and lines[0].startswith("X0-"):
        return _CLASS.get(error.status, Unavailable)(*lines)
    return Unavailable(
        "X0-AUT-004",
        f"the authority answered {error.status.name}",
        "see its log; do both ends have the same version?",
    )
