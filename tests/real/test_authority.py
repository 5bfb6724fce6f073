"""The authority as a process: killed at any moment, out of disk, badly set up, stopped nicely."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest
from cryptography.x509 import load_der_x509_certificate

from tests.fakes.authority_forks import ROOT, Forks
from tests.fakes.authority_world import DOMAIN, client, wanted
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.admission import Admission, Admitted
from x0tta6bl4.app.authority import ADMIN_SOCKET, PID_FILE, check_clock
from x0tta6bl4.app.mesh import free_ports
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.edge.authority_api.client import AdminClient
from x0tta6bl4.edge.store.store import FILE
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import BadConfig, Unavailable, X0Error
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.records import Name, decode_manifest, decode_record
from x0tta6bl4.wire.token import read_token

SELECTORS = ("unix:uid:1000",)


def laid_out(root: Path, **changes: object) -> tuple[Path, cfg.AuthoritySettings]:
    """An `authority.toml` with a free port."""
    (port,) = free_ports(1)
    fields: dict[str, object] = {
        "trust_domain": DOMAIN, "state_dir": str(root / "authority"),
        "listen": f"127.0.0.1:{port}",
    } | changes  # fmt: skip
    settings = cfg.AuthoritySettings(**fields)  # type: ignore[arg-type]
    config = root / "authority.toml"
    config.write_text(cfg.dump(settings))
    return config, settings


@contextlib.contextmanager
def forks(root: Path) -> Iterator[tuple[Forks, cfg.AuthoritySettings]]:
    config, settings = laid_out(root)
    children = Forks(config, root / "authority")
    try:
        yield children, settings
    finally:
        children.close()


@contextlib.asynccontextmanager
async def operator(root: Path) -> AsyncIterator[AdminClient]:
    async with AdminClient(str(root / "authority" / ADMIN_SOCKET)) as admin:
        yield admin


def kept_serials(store: Path) -> set[str]:
    """Serials of all SVIDs in an authority's store, which is whole."""
    with contextlib.closing(sqlite3.connect(store / FILE)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        return {serial for (serial,) in raw.execute("SELECT serial FROM issued")}


# ------------------------------------------------------------------ kill -9
class Ledger:
    """What was acknowledged, and what may or may not have happened when the lights went out."""

    def __init__(self) -> None:
        self.sure: dict[str, words.Entry | None] = {}
        self.maybe: dict[str, words.Entry | None] = {}
        self.names: set[str] = set()
        self.serials: set[str] = set()
        self.sets: dict[tuple[str, int], bytes] = {}
        self.newest: dict[str, int] = {}
        self.acknowledged = 0
        self.left = 0
        self.enough = asyncio.Event()

    def note(self) -> None:
        """Something was acknowledged."""
        self.left -= 1
        if self.left <= 0:
            self.enough.set()

    def check(self, entries: dict[str, words.Entry], names: set[str]) -> None:
        for key, entry in self.sure.items():
            found = entries.get(key)
            if key in self.maybe:
                assert found in (entry, self.maybe[key]) or _next(found, self.maybe[key])
                self.sure[key] = found
            else:
                assert found == entry, f"lost: {key}"
        for key, unsure in self.maybe.items():
            if key not in self.sure:
                assert unsure is not None
                assert key not in entries or _next(entries[key], unsure)
                self.sure[key] = entries.get(key)
        self.maybe.clear()
        assert set(entries) == {key for key, entry in self.sure.items() if entry is not None}
        assert self.names <= names

    def see(self, update: words.Update) -> None:
        """No sequence goes back, and none is used for two contents."""
        for data in update.records:
            record = decode_record(data)
            if record.kind != "manifest" or record.name == "heartbeat":
                continue
            manifest = decode_manifest(record.body)
            digest = hashlib.sha256(record.body).digest()
            assert self.sets.setdefault((record.name, manifest.sequence), digest) == digest
            assert manifest.sequence >= self.newest.get(record.name, 0)
            self.newest[record.name] = manifest.sequence


def _next(found: words.Entry | None, wanted: words.Entry | None) -> bool:
    """Whether `found` is what `wanted` was asked to become."""
    if found is None or wanted is None:
        return found is wanted
    return (found.id, found.hint, found.node) == (wanted.id, wanted.hint, wanted.node)


async def all_entries(admin: AdminClient) -> dict[str, words.Entry]:
    found: dict[str, words.Entry] = {}
    page = await admin.entry_list(words.Page())
    found |= {entry.key: entry for entry in page.entries}
    while page.more:
        page = await admin.entry_list(words.Page(after=max(found)))
        found |= {entry.key: entry for entry in page.entries}
    return found


async def all_names(admin: AdminClient) -> set[str]:
    page = await admin.name_list(words.Page())
    found = {name.name for name in page.names}
    while page.more:
        page = await admin.name_list(words.Page(after=max(found)))
        found |= {name.name for name in page.names}
    return found


async def work(admin: AdminClient, ledger: Ledger, who: str, draw: Random) -> None:
    """Create, change and delete until the connection breaks."""
    for n in range(100_000):
        key = f"{who}-{n}"
        entry = words.Entry(id=f"spiffe://{DOMAIN}/{key}", node="alpha", selectors=SELECTORS,
                            key=key)  # fmt: skip
        ledger.maybe[key] = entry
        made = await admin.entry_create(entry)
        ledger.sure[key] = made
        del ledger.maybe[key]
        change = words.Entry(id=made.id, node="beta", selectors=SELECTORS, key=key, hint="new")
        if draw.random() < 0.5:
            ledger.maybe[key] = change
            ledger.sure[key] = await admin.entry_update(change)
            del ledger.maybe[key]
        if draw.random() < 0.3:
            ledger.maybe[key] = None
            await admin.entry_delete(key)
            ledger.sure[key] = None
            del ledger.maybe[key]
        if draw.random() < 0.3:
            await admin.name_create(Name(key, made.id, ()))
            ledger.names.add(key)
        ledger.acknowledged += 1
        ledger.note()


async def issue(address: str, me: Admitted, ledger: Ledger) -> None:
    async with client(address, me.svid, me.bundle) as connection:
        while True:
            issued = await connection.issue(wanted(*[""] * 8))
            for each in issued:
                leaf = load_der_x509_certificate(each.chain[0])
                ledger.serials.add(f"{leaf.serial_number:x}")
            ledger.note()


async def watch(address: str, me: Admitted, ledger: Ledger) -> None:
    async with client(address, me.svid, me.bundle) as connection:
        async for update in connection.watch():
            ledger.see(update)


async def until_killed(root: Path, address: str, me: Admitted, ledger: Ledger, children: Forks,
                       draw: Random, number: int) -> None:  # fmt: skip
    async def guarded(job: asyncio.Future[None]) -> None:
        with contextlib.suppress(Unavailable):
            await job

    async with operator(root) as admin, operator(root) as other:
        ledger.check(await all_entries(admin), await all_names(admin))
        jobs = [
            work(admin, ledger, f"a{number}", draw), work(other, ledger, f"b{number}", draw),
            issue(address, me, ledger), watch(address, me, ledger),
        ]  # fmt: skip
        tasks = [asyncio.ensure_future(job) for job in jobs]  # noqa: TID251
        # At a moment in the midst of work, however slow the machine is.
        ledger.left, ledger.enough = draw.randrange(30), asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await ledger.enough.wait()
        await asyncio.sleep(draw.uniform(0, 0.01))
        children.kill()
        async with asyncio.timeout(20):
            await asyncio.gather(*(guarded(task) for task in tasks))


def killed(root: Path, rounds: int) -> Ledger:
    """Kill it `rounds` times; afterwards everything acknowledged must be there."""
    draw, ledger = Random("authority/kill"), Ledger()
    with forks(root) as (children, settings):
        children.start()

        async def enrol() -> Admitted:
            async with operator(root) as admin:
                made = await admin.token_create(words.TokenCreate(node="alpha"))
            wallet = Wallet(root / "node")
            return await Admission(DOMAIN, NodeName("alpha"), wallet, (settings.listen,), (),
                                   root).admit(read_token(made.token))  # fmt: skip

        me = asyncio.run(enrol())
        for number in range(rounds):
            asyncio.run(until_killed(root, settings.listen, me, ledger, children, draw, number))
            children.wait()
            children.start()
        asyncio.run(until_killed(root, settings.listen, me, ledger, children, draw, rounds))
        children.wait()
    assert ledger.serials <= kept_serials(root / "authority")
    print(
        f"killed {rounds + 1} times: {ledger.acknowledged} rounds of work and "
        f"{len(ledger.serials)} SVIDs acknowledged, 0 lost; newest sets {ledger.newest}"
    )
    return ledger


def test_nothing_acknowledged_is_lost_by_sigkill(tmp_path: Path) -> None:
    ledger = killed(tmp_path, 20)
    assert ledger.acknowledged > 20
    assert ledger.serials


@pytest.mark.night
@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_by_sigkill_at_200_moments(tmp_path: Path) -> None:
    killed(tmp_path, 200)


# ------------------------------------------------------------------ full disk
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_a_full_disk_makes_it_read_only_and_room_makes_it_write_again(tmp_path: Path) -> None:
    disk = tmp_path / "authority"
    disk.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True, timeout=20).returncode:
        pytest.skip("needs a kernel that lets us mount a tmpfs")

    async def fill() -> dict[str, words.Entry]:
        kept = {}
        async with operator(tmp_path) as admin:
            for n in range(100_000):
                entry = words.Entry(id=f"spiffe://{DOMAIN}/w{n}", node="alpha", hint="x" * 900,
                                    selectors=SELECTORS, key=f"e{n}")  # fmt: skip
                try:
                    kept[entry.key] = await admin.entry_create(entry)
                except Unavailable as error:
                    reason = error.id
                    break
            assert reason == "X0-STO-005"
            health = await admin.health()
            assert "X0-STO-005" in health.read_only
            again = await asyncio.gather(admin.name_create(Name("n", entry.id, ())),
                                         return_exceptions=True)  # fmt: skip
            assert isinstance(again[0], X0Error)
            assert again[0].id in ("X0-AUT-082", "X0-STO-005")
            assert len((await admin.entry_list(words.Page())).entries) == min(1000, len(kept))
            grown = await asyncio.create_subprocess_exec(
                "mount", "-o", "remount,size=16m", str(disk)
            )
            assert await grown.wait() == 0
            await asyncio.sleep(1.1)
            kept["last"] = await admin.entry_create(
                words.Entry(id=f"spiffe://{DOMAIN}/x", node="b", selectors=SELECTORS, key="last")
            )
            assert (await admin.health()).read_only == ""
        return kept

    async def check(kept: dict[str, words.Entry]) -> None:
        async with operator(tmp_path) as admin:
            assert await all_entries(admin) == kept

    try:
        with forks(tmp_path) as (children, _):
            children.start()
            kept = asyncio.run(fill())
            children.kill()
            children.wait()
            children.start()
            asyncio.run(check(kept))
            children.kill()
            children.wait()
    finally:
        subprocess.run(["umount", disk], check=True, timeout=20)


