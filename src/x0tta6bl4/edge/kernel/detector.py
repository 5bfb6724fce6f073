"""Links watched, judged and diverted in the kernel: what user space tells it and hears of it.

Every `hello_us` the clock sends a request on each link; the peer's driver answers.  A link whose
answers stay away is suspect, then dead: the kernel says so and has diverted its data already.  Only
user space revives (`revive`), after X0_GOOD answers in a row and a time of its own.

The agent stamps a lease (`renew`).  Without it detection and diversion go on for `stand_down_s`;
then no hello is sent or answered and nothing is diverted any more.

Source: `bpf/hello.h`, `bpf/clock.h`, `bpf/divert.h`; RFC 5880; RFC 5286 and 8754 for alternates.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv6Address
from typing import Any, Final, final

from x0tta6bl4.core.machine import MS, Value
from x0tta6bl4.edge.kernel import clock, layout
from x0tta6bl4.edge.kernel.layout import EventKind, Flag
from x0tta6bl4.edge.kernel.libbpf import KernelRefused, Ring
from x0tta6bl4.edge.kernel.netlink import Netlink
from x0tta6bl4.edge.kernel.programs import START, VERDICTS, Programs

ALTERNATES_MAX: Final = 65_536
KEY_BYTES: Final = 16
_FRAME: Final = bytes(12) + b"\x86\xdd" + bytes(clock.FRAME_BYTES - 14)
_ROUTE: Final = struct.Struct("<II16s")  # layout.ROUTE, in one go
_ONE_ADDRESS: Final = 32 + 128
"""Bits of a route: of the link, then of the destination."""
_ZERO: Final = bytes(4)


@final
class Pace(Value, frozen=True):
    """How fast links are judged."""

    hello_us: int = 2_500
    """One request per link; 2.5 ms for up to eight links, 5 ms for more, costs < 1 % of a core."""
    multiplier: int = 3
    """Intervals without an answer after which a link is dead."""
    suspect_percent: int = 140
    """Of an interval without an answer after which data goes both ways."""
    agent_s: int = 3
    """A lease older than this: hellos say that the agent is gone."""
    stand_down_s: int = 300
    """A lease older than this: detection and diversion end."""


@final
class Link(Value, frozen=True):
    """A neighbour on an interface."""

    number: int
    """Of this link here, 0..255; the peer is told, and puts it into its hellos."""
    peer_number: int
    """Of this link there."""
    ifindex: int
    local_mac: bytes
    peer_mac: bytes
    local: IPv6Address
    """Link-local address of the interface; hellos have no other."""
    peer: IPv6Address
    incarnation: int
    """Of ours, e.g. microseconds of the wall clock; one that is not above the last is made so."""
    mtu: int = 1500
    measure_tcp: bool = True
    """Count retransmitted segments; costs one look-up per packet."""


@final
class Alternate(Value, frozen=True):
    """Where data for a destination goes while its link is dead; must itself be a link of ours."""

    destination: IPv6Address
    ifindex: int
    next_hop_mac: bytes
    segments: tuple[bytes, ...] = ()
    """Addresses along which it is led, 16 bytes each; empty: the neighbour knows how to go on."""
    source: bytes = b""
    """Of the header that leads it: this node's mesh address."""


@final
class LinkEvent(Value, frozen=True):
    """What the kernel said about a link."""

    number: int
    kind: EventKind
    at_us: int
    """CLOCK_MONOTONIC."""
    silent_us: int
    """Since the last answer, for SUSPECTED and DOWN."""


@final
class LinkReport(Value, frozen=True):
    """What the kernel knows about a link; counts since the link was set."""

    number: int
    dead: bool
    suspect: bool
    agent_alive: bool
    """The peer's agent, as its last hello said."""
    silent_us: int
    good: int
    """Answers in a row."""
    rtt_us: float
    rtt_last_us: float
    asked: int
    answers: int
    requests: int
    peer_heard: int
    sent: int
    """Data packets on this link."""
    received: int
    diverted: int
    duplicated: int
    undeliverable: int
    """Packets for a dead link without a live alternate."""
    repaired: int
    """Of those diverted and duplicated, how many were led along a source route."""
    tcp: int
    retransmitted: int
    refused: int
    suspicions: int
    downs: int
    late: int
    """Verdicts not given because the fault may have been ours."""


@final
class Traffic(Value, frozen=True):
    """What became of data and hellos on a link between two looks at it, by direction."""

    came_in: int
    lost_in: int
    came_out: int
    """Data packets of ours, as the peer counted them."""
    lost_out: int


