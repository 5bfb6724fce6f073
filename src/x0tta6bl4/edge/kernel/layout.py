"""The structs and numbers that the programs in `bpf/` share with us, each once.

`bpf/layout.h` says what every field means and who writes it; a test compares both by the object's
BTF.  Everything is packed and little-endian.
"""

from __future__ import annotations

import enum
import struct
from typing import Any, Final

LAYOUT: Final = 2
"""`X0_LAYOUT`: pinned maps with another number are not adopted."""
LINKS_MAX: Final = 256
FAN: Final = 32
PORT: Final = 8464
VERSION: Final = 1
GOOD: Final = 10
SEGMENTS_MAX: Final = 16
DIVERTED: Final = 0x5830


class Kind(enum.IntEnum):
    """Of a hello."""

    REQUEST = 1
    ANSWER = 2


class Flag(enum.IntFlag):
    """Of a link (`enum x0_link_flag`)."""

    ACTIVE = 1
    DECLARED_DEAD = 2
    MEASURE_TCP = 4


class FilterFlag(enum.IntFlag):
    """Of the filter (`enum x0_filter_flag`)."""

    ON = 1
    SOURCES = 2
    NEIGHBOURS = 4


class EventKind(enum.IntEnum):
    """What the kernel says about a link (`enum x0_event_kind`)."""

    SUSPECTED = 1
    CLEARED = 2
    DOWN = 3
    GOOD = 4


class Reason(enum.IntEnum):
    """Why a packet was dropped or noted (`enum x0_reason`)."""

    HELLO_ANSWERED = 0
    HELLO_ACCEPTED = 1
    HELLO_TRUNCATED = 2
    HELLO_MISADDRESSED = 3
    HELLO_FORGED = 4
    HELLO_REPLAYED = 5
    HELLO_STOOD_DOWN = 6
    FILTER_PASSED = 7
    FILTER_SOURCE = 8
    FILTER_STRANGER = 9
    FILTER_NO_MEMBER = 10
    FILTER_DENIED = 11
    FILTER_RATE = 12
    FILTER_FOREIGN = 13
    DIVERT_NO_ALTERNATE = 14
    DIVERT_TOO_BIG = 15
    DIVERT_REFUSED = 16
    CLOCK_STRAY = 17
    EVENT_LOST = 18


class Layout:
    """One struct of `bpf/layout.h`.

    Args:
        name: as in C.
        fields: name and form of each in the language of `struct`, without gaps.
    """

    __slots__ = ("_codec", "fields", "name")

    def __init__(self, name: str, **fields: str) -> None:
        self.name = name
        self.fields = fields
        self._codec = struct.Struct("<" + "".join(fields.values()))

    @property
    def size(self) -> int:
        """In bytes."""
        return self._codec.size

    def pack(self, **values: Any) -> bytes:
        """Bytes of a struct; what is not named is zero, an array is a sequence."""
        assert not values.keys() - self.fields.keys()
        flat: list[Any] = []
        for name, form in self.fields.items():
            if form.endswith("s"):
                flat.append(values.get(name, b""))
            elif len(form) > 1:
                flat += values.get(name, (0,) * int(form[:-1]))
            else:
                flat.append(values.get(name, 0))
        return self._codec.pack(*flat)

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Fields by name; an array is a tuple."""
        flat = iter(self._codec.unpack(data))
        return {
            name: tuple(next(flat) for _ in range(int(form[:-1])))
            if len(form) > 1 and not form.endswith("s")
            else next(flat)
            for name, form in self.fields.items()
        }


HELLO: Final = Layout(
    "x0_hello",
    version="B", kind="B", slot="B", flags="B", session="I",
    incarnation="Q", sequence="Q", sent_ns="Q",
    sent="I", told="I", received="I", heard="I", tag="Q",
)  # fmt: skip
LINK: Final = Layout(
    "x0_link",
    receive_key="4Q", send_key="4Q", incarnation="Q", dead_ns="Q", suspect_ns="Q", late_ns="Q",
    ifindex="I", peer_session="I", forgiven="I", flags="I", send_slot="I", mtu="I",
    local_mac="6s", peer_mac="6s", unanswered="I", local="16s", peer="16s",
)  # fmt: skip
STATE: Final = Layout(
    "x0_state",
    timer="16s", answered_ns="Q", answered_at="Q", rtt_ns="Q", rtt_last_ns="Q", good="Q",
    answers="Q", requests="Q", top="2Q", window="2Q", gaps="Q", peer_incarnation="Q", answered="Q",
    peer_sent="I", peer_told="I", peer_received="I", peer_heard="I",
    peer_flags="I", received_then="I", asked_then="Q", asked="Q",
    wake_ns="Q", floor_ns="Q", suspected_ns="Q", suspicions="Q", late="Q", downs="I", told="I",
    sent="Q", received="Q", diverted="Q", duplicated="Q", lost="Q", repaired="Q",
    tcp="Q", retransmitted="Q", refused="Q",
)  # fmt: skip
PORT_KEY: Final = Layout("x0_port", ifindex="I", mac="6s", reserved="H")
ROUTE: Final = Layout("x0_route", prefix="I", link="I", target="16s")
ALTERNATE: Final = Layout(
    "x0_alternate", link="I", segments="I", source="16s", segment=f"{16 * SEGMENTS_MAX}s"
)
SETTINGS: Final = Layout(
    "x0_settings",
    renewed_ns="Q", agent_ns="Q", stand_down_ns="Q", period_ns="Q",
    layout="I", clock_ifindex="I", fan="I", generation="I", build="I", reserved="I",
)  # fmt: skip
BEAT: Final = Layout("x0_beat", link="I", one="I")
TURNS: Final = Layout("x0_turns", reserved="Q", turns="Q", cursor="I", unused="I")
EVENT: Final = Layout("x0_event", link="I", kind="I", at_ns="Q", silent_ns="Q")
FILTER: Final = Layout("x0_filter", prefix="8s", mask="8s", flags="I", reserved="I")
PREFIX: Final = Layout("x0_prefix", prefix="I", source="16s")
MEMBER: Final = Layout(
    "x0_member", cost_ns="Q", burst_ns="Q", due_ns="Q", dropped="Q", denied="I", reserved="I"
)
FLOW: Final = Layout("x0_flow", source="16s", target="16s", source_port="H", target_port="H")
ARMED: Final = Layout("x0_armed", link="I")
LAYOUTS: Final = (
    HELLO, LINK, STATE, PORT_KEY, ROUTE, ALTERNATE, SETTINGS, BEAT, TURNS, EVENT, FILTER, PREFIX,
    MEMBER, FLOW, ARMED,
)  # fmt: skip