# ------------------------------------------------------------------ as systemd starts it
def run(config: Path, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "x0tta6bl4", "authority", "run", "--config", str(config)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip


def test_it_serves_soon_logs_json_without_secrets_and_stops_on_sigterm(tmp_path: Path) -> None:
    config, settings = laid_out(tmp_path)

    async def use() -> str:
        async with operator(tmp_path) as admin:
            made = await admin.token_create(words.TokenCreate(node="alpha"))
            await Admission(
                DOMAIN,
                NodeName("alpha"),
                Wallet(tmp_path / "node"),
                (settings.listen,),
                (),
                tmp_path,
            ).admit(read_token(made.token))
            await admin.node_evict(words.NodeEvict("alpha"))
            return made.token

    for _ in range(2):  # The first start makes the trust domain.
        started = time.monotonic()
        child = run(config)
        pid = tmp_path / "authority" / PID_FILE
        while not pid.exists() or not pid.read_text():
            assert child.poll() is None, child.communicate()
            assert time.monotonic() - started < 20
            time.sleep(0.005)
        print(f"serving after {time.monotonic() - started:.2f} s")
        assert int(pid.read_text()) == child.pid
        if not (tmp_path / "node").exists():
            token = asyncio.run(use())
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=10)
        assert (child.returncode, out) == (0, b"")
        assert not pid.exists()
        lines = [json.loads(line) for line in err.splitlines()]
        assert {"serving", "stopping"} <= {line["event"] for line in lines}
        secret = read_token(token).secret
        assert token.encode() not in err
        assert secret.hex().encode() not in err
        assert b"PRIVATE" not in err


