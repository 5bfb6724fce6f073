"""Rtnetlink without a library: requests in batches, dumps, and what the kernel says by itself.

    Netlink   requests: many in one system call, of which only the last asks to be acknowledged;
              refused ones answer for themselves, with the kernel's own words (extended ack)
    Monitor   what others change: links, addresses, routes; what one does oneself can be left out

The kernel carries requests out inside the send, so an answer is there when the send returns; the
deadline on every wait is for the case that it is not.  What comes from elsewhere than the kernel
is dropped.  Requests and dumps are checked strictly by the kernel: what it does not understand it
refuses instead of leaving it out.

Source: netlink(7), rtnetlink(7); linux/netlink.h for the errors' attributes
(`NLMSGERR_ATTR_MSG`) and the socket options.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.wire.errors import BadMessage, Unavailable

REQUEST: Final = 0x01
ACK: Final = 0x04
REPLACE: Final = 0x100
CREATE: Final = 0x400
_DUMP: Final = 0x300
_DUMP_INTERRUPTED: Final = 0x10
_MULTI: Final = 0x02
_CAPPED: Final = 0x100
_TLVS: Final = 0x200
_ERROR: Final = 2
_DONE: Final = 3
_OVERRUN: Final = 4
_TEXT: Final = 1
_NESTED: Final = 0x8000

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_CAP_ACK: Final = 10
_EXT_ACK: Final = 11
_STRICT: Final = 12
_SO_RCVBUFFORCE: Final = 33
_SO_ATTACH_FILTER: Final = 26
_LOAD_16, _LOAD_32, _SKIP_IF, _RETURN = 0x28, 0x20, 0x15, 0x06
_KIND_AT, _PORT_AT = 4, 12
"""Instructions of a socket filter (linux/bpf_common.h), and where in a message's header it reads,
in network order."""

BATCH_MAX: Final = 128
"""Requests in one send: were all refused, the errors would fit into the receive buffer."""
DUMP_MAX: Final = 1 << 18
"""Messages of one dump."""
_RECEIVE_BYTES: Final = 64 * 1024
_QUEUE_BYTES: Final = 1 << 20
_TRIES: Final = 5

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_CODE: Final = struct.Struct("=i")
_STEP: Final = struct.Struct("=HBBI")

Request = tuple[int, int, bytes]
"""Type, flags besides REQUEST, body."""


class Said(NamedTuple):
    """One message of the kernel."""

    kind: int
    flags: int
    sequence: int
    body: bytes


@final
class Refusal(Value, frozen=True):
    """A request that the kernel did not carry out."""

    at: int
    """Index in the batch."""
    code: int
    """`errno`, positive."""
    text: str
    """The kernel's own words; empty where it has none."""

    def __str__(self) -> str:
        return self.text or os.strerror(self.code).lower()