@final
class Detector:
    """The links of one node.

    Args:
        programs: loaded or adopted.
        pace: how fast links are judged.
    Raises:
        Unavailable: X0-KRN-103 the clock's track was refused.
    """

    __slots__ = (
        "_alternates", "_links", "_netlink", "_pace", "_ports", "_programs", "_ring", "_seen",
        "_turns",
    )  # fmt: skip

    def __init__(self, programs: Programs, pace: Pace = Pace()) -> None:  # noqa: B008
        self._programs = programs
        self._pace = pace
        self._netlink = Netlink()
        self._ring = Ring(programs.library, programs.maps["x0_events"])
        self._links = set(self._read_fan())
        self._ports = {_port_of(self._read(number)): number for number in self._links}
        self._alternates = self._read_alternates()
        self._seen: dict[int, dict[str, int]] = {}
        self._turns = -1
        self._set_settings()
        if self._links and programs.adopted:
            for number in self._links:
                self._arm(number)
            self._run_clock()

    # ------------------------------------------------------------------ links
    def set_link(self, link: Link) -> None:
        """Watch a link, or go on watching it with other values; keys come by `take_under`.

        A link that is new begins dead, with nothing counted: `revive` it when the kernel says GOOD.
        The interface must carry the programs (`Programs.attach`).

        Raises:
            KernelRefused: X0-KRN-010 a number or address that can't be.
        """
        _check(link)
        port = _port(link.ifindex, link.peer_mac)
        if self._ports.get(port, link.number) != link.number:
            raise KernelRefused(
                "X0-KRN-010",
                f"{link.peer_mac.hex(':')} is another neighbour's hardware address",
                "each neighbour on an interface has its own",
            )
        values = self._read(link.number)
        old = _port_of(values)
        fresh = not values["flags"] & Flag.ACTIVE
        interval = self._pace.hello_us * 1000
        values |= {
            "incarnation": max(link.incarnation, values["incarnation"] + 1),
            "dead_ns": interval * self._pace.multiplier,
            "suspect_ns": interval * self._pace.suspect_percent // 100,
            "late_ns": interval,
            "unanswered": max(self._pace.multiplier - 1, 1),
            "ifindex": link.ifindex,
            "peer_session": link.peer_number,
            "mtu": link.mtu,
            "local_mac": link.local_mac,
            "peer_mac": link.peer_mac,
            "local": link.local.packed,
            "peer": link.peer.packed,
        }
        values["flags"] = Flag.ACTIVE | (Flag.MEASURE_TCP if link.measure_tcp else 0)
        key = struct.pack("I", link.number)
        if fresh:
            values["forgiven"] = 0
            self._programs.maps["x0_states"].put(key, layout.STATE.pack(downs=1))
        self._write(link.number, values)
        if old != port:
            self._forget_port(link.number, old)
        self._programs.maps["x0_ports"].put(port, key)
        self._ports[port] = link.number
        self._arm(link.number)
        self._links.add(link.number)
        self._write_fan()

    def take_under(self, number: int, slot: int, key: bytes) -> None:
        """Put a key into one of two slots; hellos under either are taken."""
        self._write(number, _with_key(self._read(number), "receive_key", slot, key))

    def send_under(self, number: int, slot: int, key: bytes) -> None:
        """Send under this key in this slot from now on: the peer takes hellos under it."""
        values = _with_key(self._read(number), "send_key", slot, key)
        self._write(number, values | {"send_slot": slot})

    def slot(self, number: int) -> int:
        """Under the key of which slot hellos of a link are sent."""
        return int(self._read(number)["send_slot"])

    def sends(self, number: int) -> bool:
        """Whether there is a key in that slot."""
        values = self._read(number)
        return any(values["send_key"][2 * values["send_slot"] :][:2])

    def forget_peer(self, number: int) -> None:
        """The peer's kernel begins anew: what it has sent so far is taken no more, whatever comes.

        Its incarnations may be lower than before: nothing can be played again without its key.
        """
        self._write(number, self._read(number) | {"receive_key": _NO_LINK["receive_key"]})
        state = layout.STATE.unpack(self._state(number))
        state |= {"peer_incarnation": 0, "top": (0, 0), "window": (0, 0)}
        self._programs.maps["x0_states"].put(struct.pack("I", number), layout.STATE.pack(**state))
        self._arm(number)  # That was its timer, too.

    def remove_link(self, number: int) -> None:
        """Watch a link no longer; its data is diverted no more."""
        values = self._read(number)
        self._forget_port(number, _port_of(values))
        self.set_alternates(number, ())
        self._forget_choice(number)
        self._links.discard(number)
        self._seen.pop(number, None)
        self._write_fan()
        self._write(number, dict.fromkeys(values, 0) | _NO_LINK)
        self._programs.maps["x0_states"].put(
            struct.pack("I", number), bytes(layout.STATE.size)
        )  # Ends its timer, too.

    def rest(self, number: int) -> None:
        """Neither ask nor answer on a link, so that both ends leave it; `set_link` goes on."""
        values = self._read(number)
        flags = values["flags"] & ~Flag.ACTIVE | Flag.DECLARED_DEAD
        self._write(number, values | {"flags": flags})

    def rests(self, number: int) -> bool:
        """Whether a link was told to `rest`, also by the process before."""
        return not self._read(number)["flags"] & Flag.ACTIVE

    def links(self) -> frozenset[int]:
        """Numbers of the links that are watched; after adoption, those of before."""
        return frozenset(self._links)

    def revive(self, number: int) -> None:
        """Take the kernel's verdict back: data goes over this link again, from this packet on."""
        downs = layout.STATE.unpack(self._state(number))["downs"]
        values = self._read(number)
        flags = values["flags"] & ~Flag.DECLARED_DEAD
        self._write(number, values | {"forgiven": downs, "flags": flags})

    def declare_dead(self, number: int) -> None:
        """User space's own verdict: data is diverted until `revive`."""
        values = self._read(number)
        self._write(number, values | {"flags": values["flags"] | Flag.DECLARED_DEAD})

    # ------------------------------------------------------------------ alternates
    def set_alternates(self, number: int, alternates: Iterable[Alternate]) -> int:
        """Say where data of a link goes when it is dead; what is not named loses its alternate.

        Args:
            number: of the link.
            alternates: each by another link that is watched; of several for one destination the
                last counts. One of more than SEGMENTS_MAX segments is left out.
        Returns:
            How many entries were changed.
        Raises:
            KernelRefused: X0-KRN-011 one is no link of ours; nothing was changed.
        """
        wanted: dict[bytes, bytes] = {}
        known: dict[tuple[Any, ...], bytes] = {}
        for one in alternates:
            what = one.ifindex, one.next_hop_mac, one.segments, one.source
            value = known.get(what)
            if value is None:  # There are few of these, and destinations by the thousand.
                value = known[what] = self._value(number, one)
            if value:
                wanted[_ROUTE.pack(_ONE_ADDRESS, number, one.destination.packed)] = value
        held = self._alternates.get(number, {})
        table = self._programs.maps["x0_alternates"]
        changed = 0
        for key, value in wanted.items():
            if held.get(key) != value:
                table.put(key, value)
                held[key] = value
                changed += 1
        for key in held.keys() - wanted.keys():
            table.delete(key)
            del held[key]
            changed += 1
        self._alternates[number] = held
        return changed

    def _value(self, number: int, one: Alternate) -> bytes:
        """What the map has of an alternate; empty: it is left out."""
        by = self._ports.get(_port(one.ifindex, one.next_hop_mac))
        if by is None:
            raise KernelRefused(
                "X0-KRN-011",
                f"the alternate for {one.destination} on interface {one.ifindex} is no link",
                "only links that are watched can carry diverted data",
            )
        if by == number or len(one.segments) > layout.SEGMENTS_MAX:
            return b""
        return layout.ALTERNATE.pack(
            link=by,
            segments=len(one.segments),
            source=one.source,
            segment=b"".join(reversed(one.segments)),
        )

    # ------------------------------------------------------------------ time
    def renew(self) -> None:
        """Stamp the lease: the agent lives. To be called once a second.

        Also puts a new frame on the clock's track if the old one was lost.
        """
        self._set_settings()
        turns = self._turned()
        if self._links and turns == self._turns:
            self._run_clock()
        self._turns = turns

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._ring.fileno()

    def events(self) -> list[LinkEvent]:
        """What the kernel has said since the last call; never waits."""
        found = []
        for data in self._ring.read():
            values = layout.EVENT.unpack(data[: layout.EVENT.size])
            if values["kind"] not in _KINDS:
                continue  # Said by an older program, just before this one took its place.
            found.append(
                LinkEvent(
                    number=values["link"],
                    kind=EventKind(values["kind"]),
                    at_us=values["at_ns"] // 1000,
                    silent_us=values["silent_ns"] // 1000,
                )
            )
        return found

    def report(self, number: int) -> LinkReport:
        """What the kernel knows about a link at this moment."""
        state, link = layout.STATE.unpack(self._state(number)), self._read(number)
        silent_ns = time.monotonic_ns() - state["answered_ns"]
        over = silent_ns >= link["dead_ns"]  # The next answer is the first again.
        return LinkReport(
            number=number,
            dead=state["downs"] != link["forgiven"] or bool(link["flags"] & Flag.DECLARED_DEAD),
            suspect=over or state["suspected_ns"] > state["answered_ns"],
            agent_alive=bool(state["peer_flags"] & 1),
            silent_us=silent_ns // 1000 if state["answered_ns"] else 0,
            good=0 if over else state["good"],
            rtt_us=state["rtt_ns"] / 1000,
            rtt_last_us=state["rtt_last_ns"] / 1000,
            asked=state["asked"],
            answers=state["answers"],
            requests=state["requests"],
            peer_heard=state["peer_heard"],
            sent=state["sent"],
            received=state["received"],
            diverted=state["diverted"],
            duplicated=state["duplicated"],
            undeliverable=state["lost"],
            repaired=state["repaired"],
            tcp=state["tcp"],
            retransmitted=state["retransmitted"],
            refused=state["refused"],
            suspicions=state["suspicions"],
            downs=state["downs"],
            late=state["late"],
        )

    def statistics(self) -> tuple[LinkReport, ...]:
        """Reports of all links."""
        return tuple(self.report(number) for number in sorted(self._links))

    def traffic(self, number: int) -> Traffic:
        """What came and what was lost since the last call; nothing over a restart of the peer."""
        state = layout.STATE.unpack(self._state(number))
        seen = {name: state[name] for name in _COUNTS}
        last = self._seen.get(number, seen)
        self._seen[number] = seen
        if last["peer_incarnation"] != seen["peer_incarnation"]:
            last = seen
        grown = {name: seen[name] - last[name] & _32_BITS for name in _COUNTS}
        hellos = grown["answers"] + grown["requests"]
        gaps = max(seen["gaps"] - last["gaps"], 0)
        return Traffic(
            came_in=grown["received_then"] + hellos,
            lost_in=max(grown["peer_sent"] - grown["received_then"], 0) + gaps,
            came_out=grown["peer_received"],
            lost_out=max(grown["peer_told"] - grown["peer_received"], 0),
        )

    def close(self) -> None:
        """Let go; detection and diversion go on until the lease has run out."""
        self._ring.close()
        self._netlink.close()

    def remove(self) -> None:
        """End it: no clock, no frame on the track, no links. The programs are `Programs.remove`'s.

        Comes before that one: the frame belongs to nobody, and only an empty track lets go of it.
        """
        numbers, self._links = self._links, set()
        self._write_fan()  # With no links left: each would make the clock anew.
        for number in numbers:
            self.remove_link(number)
        self.close()

    # ------------------------------------------------------------------ maps
    def _read(self, number: int) -> dict[str, Any]:
        assert number in range(layout.LINKS_MAX)
        data = self._programs.maps["x0_links"].get(struct.pack("I", number))
        assert data is not None
        return layout.LINK.unpack(data)

    def _write(self, number: int, values: dict[str, Any]) -> None:
        self._programs.maps["x0_links"].put(struct.pack("I", number), layout.LINK.pack(**values))

    def _state(self, number: int) -> bytes:
        data = self._programs.maps["x0_states"].get(struct.pack("I", number))
        assert data is not None
        return data

    def _forget_port(self, number: int, port: bytes) -> None:
        if self._ports.get(port) == number:
            del self._ports[port]
            self._programs.maps["x0_ports"].delete(port)

    def _forget_choice(self, number: int) -> None:
        """A link that is gone is nobody's alternate, whoever gets its number next."""
        table = self._programs.maps["x0_alternates"]
        for held in self._alternates.values():
            gone = [k for k, v in held.items() if layout.ALTERNATE.unpack(v)["link"] == number]
            for key in gone:
                table.delete(key)
                del held[key]

    def _arm(self, number: int) -> None:
        if VERDICTS in self._programs.programs:
            done = self._programs.run(VERDICTS, context=layout.ARMED.pack(link=number))
            assert done.verdict == 0, done.verdict

    def _read_fan(self) -> Iterator[int]:
        for at in range(min(self._settings()["fan"], layout.LINKS_MAX)):
            beat = self._programs.maps["x0_fan"].get(struct.pack("I", at)) or b""
            yield layout.BEAT.unpack(beat)["link"]

    def _read_alternates(self) -> dict[int, dict[bytes, bytes]]:
        table = self._programs.maps["x0_alternates"]
        found: dict[int, dict[bytes, bytes]] = {}
        for key in table.keys():  # noqa: SIM118
            link = layout.ROUTE.unpack(key)["link"]
            found.setdefault(link, {})[key] = table.get(key) or b""
        return found

    def _write_fan(self) -> None:
        fan = self._programs.maps["x0_fan"]
        links = sorted(self._links)
        for at, link in enumerate(links):
            fan.put(struct.pack("I", at), layout.BEAT.pack(link=link, one=1))
        held = self._settings()
        if not links:
            self._write_settings(fan=0, generation=0)
            clock.remove(self._netlink)
        elif held["fan"] and held["period_ns"] == self._turn_us(len(links)) * 1000:
            self._write_settings(fan=len(links))
        else:
            self._run_clock()

    def _run_clock(self) -> None:
        """Lay the track and put a new frame on it; an old one is dropped at its next turn."""
        near, far = clock.create(self._netlink)
        period_us = self._turn_us(len(self._links))
        clock.pace(self._netlink, near, period_us)
        self._programs.attach_clock(far)
        self._write_settings(
            fan=len(self._links),
            period_ns=period_us * 1000,
            clock_ifindex=near,
            generation=time.monotonic_ns() // 1000 & 0x7FFFFFFF | 1,
        )
        self._programs.run(START, _FRAME)

    def _turn_us(self, links: int) -> int:
        """At most FAN hellos go out at one turn: with more links the clock turns faster."""
        return self._pace.hello_us * min(links, layout.FAN) // max(links, 1) or 1 * MS

    def _turned(self) -> int:
        return int(layout.TURNS.unpack(self._programs.maps["x0_turns"].get(_ZERO) or b"")["turns"])

    def _settings(self) -> dict[str, Any]:
        return layout.SETTINGS.unpack(self._programs.maps["x0_settings"].get(_ZERO) or b"")

    def _write_settings(self, **fields: int) -> None:
        values = self._settings() | fields
        self._programs.maps["x0_settings"].put(_ZERO, layout.SETTINGS.pack(**values))

    def _set_settings(self) -> None:
        self._write_settings(
            renewed_ns=time.monotonic_ns(),
            agent_ns=self._pace.agent_s * 1_000_000_000,
            stand_down_ns=self._pace.stand_down_s * 1_000_000_000,
        )


