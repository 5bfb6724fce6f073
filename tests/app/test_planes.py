"""What is left of a killed agent is ended: this, all of this, and nothing of anybody else's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.kernel_house import DOMAIN, House, house_in
from tests.fakes.ca import FakeCa
from x0tta6bl4.app.kernel_links import KEPT, where_left
from x0tta6bl4.app.kernel_plane import PINS, SWITCHES, KernelPlane
from x0tta6bl4.app.mesh import living
from x0tta6bl4.app.planes import end_dead, is_left, open_plane
from x0tta6bl4.app.settings import parse_node
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.edge.kernel.libbpf import unmount
from x0tta6bl4.runtime.local import listen_private
from x0tta6bl4.wire.errors import Conflict, Refused, Unavailable
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.records import Bundle, encode_body

netns = pytest.mark.netns
LISTENS = """
import socket, sys, time
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print("x0tta6bl4", flush=True)
time.sleep(60)
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "a"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def house(state: Path) -> Iterator[House]:
    Wallet(state).keep(
        FakeCa(DOMAIN).svid("node/a"), encode_body(Bundle(DOMAIN, 1, (b"anchor",), ()))
    )
    with house_in(state) as made:
        yield made
        with made.here:
            if is_left(state):
                made.begin()
                assert made.plane.remove() == []


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that listens at `socket` in the state directory and has our name in its command line."""
    found = subprocess.Popen(
        [sys.executable, "-c", LISTENS, str(tmp_path / "a" / "socket"), "x0tta6bl4"],
        stdout=subprocess.PIPE,
    )
    with found:
        assert found.stdout is not None
        assert found.stdout.readline() == b"x0tta6bl4\n"
        yield found
        found.kill()


# ---------------------------------------------------------------------------- the kernel's half
@netns
@pytest.mark.parametrize("plane", ["kernel", "auto"])
def test_a_second_node_takes_nothing_away_from_the_first(
    house: House, tmp_path: Path, plane: str
) -> None:
    before, other = house.at_work(), tmp_path / "z"
    told: list[str] = []
    assert len(before) == 5
    other.mkdir(mode=0o700)
    settings = parse_node(
        f'trust_domain="{DOMAIN}"\nnode="z"\nstate_dir="{other}"\n'
        '[authority]\naddress="127.0.0.1:9000"\n'
        f'[data]\nplane="{plane}"\nmember_pps=5\ndeny_from=["::/0"]\n'
    )
    with house.here:
        if plane == "kernel":
            with pytest.raises(Conflict, match="X0-KRN-148"):
                open_plane(settings, lambda *_: None)
        else:
            none, view = open_plane(settings, lambda _, text: told.append(text))
            assert none is None
            assert "X0-KRN-148" in view.text
            missed = "member_pps, deny_from not in force"
            assert [missed in one for one in (told[0], view.text, view.findings[0].what)] == (
                [True] * 3
            )
            assert view.findings[0].level == "error"
    assert house.at_work() == before
    assert list(other.iterdir()) == []
    house.plane.close()


@netns
def test_one_that_was_faster_keeps_what_it_has(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, other = house.at_work(), tmp_path / "z"
    other.mkdir(mode=0o700)
    monkeypatch.setattr("x0tta6bl4.app.kernel_plane.Plane.be_alone", lambda _: None)
    with house.here, pytest.raises(Conflict, match="X0-KRN-148"):
        KernelPlane(DOMAIN, NodeName("z"), other, (), lambda *_: None)
    unmount(other / PINS)
    assert [len(one.splitlines()) for one in house.at_work()] == [
        len(one.splitlines()) for one in before
    ]
    house.plane.close()


@netns
def test_a_stop_in_another_network_namespace_is_refused_and_touches_nothing(house: House) -> None:
    house.plane.close()
    before, files = house.at_work(), sorted(house.state.rglob("*"))
    with house.there, pytest.raises(Unavailable, match="X0-KRN-152.*another network namespace"):
        end_dead(house.state)
    assert (house.at_work(), sorted(house.state.rglob("*"))) == (before, files)
    with house.here:
        assert end_dead(house.state) == (
            "its programs, routes and switches are taken out of the kernel"
        )
        assert end_dead(house.state) is None
    assert house.at_work() == ()


@netns
def test_a_stop_where_another_node_lives_is_refused_though_nothing_was_written(
    house: House, tmp_path: Path
) -> None:
    before, dead = house.at_work(), tmp_path / "z"
    wallet = Wallet(dead)
    wallet.keep(FakeCa(DOMAIN).svid("node/z"), encode_body(Bundle(DOMAIN, 1, (b"anchor",), ())))
    (dead / KEPT).write_bytes(b"damaged")
    with house.here, pytest.raises(Conflict, match="X0-KRN-148"):
        end_dead(dead)
    assert house.at_work() == before
    assert (dead / KEPT).exists()
    house.plane.close()


@netns
def test_where_it_was_is_in_either_file_and_an_earlier_boot_has_left_files_only(
    house: House,
) -> None:
    house.plane.close()
    kept, switches = house.state / KEPT, house.state / SWITCHES
    where = where_left(kept, switches)
    boot, space = where.split()
    assert where_left(house.state / "none", switches) == where
    assert where_left(kept, house.state / "none") == where
    assert int(space) == os.stat(house.here.path).st_ino
    kept.unlink()
    with house.here:
        house.begin()
        assert where_left(kept, house.state / "none") == where, "before anything is agreed on"
        house.plane.remove()
    kept.write_bytes(b"")
    switches.write_text(json.dumps({"where": f"earlier {space}", "switches": {}}))
    with house.there:
        assert (
            end_dead(house.state) == "what it had written before this host's last start is deleted"
        )
    assert not is_left(house.state)
    assert boot != "earlier"


# ---------------------------------------------------------------------------- processes
def test_whom_a_stale_pid_file_names_is_left_alone(
    state: Path, process: subprocess.Popen[bytes]
) -> None:
    (state / "agent.pid").write_text("999999\n")
    (state / "proxy.pid").write_text(f"{process.pid}\n")
    assert end_dead(state) is None
    assert process.poll() is None


def test_who_listens_where_proxies_do_is_ended_whatever_the_pid_file_says(
    state: Path, process: subprocess.Popen[bytes]
) -> None:
    (state / "socket").rename(state / "proxy.sock")
    assert end_dead(state) == "its proxy is stopped"
    assert process.wait(10) == -signal.SIGTERM
    assert end_dead(state) is None
    assert sorted(path.name for path in state.iterdir()) == ["proxy.sock"]


def test_who_lives_keeps_its_proxy(state: Path, process: subprocess.Popen[bytes]) -> None:
    (state / "socket").rename(state / "proxy.sock")
    with listen_private(state / "agent.sock", "a node"):
        assert end_dead(state) is None
    (state / "agent.sock").unlink()
    (state / "agent.pid").write_text(f"{process.pid}\n")
    assert end_dead(state) is None
    assert process.poll() is None


def test_no_agent_begins_while_one_is_ended(
    state: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (state / "socket").rename(state / "proxy.sock")
    refused = []

    def begin(pidfd: int, number: int) -> None:
        with pytest.raises(Conflict, match="X0-RUN-003"):
            listen_private(state / "agent.sock", "a node")
        refused.append(number)

    monkeypatch.setattr(signal, "pidfd_send_signal", begin)
    assert end_dead(state) == "its proxy is stopped"
    assert refused == [signal.SIGTERM]
    with listen_private(state / "agent.sock", "a node") as listener:
        assert listener.family is socket.AF_UNIX


def test_a_directory_of_others_or_open_to_them_is_not_believed(
    state: Path, process: subprocess.Popen[bytes]
) -> None:
    (state / "socket").rename(state / "proxy.sock")
    state.chmod(0o750)
    with pytest.raises(Refused, match="X0-RUN-001"):
        end_dead(state)
    state.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(state, 65534, 65534)
        with pytest.raises(Refused, match="X0-RUN-022"):
            end_dead(state)
        os.chown(state, 0, 0)
    assert process.poll() is None
    assert end_dead(state.parent / "nowhere") is None
    assert not (state.parent / "nowhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")
def test_a_pid_file_of_somebody_else_names_nobody(
    state: Path, process: subprocess.Popen[bytes]
) -> None:
    file = state / "proxy.pid"
    file.write_text(f"{process.pid}\n")
    assert living(file) == process.pid
    os.chown(file, 65534, 65534)
    assert living(file) == 0
