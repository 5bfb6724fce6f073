"""Hops over real sockets: direct, relayed, dialled back, to the authority, refused, cut."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from tests.fakes import hop_process
from tests.fakes.hop_mesh import WEB, End, HopMesh
from x0tta6bl4.core.machine import Instant
from x0tta6bl4.edge.hop.setup import LinkSeal
from x0tta6bl4.runtime.loop.hops import HopLimits
from x0tta6bl4.runtime.loop.legs import Leg
from x0tta6bl4.runtime.loop.poll import READ
from x0tta6bl4.wire.hop import (
    AUTHORITY,
    CHANNEL,
    ENROL,
    HOP,
    Header,
    Hop,
    pack_header,
    pack_hop,
)
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import AuthorityPathItem, NodeItem


class Stub(NamedTuple):
    """A node that runs elsewhere."""

    port: int
    incarnation: int


@pytest.fixture
def mesh() -> Iterator[HopMesh]:
    made = HopMesh()
    yield made
    made.close()


def line(mesh: HopMesh, names: str) -> None:
    """Nodes in a row, each linked to the next."""
    for name in names:
        mesh.node(name)
    for one, two in itertools.pairwise(names):
        mesh.link(one, two)


def says(mesh: HopMesh, end: End, data: bytes) -> None:
    """Whether the other end echoes."""
    had = len(end.received)
    end.send(data)
    mesh.run(lambda: len(end.received) - had >= len(data) or end.ended)
    assert bytes(end.received[had:]) == data


def until_ended(mesh: HopMesh, end: End) -> None:
    mesh.run(lambda: end.ended)


def refused(mesh: HopMesh, end: End) -> str | None:
    """The reason that comes instead of TLS."""
    mesh.run(lambda: end.refusal)
    return end.refusal


def raw(mesh: HopMesh, name: str, data: bytes) -> End:
    """A stranger's connection to a data port."""
    sock = socket.create_connection(("127.0.0.1", mesh.nodes[name].port))
    sock.setblocking(False)
    end = End(mesh.loop, sock)
    mesh.ends.append(end)
    end.send(data)
    return end


@pytest.mark.parametrize("names", ["a", "ab", "abc", "abcd"])
def test_a_circuit_reaches_its_node(mesh: HopMesh, names: str) -> None:
    line(mesh, names)
    end = mesh.open(names)
    says(mesh, end, b"hello")
    last = mesh.nodes[names[-1]]
    assert last.previous == [(names[-2] if len(names) > 1 else "a", WEB)]
    end.finish()
    mesh.run(lambda: end.ended == "fin")
    mesh.run(lambda: all(not n.hops.statistics().relays for n in mesh.nodes.values()))
    assert mesh.nodes["a"].hops.statistics().circuits == 0
    assert [n.notices for n in mesh.nodes.values()] == [[] for _ in names]


def test_bytes_through_two_relays_are_the_same_and_in_order(mesh: HopMesh) -> None:
    line(mesh, "abcd")
    end = mesh.open("abcd")
    data = random.Random("relay").randbytes(8 << 20)
    end.send(data)
    end.finish()
    mesh.run(lambda: end.ended, 30)
    assert end.ended == "fin", "the half-close travelled and the answer came after it"
    assert bytes(end.received) == data
    assert mesh.nodes["b"].hops.statistics().bytes_relayed == 2 * len(data)


def test_a_slow_reader_stops_the_sender(mesh: HopMesh) -> None:
    line(mesh, "abc")
    end = mesh.open("abc")
    says(mesh, end, b"x")
    far = mesh.nodes["c"].ends[0]
    far.pause()
    end.send(bytes(64 << 20))
    mesh.settle(1.0)
    taken = (64 << 20) - len(end.out)
    print(f"taken in by sockets and the relay: {taken >> 10} KiB")
    assert taken < 48 << 20, "kernel buffers and one pipe, not the whole"


def test_a_reset_travels_as_a_reset_both_ways(mesh: HopMesh) -> None:
    line(mesh, "abcd")
    for back in (False, True):
        end = mesh.open("abcd")
        says(mesh, end, b"x")
        far = mesh.nodes["d"].ends[-1]
        one, two = (far, end) if back else (end, far)
        one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()
        until_ended(mesh, two)
        assert two.ended == "reset"
    assert any(kind == "relay" for kind, _ in mesh.nodes["b"].notices)


def test_a_stopping_relay_resets_both_ends(mesh: HopMesh) -> None:
    line(mesh, "abc")
    end = mesh.open("abc")
    says(mesh, end, b"x")
    far = mesh.nodes["c"].ends[0]
    mesh.nodes["b"].hops.close()
    mesh.run(lambda: end.ended and far.ended)
    assert (end.ended, far.ended) == ("reset", "reset")
    mesh.nodes.pop("b").udp.close()


