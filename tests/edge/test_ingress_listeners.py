"""Local listeners with real clients: who calls is known before a byte goes anywhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from x0tta6bl4.core.machine import Allowed, Denied, Instant, Verdict
from x0tta6bl4.core.session.frames import Reset
from x0tta6bl4.edge.attest.entries import Callers, Services
from x0tta6bl4.edge.attest.listener import Attestor, ListenerId
from x0tta6bl4.edge.ingress.connect import Connect
from x0tta6bl4.edge.ingress.socks5 import Socks5
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.connect import reset
from x0tta6bl4.runtime.loop.ingress import Ingress, IngressLimits, Reply
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.wire.errors import BadConfig, BadInput
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.messages import CallerItem, ListenItem, ServiceItem

APP = "spiffe://mesh.test/app"
OTHER = "spiffe://mesh.test/other"
ME = os.getuid()


class House:
    """An ingress, its callers, and the streams it gave out."""

    def __init__(self, limits: IngressLimits = IngressLimits()) -> None:  # noqa: B008
        self.loop = Loop()
        self.attestor = Attestor()
        self.callers = Callers(self.attestor)
        self.callers.put(CallerItem(APP, (f"unix:uid:{ME}",)))
        self.outcome: Reset | None = None
        self.echo = True
        self.streams: list[tuple[str, str, str, bytes]] = []
        self.socks: list[socket.socket] = []
        self.notices: list[tuple[str, str]] = []
        self.ingress = Ingress(
            self.loop,
            identify=self.identify,
            greetings={"socks5": Socks5, "connect": Connect},
            on_stream=self.on_stream,
            limits=limits,
            on_notice=lambda kind, text: self.notices.append((kind, text)),
        )

    def identify(self, sock: socket.socket) -> Verdict:
        return self.callers.identify(sock)

    def on_stream(
        self,
        sock: socket.socket,
        source: SpiffeId,
        item: ListenItem,
        name: str,
        first: bytes,
        reply: Reply | None,
    ) -> None:
        self.streams.append((source, item.kind, name, first))
        if reply is not None:
            sock.send(reply(self.outcome))
        if self.outcome is None:
            self.socks.append(sock)
            sock.send(b"<" + first + b">")
        elif reply is None:
            reset(sock)
        else:
            sock.close()

    def listen(self, kind: str, address: str = "127.0.0.1:0", name: str = "") -> tuple[str, int]:
        self.ingress.set(ListenItem(address, kind, name))
        host, _, port = self.ingress.where(address).rpartition(":")
        return host.strip("[]"), int(port)

    def run(self, until: Callable[[], object], seconds: float = 5.0) -> None:
        deadline = clock() + int(seconds * 1e6)
        while not until():
            assert clock() < deadline, "did not happen in time"
            self.loop.once(Instant(clock() + 20_000))

    def ask(self, where: tuple[str, int] | str, data: bytes) -> bytes:
        """Send, and read what is answered within the next turns."""
        client = socket.socket(
            socket.AF_UNIX
            if isinstance(where, str)
            else (socket.AF_INET6 if ":" in where[0] else socket.AF_INET)
        )
        client.connect(where)
        with client:
            client.sendall(data)
            got = b""
            client.setblocking(False)
            before = len(self.streams), self.ingress.statistics().strangers
            for _ in range(50):
                self.loop.once(Instant(clock() + 2_000))
                try:
                    chunk = client.recv(65536)
                except BlockingIOError:
                    if len(self.streams) > before[0] and got.endswith(b">"):
                        break
                    continue
                except ConnectionResetError:
                    return got + b"RESET"
                if not chunk:
                    return got + b"END"
                got += chunk
            return got

    def close(self) -> None:
        for sock in self.socks:
            sock.close()
        self.ingress.close()
        self.attestor.close()
        self.loop.close()


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


def socks5(name: str, rest: bytes = b"") -> bytes:
    return b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name.encode() + b"\0\x50" + rest


def test_each_kind_becomes_a_stream_of_its_caller(house: House, tmp_path: Path) -> None:
    assert house.ask(house.listen("plain", name="web"), b"x") == b"<>"
    assert house.ask(house.listen("socks5", "[::1]:0"), socks5("web.mesh", b"GET")) == (
        b"\x05\x00\x05\x00\x00\x01\0\0\0\0\0\0<GET>"
    )
    house.ingress.gone("127.0.0.1:0")
    request = b"CONNECT db.mesh:5432 HTTP/1.1\r\n\r\n\x01\x02"
    assert house.ask(house.listen("connect"), request) == (
        b"HTTP/1.1 200 Connection established\r\n\r\n<\x01\x02>"
    )
    path = str(tmp_path / "in.sock")
    house.ingress.set(ListenItem(f"unix:{path}", "plain", "web"))
    assert os.stat(path).st_mode & 0o777 == 0o660
    assert house.ask(path, b"x") == b"<>"
    assert house.streams == [
        (APP, "plain", "web", b""),
        (APP, "socks5", "web.mesh", b"GET"),
        (APP, "connect", "db.mesh", b"\x01\x02"),
        (APP, "plain", "web", b""),
    ]
    house.ingress.gone(f"unix:{path}")
    assert not os.path.exists(path)


def test_a_refused_stream_is_answered_in_its_protocol(house: House) -> None:
    house.outcome = Reset.DENIED
    assert house.ask(house.listen("plain", name="web"), b"x") == b"RESET"
    house.ingress.gone("127.0.0.1:0")
    assert house.ask(house.listen("socks5"), socks5("web")) == (
        b"\x05\x00\x05\x02\x00\x01\0\0\0\0\0\0END"
    )
    house.ingress.gone("127.0.0.1:0")
    answer = house.ask(house.listen("connect"), b"CONNECT web:80 HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert answer.endswith(b"denied\nEND")


def test_a_stranger_gets_no_further_than_its_greeting(house: House) -> None:
    house.callers.drop(CallerItem(APP, (f"unix:uid:{ME}",)))
    assert house.ask(house.listen("plain", name="web"), b"x") == b"RESET"
    house.ingress.gone("127.0.0.1:0")
    assert house.ask(house.listen("socks5"), socks5("web"))[2:4] == b"\x05\x02"
    house.ingress.gone("127.0.0.1:0")
    answer = house.ask(house.listen("connect"), b"CONNECT web:80 HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 407 ")
    assert house.streams == []
    assert house.ingress.statistics().strangers == 3
    assert house.notices[0] == ("caller", f"refused at 127.0.0.1:0: no entry for uid {ME}")


def test_bad_greetings_are_answered_and_closed(house: House) -> None:
    where = house.listen("socks5")
    assert house.ask(where, b"GET / HTTP/1.1\r\n\r\n") == b"END"
    assert house.ask(where, b"\x05\x01\x02") == b"\x05\xffEND"
    assert house.streams == []
    assert house.ingress.statistics().rejected == 2


def test_slow_greetings_end_and_do_not_keep_others_out() -> None:
    house = House(IngressLimits(pending_max=4, greeting_us=300_000))
    where = house.listen("socks5")
    idle = [socket.create_connection(where) for _ in range(10)]
    house.run(lambda: house.ingress.statistics().evicted == 6)
    assert house.ingress.statistics().pending == 4
    assert house.ask(where, socks5("web"))[:4] == b"\x05\x00\x05\x00"
    house.run(lambda: house.ingress.statistics().pending == 0, 2)
    for client in idle:
        client.settimeout(1)
        assert client.recv(10) == b""
        client.close()
    house.close()


@pytest.mark.parametrize(
    "item",
    [
        ListenItem("0.0.0.0:0", "socks5"),
        ListenItem("[::]:0", "socks5"),
        ListenItem("192.0.2.1:80", "socks5"),
        ListenItem("localhost:80", "socks5"),
        ListenItem("127.0.0.1:0", "socks4"),
        ListenItem("127.0.0.1:0", "plain"),
        ListenItem("unix:relative", "socks5"),
    ],
)
def test_only_addresses_of_this_host_alone_are_listened_at(house: House, item: ListenItem) -> None:
    with pytest.raises(BadConfig):
        house.ingress.set(item)
    assert house.ingress.statistics().listeners == 0


def test_a_listener_can_change_what_it_is_for(house: House) -> None:
    where = house.listen("plain", name="web")
    assert house.listen("plain", name="db") == where
    assert house.ask(where, b"") == b"<>"
    assert house.streams[-1][2] == "db"


def test_a_file_is_never_taken_for_a_left_over_socket(house: House, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError):
        house.ingress.set(ListenItem(f"unix:{tmp_path / 'file'}", "plain", "web"))
    assert (tmp_path / "file").read_text() == "precious"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left"))
    left.close()
    house.ingress.set(ListenItem(f"unix:{tmp_path / 'left'}", "plain", "web"))
    assert house.ask(str(tmp_path / "left"), b"") == b"<>"


def test_curl_speaks_to_both_kinds(house: House) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    for kind, option in (("socks5", "socks5h://"), ("connect", "http://")):
        house.outcome = Reset.NO_SERVICE
        host, port = house.listen(kind, "127.0.0.1:0")
        child = subprocess.Popen(
            [
                curl,
                "-sv",
                "-p",
                "--max-time",
                "5",
                "-x",
                f"{option}{host}:{port}",
                "http://web.mesh/",
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        reader = threading.Thread(target=child.wait)
        reader.start()
        house.run(lambda reader=reader: not reader.is_alive(), 10)  # type: ignore[misc]
        errors = child.communicate()[1]
        assert house.streams[-1][:3] == (APP, kind, "web.mesh"), errors
        assert child.returncode in (56, 97), errors
        house.ingress.gone("127.0.0.1:0")


# ---------------------------------------------------------------------- entries
def pair() -> tuple[socket.socket, socket.socket, socket.socket]:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    return listener, client, listener.accept()[0]


def test_the_entry_with_most_selectors_wins_and_a_tie_is_refused(house: House) -> None:
    listener, client, accepted = pair()
    callers = house.callers
    assert callers.identify(accepted) == Allowed(SpiffeId(APP))
    path = os.readlink("/proc/self/exe")
    callers.put(CallerItem(OTHER, (f"unix:uid:{ME}", f"unix:path:{path}")))
    assert callers.identify(accepted) == Allowed(SpiffeId(OTHER))
    callers.put(CallerItem(APP, (f"unix:uid:{ME}", f"unix:gid:{os.getgid()}")))
    assert callers.identify(accepted) == Denied(f"several identities for uid {ME}")
    callers.drop(CallerItem(OTHER, (f"unix:uid:{ME}", f"unix:path:{path}")))
    assert callers.identify(accepted) == Allowed(SpiffeId(APP))
    callers.put(CallerItem(OTHER, (f"unix:uid:{ME + 1}", "unix:sha256:" + "0" * 64, "unix:gid:0")))
    assert callers.identify(accepted) == Allowed(SpiffeId(APP))
    with pytest.raises(BadInput):
        callers.put(CallerItem(OTHER, ()))
    for sock in (listener, client, accepted):
        sock.close()


def test_a_service_is_judged_before_and_after_the_connect(house: House, tmp_path: Path) -> None:
    services = Services(house.attestor)
    listener, client, accepted = pair()
    host, port = listener.getsockname()
    good = ServiceItem(APP, f"{host}:{port}", (f"unix:uid:{ME}",))
    before = services.before(good)
    assert isinstance(before, ListenerId)
    assert services.after(good, before, client) == Allowed(SpiffeId(APP))
    bad = ServiceItem(APP, f"{host}:{port}", (f"unix:uid:{ME + 1}",))
    assert services.before(bad) == Denied(f"listener is not unix:uid:{ME + 1}")
    for sock in (listener, client, accepted):
        sock.close()
    assert services.before(good) == Denied("nobody listens")
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as to:
        unix.bind(path)
        unix.listen()
        to.connect(path)
        for uid, verdict in (
            (ME, Allowed(SpiffeId(APP))),
            (ME + 1, Denied(f"listener is not unix:uid:{ME + 1}")),
        ):
            item = ServiceItem(APP, f"unix:{path}", (f"unix:uid:{uid}",))
            seen = services.before(item)
            assert isinstance(seen, ListenerId)
            assert services.after(item, seen, to) == verdict