# ------------------------------------------------------------------ bytes
def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NESTED, b"".join(values))


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Attributes from an offset on, of two of the same kind the later one.

    Raises:
        BadMessage: one is longer than what is left.
    """
    found: dict[int, bytes] = {}
    size = len(data)
    while at + 4 <= size:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > size:
            raise _malformed()
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def message(request: Request) -> bytes:
    """A request as `Netlink.put_all` takes it."""
    kind, flags, body = request
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | REQUEST, 0, 0) + body


def _read(message: bytes) -> Request:
    _, kind, flags, _, _ = _HEADER.unpack_from(message)
    return kind, flags & ~REQUEST, message[_HEADER.size :]


def messages(data: bytes) -> Iterator[Said]:
    """The messages of one datagram.

    Raises:
        BadMessage: one is longer than what is left.
    """
    at, size = 0, len(data)
    while at + 16 <= size:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < 16 or at + length > size:
            raise _malformed()
        yield Said(kind, flags, sequence, data[at + 16 : at + length])
        at += length + 3 & ~3


def refusal(said: Said, at: int = 0) -> Refusal | None:
    """What an error message or the end of a dump says; None: it went well.

    Raises:
        BadMessage: it is too short.
    """
    body = said.body
    if len(body) < 4:
        if said.kind == _DONE:
            return None
        raise _malformed()
    (code,) = _CODE.unpack_from(body)
    if code >= 0:
        return None
    text = ""
    if said.flags & _TLVS:
        start = 4
        if said.kind == _ERROR:
            if len(body) < 20:
                raise _malformed()
            (quoted,) = struct.unpack_from("=I", body, 4)
            start = 20 if said.flags & _CAPPED else 4 + (quoted + 3 & ~3)
        words = attributes(body, start).get(_TEXT, b"")
        text = words.rstrip(b"\0").decode("utf-8", "replace")[:200]
    return Refusal(at, -code, text)


def _malformed() -> BadMessage:
    return BadMessage("X0-KRN-101", "an answer of the kernel is malformed", "report it, please")


# ------------------------------------------------------------------ sockets
class Netlink:
    """Requests to rtnetlink in the network namespace of the thread that makes it.

    Args:
        deadline_s: for every wait on the kernel.
    Raises:
        Unavailable: X0-KRN-100 there is no such socket here.
    """

    __slots__ = ("_buffer", "_deadline_s", "_poll", "_sequence", "_sock")

    def __init__(self, deadline_s: float = 2.0) -> None:
        self._sock = _opened(0)
        self._deadline_s = deadline_s
        self._sequence = 0
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)

    @property
    def port(self) -> int:
        """Who this is for the kernel; what it says of changes names the port of who asked."""
        number: int = self._sock.getsockname()[0]
        return number

    def ask(self, requests: Iterable[Request]) -> list[Refusal]:
        """Have requests carried out, in order; those behind a refused one are, too.

        Returns:
            What was refused.
        Raises:
            Unavailable: X0-KRN-102 no answer in time.
        """
        refused: list[Refusal] = []
        left, pack, at = iter(requests), _HEADER.pack, 0
        while True:
            first = self._sequence + 1 & 0x3FFFFFFF
            batch = [  # Bodies are padded: attributes are.
                pack(16 + len(body), kind, flags | REQUEST, number, 0) + body
                for number, (kind, flags, body) in enumerate(islice(left, BATCH_MAX), first)
            ]
            if not batch:
                return refused
            length, kind, flags, last, _ = _HEADER.unpack_from(batch[-1])
            batch[-1] = pack(length, kind, flags | ACK, last, 0) + batch[-1][16:]
            self._sequence = last
            self._send(b"".join(batch))
            self._settle(first, last, at, refused)
            at += len(batch)

    def put_all(self, messages: Sequence[bytes]) -> list[Refusal]:
        """As `ask`, for thousands of requests that can be carried out twice without harm.

        They have no numbers of their own: if one of a batch is refused, it is asked again which.

        Args:
            messages: by `message`.
        """
        refused: list[Refusal] = []
        for at in range(0, len(messages), BATCH_MAX):
            batch = messages[at : at + BATCH_MAX]
            length, kind, flags, _, _ = _HEADER.unpack_from(batch[-1])
            self._sequence = last = self._sequence + 1 & 0x3FFFFFFF
            end = _HEADER.pack(length, kind, flags | ACK, last, 0)
            self._send(b"".join((*batch[:-1], end, batch[-1][_HEADER.size :])))
            some: list[Refusal] = []
            self._settle(last, last, 0, some, unnumbered=True)
            if some:
                refused += [
                    Refusal(at + one.at, one.code, one.text) for one in self.ask(map(_read, batch))
                ]
        return refused

    def carry_out(self, what: str, requests: Sequence[Request]) -> None:
        """Have requests carried out, all of them.

        Args:
            what: for the error: what was tried.
            requests: in order.
        Raises:
            Unavailable: X0-KRN-103 one was refused; X0-KRN-102 no answer in time.
        """
        refused = self.ask(requests)
        if refused:
            raise refused_error(what, refused[0])

    def dump(self, what: str, kind: int, body: bytes) -> list[Said]:
        """All that the kernel has of something, as of one moment.

        Args:
            what: for the error: what was asked for.
            kind: of the request, an RTM_GET...
            body: what is to be left out, with all its headers.
        Raises:
            Unavailable: X0-KRN-103 refused; X0-KRN-104 it changed all the time, or there is more
                than DUMP_MAX; X0-KRN-102 no answer in time.
        """
        for _ in range(_TRIES):
            found = self._dumped(what, kind, body)
            if found is not None:
                return found
        raise Unavailable("X0-KRN-104", f"{what}: it changes all the time", "try again in a moment")

    def get(self, what: str, kind: int, body: bytes) -> Said | None:
        """One thing; None: there is none.

        Raises:
            Unavailable: X0-KRN-103 refused; X0-KRN-102 no answer in time.
        """
        self._sequence = sequence = self._sequence + 1 & 0x3FFFFFFF
        self._send(_HEADER.pack(16 + len(body), kind, REQUEST, sequence, 0) + body)
        until = time.monotonic() + self._deadline_s
        while True:
            for said in self._received(until):
                if said.sequence != sequence:
                    continue
                if said.kind != _ERROR:
                    return said
                wrong = refusal(said)
                if wrong is None or wrong.code in (errno.ENOENT, errno.ENODEV, errno.ESRCH):
                    return None
                raise refused_error(what, wrong)

    def close(self) -> None:
        """Give the socket back."""
        self._sock.close()

    def _send(self, data: bytes) -> None:
        try:
            self._sock.send(data)
        except BlockingIOError:
            raise self._late() from None
        except OSError as error:
            raise Unavailable(
                "X0-KRN-100", f"rtnetlink: {os.strerror(error.errno or 0).lower()}"
            ) from None

    def _settle(
        self, first: int, last: int, at: int, refused: list[Refusal], *, unnumbered: bool = False
    ) -> None:
        """Read answers up to that to the last request."""
        until = time.monotonic() + self._deadline_s
        while True:
            for said in self._received(until):
                numbered = first <= said.sequence <= last
                if said.kind != _ERROR or not (numbered or (unnumbered and not said.sequence)):
                    continue  # Of a request that was given up.
                wrong = refusal(said, at + said.sequence - first)
                if wrong is not None:
                    refused.append(wrong)
                if said.sequence == last:
                    return

    def _dumped(self, what: str, kind: int, body: bytes) -> list[Said] | None:
        """One attempt; None: something changed meanwhile."""
        self._sequence = sequence = self._sequence + 1 & 0x3FFFFFFF
        self._send(_HEADER.pack(16 + len(body), kind, REQUEST | _DUMP, sequence, 0) + body)
        until = time.monotonic() + self._deadline_s
        found: list[Said] = []
        torn = False
        while True:
            for said in self._received(until):
                if said.sequence != sequence:
                    continue
                torn |= bool(said.flags & _DUMP_INTERRUPTED)
                if said.kind in (_DONE, _ERROR):
                    wrong = refusal(said)
                    if wrong is not None:
                        raise refused_error(what, wrong)
                    return None if torn else found
                if len(found) >= DUMP_MAX:
                    raise Unavailable("X0-KRN-104", f"{what}: more than {DUMP_MAX}")
                found.append(said)

    def _received(self, until: float) -> list[Said]:
        """The messages of the next datagram from the kernel."""
        while True:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise self._late()
            try:
                size, (pid, _) = self._sock.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:  # Seldom: answers are there when the send returns.
                self._poll.poll(left_s * 1000)
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue  # Answers were lost: the deadline says so.
            if pid == 0:
                if size > len(self._buffer):
                    raise _malformed()
                return list(messages(bytes(memoryview(self._buffer)[:size])))

    def _late(self) -> Unavailable:
        return Unavailable(
            "X0-KRN-102", f"the kernel did not answer within {self._deadline_s:g} s", "try again"
        )


class Monitor:
    """What changes in this network namespace, whoever changes it.

    Args:
        groups: numbers of multicast groups (RTNLGRP_...).
    Raises:
        Unavailable: X0-KRN-100 there is no such socket here.
    """

    __slots__ = ("_buffer", "_sock", "lost")

    def __init__(self, *groups: int) -> None:
        self._sock = _opened(0)
        for group in groups:
            self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._buffer = bytearray(_RECEIVE_BYTES)
        self.lost = 0
        """How often messages were lost, because they came faster than they were read."""

    def leave_out(self, port: int, kinds: Iterable[int]) -> None:
        """Not to hear from now on: what this port has asked for, and messages of these kinds.

        It is the kernel that leaves them out, so a thousand of one's own changes neither wake
        anybody nor drive out of the queue what others do.
        """
        numbers = [(_KIND_AT, _LOAD_16, socket.htons(kind)) for kind in kinds]
        numbers.append((_PORT_AT, _LOAD_32, socket.htonl(port)))
        program = b""
        for left, (at, load, number) in zip(range(len(numbers), 0, -1), numbers, strict=True):
            program += _STEP.pack(load, 0, 0, at) + _STEP.pack(_SKIP_IF, 2 * left - 1, 0, number)
        program += _STEP.pack(_RETURN, 0, 0, 0xFFFFFFFF) + _STEP.pack(_RETURN, 0, 0, 0)
        held = ctypes.create_string_buffer(program, len(program))
        said = struct.pack("HP", len(program) // _STEP.size, ctypes.addressof(held))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, said)

    def fileno(self) -> int:
        """For a selector: readable when there is something."""
        return self._sock.fileno()

    def read(self, most: int = 256) -> tuple[list[Said], bool]:
        """What has come, without waiting.

        Args:
            most: datagrams to take.
        Returns:
            The messages; and whether some were lost, so that a dump is due.
        """
        found: list[Said] = []
        lost = False
        for _ in range(most):
            try:
                size, (pid, _) = self._sock.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                lost = True
                continue
            if pid:
                continue
            if size > len(self._buffer):
                self.lost += 1
                lost = True
                continue
            found += messages(bytes(memoryview(self._buffer)[:size]))
        return found, lost

    def close(self) -> None:
        """Give the socket back."""
        self._sock.close()


def refused_error(what: str, wrong: Refusal) -> Unavailable:
    """The error of a request that had to be carried out."""
    hint = "this takes root, or CAP_NET_ADMIN" if wrong.code == errno.EPERM else ""
    return Unavailable("X0-KRN-103", f"{what}: {wrong}", hint)


def _opened(groups: int) -> socket.socket:
    try:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        sock.bind((0, groups))
        for option in (_EXT_ACK, _CAP_ACK, _STRICT):
            sock.setsockopt(_SOL_NETLINK, option, 1)
    except OSError as error:
        raise Unavailable(
            "X0-KRN-100", f"rtnetlink: {os.strerror(error.errno or 0).lower()}"
        ) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
    return sock