def refused(config: Path) -> str:
    """The one line that a failed start prints."""
    child = run(config)
    _, err = child.communicate(timeout=20)
    assert child.returncode not in (0, None)
    assert b"Traceback" not in err, err
    lines = [line for line in err.decode().splitlines() if line and not line.startswith("{")]
    assert lines, err
    return lines[0]


@pytest.mark.parametrize("case", ["mode", "port", "unwritable", "running", "domain"])
def test_what_is_wrong_is_said_in_one_line_with_an_id(tmp_path: Path, case: str) -> None:
    config, settings = laid_out(tmp_path)
    state = tmp_path / "authority"
    if case == "port":
        import socket

        with socket.socket() as taken:
            host, port = split_address(settings.listen)
            taken.bind((host, port))
            taken.listen()
            assert "X0-AUT-088" in refused(config)
        return
    if case == "unwritable":
        state.write_text("a file in the way")
        assert "X0-STO-00" in refused(config)
        return
    children = Forks(config, state)
    try:
        children.start()
        if case == "running":
            assert "X0-STO-003" in refused(config)
            return
        children.kill(signal.SIGTERM)
        children.wait()
    finally:
        children.close()
    if case == "mode":
        (state / FILE).chmod(0o644)
        line = refused(config)
        assert "X0-STO-002" in line
    else:
        config.write_text(config.read_text().replace(DOMAIN, "other.org"))
        assert "X0-AUT-100" in refused(config)


def test_a_clock_before_the_release_is_refused() -> None:
    with pytest.raises(BadConfig, match=r"X0-AUT-101.*2001-09-09"):
        check_clock(1_000_000_000 * 1_000_000)
    check_clock(time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000)


def test_metrics_are_served(tmp_path: Path) -> None:
    import urllib.request

    (port,) = free_ports(1)
    config, _ = laid_out(tmp_path, metrics=cfg.Metrics(listen=f"127.0.0.1:{port}"))
    children = Forks(config, tmp_path / "authority")
    try:
        children.start()

        async def ask() -> None:
            async with operator(tmp_path) as admin:
                await admin.health()

        asyncio.run(ask())
        end = time.monotonic() + 5
        while True:
            try:
                text = (
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
                    .read()
                    .decode()
                )
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.02)
    finally:
        children.close()
    assert 'authority_calls_total{method="Health",result="ok"} 1.0' in text
    assert "x0_undeclared 0.0" in text or "undeclared 0.0" in text
