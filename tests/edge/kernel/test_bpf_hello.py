"""Hellos in the kernel, one frame at a time: which are answered, which accepted, which dropped.

Source: RFC 5082 (hop limit), RFC 4303 section 3.4.3 (window), SipHash's paper, appendix A (vector).
"""

from __future__ import annotations

import struct
import time
from ipaddress import IPv6Address

import pytest

from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.kernel_world import World, hello, hello_frame, siphash
from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.layout import Kind
from x0tta6bl4.edge.kernel.libbpf import Ring

pytestmark = pytest.mark.netns
WAYS = (("x0_ingress", kw.TX, kw.DROP), ("x0_generic", kw.REDIRECT, kw.SHOT))


def test_the_tag_is_siphash_2_4() -> None:
    key = struct.unpack("<2Q", bytes(range(16)))
    assert siphash((key[0], key[1]), bytes(range(15))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize(("program", "answered", "dropped"), WAYS)
def test_a_request_is_answered_under_our_key(
    world: World, program: str, answered: int, dropped: int
) -> None:
    world.link()
    run = world.run(program, hello_frame(hello(sequence=4, sent_ns=1234, sent=10)))
    assert run.verdict == answered
    assert (run.data[:6], run.data[6:12]) == (kw.PEER, kw.MINE)
    assert run.data[22:38] == kw.LOCAL.packed
    assert run.data[38:54] == kw.REMOTE.packed
    said = run.data[62:]
    answer = layout.HELLO.unpack(said)
    assert answer["tag"] == siphash(kw.SEND, said[:-8])
    assert answer["kind"] == Kind.ANSWER
    assert (answer["session"], answer["incarnation"], answer["sequence"]) == (9, 5, 1)
    assert answer["sent_ns"] == 1234
    assert (answer["heard"], answer["told"], answer["flags"]) == (1, 10, 1)
    assert world.counted() == {"HELLO_ANSWERED": 1}


@pytest.mark.parametrize(("program", "answered", "dropped"), WAYS)
def test_an_answer_is_proof_of_life(
    world: World, program: str, answered: int, dropped: int
) -> None:
    world.link()
    world.state(asked=3)
    before = time.monotonic_ns()
    sent_ns = before - 400_000
    frame = hello_frame(hello(kind=Kind.ANSWER, sent_ns=sent_ns, received=8, told=9))
    assert world.run(program, frame).verdict == dropped
    state = world.state()
    assert before < state["answered_ns"] < time.monotonic_ns()
    assert state["answers"] == state["good"] == 1
    assert state["answered_at"] == 3
    assert 400_000 <= state["rtt_ns"] == state["rtt_last_ns"] < 100_000_000
    assert (state["peer_received"], state["peer_told"]) == (8, 9)
    assert world.counted() == {"HELLO_ACCEPTED": 1}


def _reflected() -> bytes:
    """Our own request, as it left."""
    return hello_frame(hello(kw.SEND), source=kw.LOCAL, target=kw.REMOTE)


BAD = {
    "forged": (hello_frame(hello(tag=1)), "HELLO_FORGED"),
    "other key": (hello_frame(hello(kw.SEND)), "HELLO_FORGED"),
    "empty slot": (hello_frame(hello((0, 0), slot=1)), "HELLO_FORGED"),
    "no such slot": (hello_frame(hello(slot=2)), "HELLO_FORGED"),
    "reflected": (_reflected(), "HELLO_MISADDRESSED"),
    "reflected, readdressed": (hello_frame(hello(kw.SEND)), "HELLO_FORGED"),
    "unknown link": (hello_frame(hello(session=8)), "HELLO_MISADDRESSED"),
    "impossible link": (hello_frame(hello(session=1 << 31)), "HELLO_MISADDRESSED"),
    "other source": (hello_frame(hello(), source=IPv6Address("fe80::3")), "HELLO_MISADDRESSED"),
    "other target": (hello_frame(hello(), target=IPv6Address("fe80::3")), "HELLO_MISADDRESSED"),
    "routed": (hello_frame(hello(), hops=254), "HELLO_MISADDRESSED"),
    "truncated": (hello_frame(hello())[:-1], "HELLO_TRUNCATED"),
    "no payload": (hello_frame(b""), "HELLO_TRUNCATED"),
    "longer": (hello_frame(hello() + bytes(8)), "HELLO_TRUNCATED"),
    "other version": (hello_frame(hello(version=2)), "HELLO_TRUNCATED"),
    "other kind": (hello_frame(hello(kind=3)), "HELLO_TRUNCATED"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize(("program", "answered", "dropped"), WAYS)
def test_a_bad_hello_is_dropped_and_counted(
    world: World, program: str, answered: int, dropped: int, case: str
) -> None:
    frame, reason = BAD[case]
    world.link()
    before = world.state()
    assert world.run(program, frame).verdict == dropped
    assert world.counted() == {reason: 1}
    after = world.state()
    assert after.pop("refused") == (0 if "link" in case or reason == "HELLO_TRUNCATED" else 1)
    before.pop("refused")
    assert after == before


@pytest.mark.parametrize(("program", "answered", "dropped"), WAYS)
def test_a_hello_with_any_bit_turned_is_dropped(
    world: World, program: str, answered: int, dropped: int
) -> None:
    good = hello(sequence=5, sent_ns=6, sent=7, told=8, received=9, heard=10)
    world.link()
    before = world.state() | {"refused": 0}
    for bit in range(8 * len(good)):
        turned = (int.from_bytes(good) ^ 1 << bit).to_bytes(len(good))
        assert world.run(program, hello_frame(turned)).verdict == dropped, bit
    assert world.state() | {"refused": 0} == before
    assert world.counted()["HELLO_FORGED"] > 8 * 40
    assert world.run(program, hello_frame(good)).verdict == answered


def test_a_hello_on_another_interface_is_dropped(world: World) -> None:
    world.link(ifindex=2)
    assert world.run("x0_ingress", hello_frame(hello())).verdict == kw.DROP
    assert world.counted() == {"HELLO_MISADDRESSED": 1}


def test_each_sequence_number_counts_once_in_a_window_of_64(world: World) -> None:
    world.link()

    def heard(sequence: int, kind: Kind = Kind.REQUEST) -> bool:
        before = world.counted().get("HELLO_REPLAYED", 0)
        world.run("x0_ingress", hello_frame(hello(sequence=sequence, kind=kind)))
        return world.counted().get("HELLO_REPLAYED", 0) == before

    assert heard(100)
    assert not heard(100)
    assert heard(37)  # 63 behind: the last in the window
    assert not heard(37)
    assert not heard(36)
    assert heard(99)
    assert heard(101)
    assert not heard(99)
    assert heard(200)  # more than a window ahead: nothing of before is left
    assert not heard(100)
    assert heard(199)
    assert heard(100, Kind.ANSWER)  # a window for each kind
    assert not heard(100, Kind.ANSWER)
    # 37 and 99 were sent before the first; from 101 to 200 there are 98 between, and 199 came.
    assert world.state()["gaps"] == 97


def test_a_new_incarnation_begins_anew_and_an_old_one_is_a_replay(world: World) -> None:
    world.link()
    assert world.run("x0_ingress", hello_frame(hello(sequence=9))).verdict == kw.TX
    assert world.run("x0_ingress", hello_frame(hello(sequence=1, incarnation=2))).verdict == kw.TX
    assert world.run("x0_ingress", hello_frame(hello(sequence=10))).verdict == kw.DROP
    assert world.counted() == {"HELLO_ANSWERED": 2, "HELLO_REPLAYED": 1}
    assert world.state()["peer_incarnation"] == 2


def test_a_neighbour_can_not_fill_the_ring_of_events_with_new_incarnations(world: World) -> None:
    ring = Ring(world.programs.library, world.programs.maps["x0_events"])
    ring.read()
    world.link()
    for incarnation in range(1, 2001):  # The ring holds some 2,000 events of all links.
        world.run("x0_ingress", hello_frame(hello(incarnation=incarnation)))
    told = ring.read()
    ring.close()
    assert told == []
    assert world.counted() == {"HELLO_ANSWERED": 2000}


def test_both_slots_are_accepted_and_the_chosen_one_is_sent_under(world: World) -> None:
    other, mine = (3, 4), (5, 6)
    world.link(receive_key=(*kw.RECEIVE, *other), send_key=(*kw.SEND, *mine), send_slot=1)
    assert world.run("x0_ingress", hello_frame(hello())).verdict == kw.TX
    run = world.run("x0_ingress", hello_frame(hello(other, slot=1, sequence=2)))
    said = run.data[62:]
    assert said[2] == 1
    assert layout.HELLO.unpack(said)["tag"] == siphash(mine, said[:-8])


def test_without_the_agent_hellos_say_so_and_then_end(world: World) -> None:
    world.link()
    world.lease(age_s=10)
    run = world.run("x0_ingress", hello_frame(hello()))
    assert (run.verdict, layout.HELLO.unpack(run.data[62:])["flags"]) == (kw.TX, 0)
    world.lease(age_s=61)
    assert world.run("x0_ingress", hello_frame(hello(sequence=2))).verdict == kw.DROP
    assert world.counted() == {"HELLO_ANSWERED": 1, "HELLO_STOOD_DOWN": 1}


def test_other_traffic_passes(world: World) -> None:
    world.link()
    for frame in (
        kw.ethernet(kw.ipv6(kw.udp(bytes(56), port=53), kw.REMOTE, kw.LOCAL)),
        kw.ethernet(kw.ipv6(bytes(64), kw.REMOTE, kw.LOCAL, next=58)),
        kw.ethernet(kw.ipv6(kw.udp(hello()), IPv6Address("fd00::1"), IPv6Address("fd00::2"))),
        kw.MINE + kw.PEER + b"\x08\x06" + bytes(46),
        kw.MINE + kw.PEER + b"\x08\x00" + bytes(46),
    ):
        assert world.run("x0_ingress", frame).verdict == kw.PASS
        assert world.run("x0_generic", frame).verdict == kw.OK
    assert world.counted() == {}
    assert world.state()["received"] == 3


def test_the_tenth_good_answer_of_a_dead_link_is_told(world: World) -> None:
    ring = Ring(world.programs.library, world.programs.maps["x0_events"])
    ring.read()
    world.link(dead_ns=60 * kw.SECOND)  # however slow this machine is
    world.state(downs=1)
    now = time.monotonic_ns()
    for sequence in range(1, 13):
        frame = hello_frame(hello(kind=Kind.ANSWER, sequence=sequence, sent_ns=now))
        world.run("x0_ingress", frame)
    told = [layout.EVENT.unpack(one) for one in ring.read()]
    ring.close()
    assert [(one["link"], one["kind"]) for one in told] == [(7, layout.EventKind.GOOD)]
    assert world.state()["downs"] == 1, "only user space revives"