def test_a_relay_leaves_nothing_to_the_collector(mesh: HopMesh) -> None:
    line(mesh, "abc")
    mesh.open("abc")  # The links' first use.
    gc.collect()
    gc.disable()
    try:
        end = mesh.open("abc")
        says(mesh, end, b"x")
        assert not [leg for leg in gc.get_objects() if type(leg) is Leg]
    finally:
        gc.enable()


@contextmanager
def relay_process(mesh: HopMesh) -> Iterator[subprocess.Popen[str]]:
    """Node b in a process of its own, between a and c in this one."""
    mesh.node("a")
    mesh.node("c")
    child = subprocess.Popen(
        [sys.executable, "-m", hop_process.__name__, "b", "77"],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child, child.stdin, child.stdout:
        try:
            stub = Stub(int(child.stdout.readline()), 77)
            mesh.nodes["b"] = stub  # type: ignore[assignment]
            items = [mesh.item("b", "a"), mesh.item("b", "c")]
            child.stdin.write(msgspec.json.encode(items).decode() + "\n")
            child.stdin.flush()
            assert child.stdout.readline() == "up\n"
            for name in "ac":
                mesh.nodes[name].hops.neighbour_set(mesh.item(name, "b"))
            yield child
        finally:
            child.kill()
            mesh.nodes.pop("b", None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_relay_is_a_reset_at_both_ends(mesh: HopMesh, number: int) -> None:
    """Without its help: a FIN would make what came so far look like the whole."""
    with relay_process(mesh) as child:
        end = mesh.open("abc")
        says(mesh, end, b"x")
        far = mesh.nodes["c"].ends[0]
        began = time.monotonic()
        child.send_signal(number)
        mesh.run(lambda: end.ended and far.ended)
        print(f"noticed after {(time.monotonic() - began) * 1e3:.1f} ms")
        assert (end.ended, far.ended) == ("reset", "reset")


# ---------------------------------------------------------------------- refusals
def test_refusals_come_back_with_their_reason_from_any_hop(mesh: HopMesh) -> None:
    line(mesh, "abcd")
    mesh.node("e")
    mesh.nodes["c"].deny.add(("b", "d"))
    for path, reason in (
        ("abcd", "c: link not confirmed"),
        ("abce", "c: no link to e"),
        ("abe", "b: no link to e"),
    ):
        end = mesh.open(path)
        end.send(b"\x16\x03\x01 a client hello that comes at once" * 30)
        assert refused(mesh, end) == reason
        until_ended(mesh, end)
    ends, reasons = mesh.dial("ae")
    mesh.run(lambda: reasons)
    assert reasons == ["no link to e"]
    assert not ends


def test_a_hop_that_ends_here_is_held_to_its_link_too(mesh: HopMesh) -> None:
    line(mesh, "abc")
    mesh.nodes["b"].deny.add(("a", "b"))
    assert refused(mesh, mesh.open("ab")) == "b: link not confirmed"
    says(mesh, mesh.open("abc"), b"x")
    mesh.nodes["c"].deny.add(("b", "c"))
    assert refused(mesh, mesh.open("abc")) == "c: link not confirmed"


def test_the_bound_of_hops_per_neighbour_refuses_and_is_given_back(mesh: HopMesh) -> None:
    mesh.node("a")
    mesh.node("b", HopLimits(per_neighbour_max=3))
    mesh.node("c")
    mesh.link("a", "b")
    mesh.link("b", "c")
    ends = [mesh.open("abc") for _ in range(3)]
    for end in ends:
        says(mesh, end, b"x")
    assert refused(mesh, mesh.open("ab")) == "b: too many hops from a"
    ends[0].close()
    mesh.run(lambda: mesh.nodes["b"].hops.statistics().relays == 2)
    says(mesh, mesh.open("abc"), b"y")


def test_a_cancelled_dial_answers_nothing(mesh: HopMesh) -> None:
    line(mesh, "ab")
    answers: list[object] = []
    for path in (("a", "b"), ("a",)):
        dialling = mesh.nodes["a"].hops.dial(
            tuple(NodeName(n) for n in path), WEB, lambda *answer: answers.append(answer)
        )
        dialling.cancel()
    mesh.settle(0.2)
    assert answers == []


def test_hostile_frames_get_nothing_while_others_pass(mesh: HopMesh) -> None:
    line(mesh, "abc")
    end = mesh.open("abc")
    draw = random.Random("hostile")
    item = mesh.item("a", "b")
    a_to_b = mesh.nodes["a"].hops.neighbours.get(NodeName("b"))
    assert a_to_b is not None
    good = a_to_b.seal
    wrong = LinkSeal(item.link, b"\x07" * 32, item.rx_setup, Instant(1 << 50))
    reflected = LinkSeal(item.link, item.rx_setup, item.tx_setup, Instant(1 << 50))
    hop = pack_hop(Hop(("b", "c"), WEB))
    used = good.seal(HOP, hop)
    spent = raw(mesh, "b", used)
    mesh.run(lambda: len(mesh.nodes["c"].previous) == 2)
    spent.close()
    hostile: list[Callable[[], bytes]] = [
        lambda: wrong.seal(HOP, hop),
        lambda: reflected.seal(HOP, hop),
        lambda: used,
        lambda: draw.randbytes(draw.randrange(1, 200)),
        lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
        lambda: pack_header(Header(HOP, item.link, 1 << 51, 64)) + draw.randbytes(64),
        lambda: pack_header(Header(HOP, draw.getrandbits(32), 5, 64)) + draw.randbytes(64),
        lambda: pack_header(Header(HOP, item.link, 1 << 51, 4097)) + draw.randbytes(4097),
        lambda: good.seal(HOP, pack_hop(Hop(("c",), WEB))),
        lambda: good.seal(HOP, draw.randbytes(30)),
        lambda: good.seal(HOP, pack_hop(Hop(("b", "a"), WEB))),
        lambda: good.seal(HOP, hop)[:-1],
        lambda: b"X0\x01\x80\x00\x00",
        lambda: b"",
    ]
    before = mesh.nodes["c"].previous.copy()
    strangers = []
    for turn in range(300):
        stranger = raw(mesh, "b", hostile[turn % len(hostile)]())
        stranger.finish()
        strangers.append(stranger)
        if turn % 10 == 0:
            says(mesh, end, b"%d" % turn)
    mesh.run(lambda: all(s.ended for s in strangers), 20)
    assert mesh.nodes["c"].previous == before, "0 accepted"
    assert mesh.nodes["b"].previous == []
    assert not [s for s in strangers if s.received and s.refusal is None]
    statistics = mesh.nodes["b"].hops.statistics()
    print(f"hostile {statistics.hostile}, refused {statistics.refused} of 300")
    assert statistics.pending == 0
    says(mesh, mesh.open("abc"), b"still here")
    assert len(mesh.nodes["b"].notices) <= 20, "the log is not filled by strangers"


def test_half_frames_are_dropped_in_time_and_make_room_for_others(mesh: HopMesh) -> None:
    mesh.node("a")
    mesh.node("b", HopLimits(pending_max=8, setup_us=400_000))
    mesh.link("a", "b")
    idle = [raw(mesh, "b", b"X0\x01\x01") for _ in range(20)]
    mesh.run(lambda: mesh.nodes["b"].hops.statistics().evicted >= 12)
    assert mesh.nodes["b"].hops.statistics().pending <= 8
    says(mesh, mesh.open("ab"), b"x")
    mesh.run(lambda: all(end.ended for end in idle), 3)


# ---------------------------------------------------------------------- links come and go
@pytest.mark.parametrize("gone", [False, True])
def test_a_cut_resets_everything_to_and_from_a_neighbour_and_nothing_else(
    mesh: HopMesh, gone: bool
) -> None:
    line(mesh, "abc")
    mesh.node("d")
    mesh.link("d", "b")
    doomed = [mesh.open("abc"), mesh.open("ab"), mesh.open("cba")]
    others = [mesh.open("db"), mesh.open("dbc")]
    for end in doomed + others:
        says(mesh, end, b"x")
    b = mesh.nodes["b"].hops
    assert (b.neighbour_gone if gone else b.cut)(NodeName("a"), "node revoked") == 3
    mesh.run(lambda: all(end.ended for end in doomed))
    mesh.run(lambda: mesh.nodes["b"].hops.statistics().circuits == 1)
    for end in others:
        says(mesh, end, b"still here")
    if gone:
        assert refused(mesh, mesh.open("ab")) == "b: setup frame not opened"
        assert refused(mesh, mesh.open("dba")) == "b: no link to a"
    else:
        says(mesh, mesh.open("ab"), b"anew")


def test_a_withdrawn_link_takes_no_more_hops_and_comes_back_with_fresh_keys(
    mesh: HopMesh,
) -> None:
    line(mesh, "ab")
    end = mesh.open("ab")
    says(mesh, end, b"x")
    mesh.nodes["b"].hops.neighbour_gone(NodeName("a"))
    mesh.run(lambda: end.ended)
    assert refused(mesh, mesh.open("ab")) == "b: setup frame not opened"
    mesh.link("a", "b", generation=1)
    says(mesh, mesh.open("ab"), b"y")


def test_the_keys_before_the_newest_hold_for_two_seconds(mesh: HopMesh) -> None:
    line(mesh, "ab")
    mesh.nodes["b"].hops.neighbour_set(mesh.item("b", "a", generation=1))
    says(mesh, mesh.open("ab"), b"sealed under the old keys")
    mesh.settle(2.1)
    assert refused(mesh, mesh.open("ab"))
    mesh.nodes["a"].hops.neighbour_set(mesh.item("a", "b", generation=1))
    says(mesh, mesh.open("ab"), b"sealed under the new keys")


def test_a_link_given_again_with_its_old_keys_takes_no_old_frame(mesh: HopMesh) -> None:
    line(mesh, "ab")
    item = mesh.item("a", "b")
    frame = LinkSeal(item.link, item.tx_setup, item.rx_setup, Instant(1 << 50)).seal(
        HOP, pack_hop(Hop(("b",), WEB))
    )
    raw(mesh, "b", frame)
    mesh.run(lambda: mesh.nodes["b"].previous)
    mesh.nodes["b"].hops.neighbour_gone(NodeName("a"))
    mesh.nodes["b"].hops.neighbour_set(mesh.item("b", "a"))
    again = raw(mesh, "b", frame)
    mesh.run(lambda: again.refusal)
    assert len(mesh.nodes["b"].previous) == 1


# ---------------------------------------------------------------------- who can't be dialled
def test_a_node_behind_a_nat_is_asked_to_dial_back(mesh: HopMesh) -> None:
    for name in "abc":
        mesh.node(name)
    mesh.link("a", "b")
    mesh.link("b", "c", one_dials=False)  # b can't dial c, c dials b.
    mesh.run(lambda: mesh.nodes["b"].hops.channels.has(NodeName("c")))
    for path in ("abc", "bc", "cba"):
        says(mesh, mesh.open(path), b"through " + path.encode())
    assert mesh.nodes["b"].hops.statistics().asked == 2
    assert mesh.nodes["c"].previous == [("b", WEB), ("b", WEB)]


def test_an_endpoint_that_does_not_answer_is_asked_to_dial_back_too(mesh: HopMesh) -> None:
    line(mesh, "ab")
    mesh.run(lambda: mesh.nodes["a"].hops.channels.has(NodeName("b")))
    item = mesh.item("a", "b")
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    where = f"127.0.0.1:{closed.getsockname()[1]}"
    mesh.nodes["a"].hops.neighbour_set(
        type(item)(
            **{f: getattr(item, f) for f in item.__struct_fields__} | {"endpoints": (where,)}
        )
    )
    says(mesh, mesh.open("ab"), b"x")
    assert mesh.nodes["a"].hops.statistics().asked == 1
    closed.close()


def test_nobody_is_asked_without_a_channel(mesh: HopMesh) -> None:
    mesh.node("a")
    mesh.node("b")
    mesh.link("a", "b", one_dials=False, two_dials=False)
    _, reasons = mesh.dial("ab")
    mesh.run(lambda: reasons)
    assert reasons[0].startswith("no way to b")


def test_two_channels_become_one_and_a_lost_one_comes_again(mesh: HopMesh) -> None:
    line(mesh, "ab")
    a, b = mesh.nodes["a"].hops, mesh.nodes["b"].hops
    mesh.run(lambda: a.channels.has(NodeName("b")) and b.channels.has(NodeName("a")))
    mesh.settle(1.2)
    assert a.channels.dialled == 1
    assert b.channels.dialled == 0, "the one with the higher incarnation waited"
    a.neighbour_gone(NodeName("b"))
    mesh.run(lambda: not b.channels.has(NodeName("a")))
    a.neighbour_set(mesh.item("a", "b"))
    mesh.run(lambda: a.channels.has(NodeName("b")) and b.channels.has(NodeName("a")))


def test_a_channel_with_forged_messages_is_closed(mesh: HopMesh) -> None:
    line(mesh, "ab")
    item = mesh.item("a", "b")
    b = mesh.nodes["b"].hops
    mesh.run(lambda: b.channels.has(NodeName("a")))
    frame = LinkSeal(item.link, item.tx_setup, item.rx_setup, Instant(1 << 50)).seal(CHANNEL, b"")
    stranger = raw(mesh, "b", frame + b"\x40\x00" + bytes(64))
    mesh.run(lambda: stranger.ended)
    mesh.run(lambda: b.channels.has(NodeName("a")), 5)


# ---------------------------------------------------------------------- the authority
class Authority:
    """Stands for the authority's port: echoes in capitals."""

    def __init__(self, mesh: HopMesh) -> None:
        self.mesh = mesh
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.where = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.ends: list[End] = []
        mesh.loop.add(self.listener.fileno(), READ, self.accept)

    def accept(self, mask: int) -> None:
        sock, _ = self.listener.accept()
        sock.setblocking(False)
        self.ends.append(End(self.mesh.loop, sock, echo=True))

    def close(self) -> None:
        self.mesh.loop.drop(self.listener.fileno())
        self.listener.close()
        for end in self.ends:
            end.close()


@pytest.fixture
def authority(mesh: HopMesh) -> Iterator[Authority]:
    made = Authority(mesh)
    yield made
    made.close()


def local(mesh: HopMesh, path: Path) -> End:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    sock.setblocking(False)
    end = End(mesh.loop, sock)
    mesh.ends.append(end)
    return end


def test_the_authority_is_reached_through_two_relays(
    mesh: HopMesh, authority: Authority, tmp_path: Path
) -> None:
    line(mesh, "abcd")
    mesh.nodes["d"].hops.node_set(NodeItem("mesh.test", "d", authority.where))
    a = mesh.nodes["a"].hops
    a.authority_paths(AuthorityPathItem((("a", "b"), ("a", "b", "c", "d"))))
    a.authority.listen(str(tmp_path / "authority.sock"))
    assert (tmp_path / "authority.sock").stat().st_mode & 0o777 == 0o600
    end = local(mesh, tmp_path / "authority.sock")
    says(mesh, end, b"hello through the path that has one")
    big = os.urandom(3 << 20)
    says(mesh, end, big)
    end.finish()
    mesh.run(lambda: end.ended == "fin")


def test_the_authority_is_reached_directly_where_it_can_be(
    mesh: HopMesh, authority: Authority, tmp_path: Path
) -> None:
    mesh.node("a")
    a = mesh.nodes["a"].hops
    a.authority.listen(str(tmp_path / "authority.sock"))
    end = local(mesh, tmp_path / "authority.sock")
    end.send(b"nobody is there yet")
    mesh.run(lambda: end.ended)
    a.node_set(NodeItem("mesh.test", "a", authority.where))
    says(mesh, local(mesh, tmp_path / "authority.sock"), b"x")
    says(mesh, mesh.open("a", AUTHORITY), b"y")


def test_enrolment_is_carried_to_the_authority_only_and_within_bounds(
    mesh: HopMesh, authority: Authority
) -> None:
    mesh.node("a", HopLimits(enrol_bytes_max=8192, enrol_us=700_000))
    mesh.nodes["a"].hops.node_set(NodeItem("mesh.test", "a", authority.where))
    frame = pack_header(Header(ENROL, 0, 0, 0))
    ends = [raw(mesh, "a", frame) for _ in range(4)]
    for end in ends:
        says(mesh, end, b"x")
    assert refused(mesh, raw(mesh, "a", frame)) == "a: too many enrolments at once"
    ends[0].send(bytes(9000))
    mesh.run(lambda: ends[0].ended)
    assert ends[0].ended == "reset"
    says(mesh, raw(mesh, "a", frame), b"x")
    mesh.run(lambda: all(end.ended == "reset" for end in ends), 3)


# ---------------------------------------------------------------------- speed
def test_speed_of_a_relay_is_printed(mesh: HopMesh) -> None:
    with relay_process(mesh) as child:
        end = mesh.open("abc")
        says(mesh, end, b"x")
        began = time.monotonic()
        for _ in range(300):
            says(mesh, end, bytes(1024))
        each_us = (time.monotonic() - began) / 300 * 1e6
        far = mesh.nodes["c"].ends[0]
        far.echo = far.keep = False
        had = far.count
        total, block, sent = 256 << 20, memoryview(bytes(1 << 18)), 0
        cpu, began = cpu_s(child.pid), time.monotonic()
        while far.count - had < total:
            assert time.monotonic() - began < 30
            try:
                while sent < total:
                    sent += end.sock.send(block)
            except BlockingIOError:
                pass
            mesh.loop.once(Instant(mesh.loop.now + 10_000))
        wall, cpu = time.monotonic() - began, cpu_s(child.pid) - cpu
        print(
            f"one relay: {total * 8 / wall / 1e9:.1f} Gbit/s, {cpu / (total / 1e9):.2f} CPU s/GB "
            f"of the relay; 1 KiB there and back {each_us:.0f} us"
        )


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