_COUNTS: Final = (
    "peer_incarnation", "peer_sent", "received_then", "peer_told", "peer_received",
    "answers", "requests", "gaps",
)  # fmt: skip
_32_BITS: Final = 0xFFFFFFFF
_KINDS: Final = frozenset(EventKind)
_NO_LINK: Final[dict[str, Any]] = {
    "receive_key": (0,) * 4,
    "send_key": (0,) * 4,
    "local_mac": b"",
    "peer_mac": b"",
    "local": b"",
    "peer": b"",
}


def _check(link: Link) -> None:
    wrong = ""
    if link.number not in range(layout.LINKS_MAX) or link.peer_number not in range(
        layout.LINKS_MAX
    ):
        wrong = f"link number {link.number} or {link.peer_number}: 0 to {layout.LINKS_MAX - 1}"
    elif not (link.local.is_link_local and link.peer.is_link_local):
        wrong = f"{link.local} or {link.peer} is no link-local address"
    elif len(link.local_mac) != 6 or len(link.peer_mac) != 6:
        wrong = "a hardware address that is not 6 bytes long"
    if wrong:
        raise KernelRefused("X0-KRN-010", wrong, "this interface can't be a link in kernel mode")


def _with_key(values: dict[str, Any], name: str, slot: int, key: bytes) -> dict[str, Any]:
    assert (slot in (0, 1), len(key)) == (True, KEY_BYTES)
    keys = list(values[name])
    keys[2 * slot : 2 * slot + 2] = struct.unpack("<2Q", key)
    return values | {name: keys}


def _port(ifindex: int, mac: bytes) -> bytes:
    return layout.PORT_KEY.pack(ifindex=ifindex, mac=mac)


def _port_of(values: dict[str, Any]) -> bytes:
    return _port(values["ifindex"], values["peer_mac"])


def keys_of(secret: bytes, initiator: bool) -> tuple[bytes, bytes]:
    """Send and receive key out of 32 exported bytes; the initiator sends under the first half."""
    halves: Sequence[bytes] = (secret[:KEY_BYTES], secret[KEY_BYTES : 2 * KEY_BYTES])
    return (halves[0], halves[1]) if initiator else (halves[1], halves[0])
