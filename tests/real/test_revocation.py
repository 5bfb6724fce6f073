"""B4: a revocation is felt by programs: a real authority and agent, two workloads of the SDK.

One of them plays by the rules, the other is a thief: it has a workload's SVID and key, and no
Workload API that would tell it to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from tests.fakes.workload import hold, to
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import Mesh, Plan, free_ports, wait_for
from x0tta6bl4.app.operator import Operator
from x0tta6bl4.app.wallet import write_private
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.ocsp import OcspCache
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.sdk.identity import X509Source, anyone, dial, exact, listen
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import Refused, Unavailable, X0Error

DOMAIN = "revoked.test"
WITHIN_S = 1.0
SLOW = 5
"""A shared machine may take so many times as long as the bound, which `bench/identity` measures."""


def spiffe(name: str) -> str:
    return f"spiffe://{DOMAIN}/{name}"


class Host:
    """An authority with an OCSP responder, and one node."""

    def __init__(self, root: Path) -> None:
        self.mesh = Mesh(root / "m", Plan(DOMAIN, ("n1",), ()))
        self.dir = self.mesh.state("authority")
        self.operator = Operator(self.dir)

    def start(self) -> None:
        self.mesh.lay_out()
        (port,) = free_ports(1)
        path = self.mesh.config("authority")
        settings = cfg.read_authority(path)
        at = cfg.OcspAt(listen=f"127.0.0.1:{port}", url=f"http://127.0.0.1:{port}")
        write_private(path, cfg.dump(msgspec.structs.replace(settings, ocsp=at)).encode())
        self.mesh.start("authority")
        self.mesh.wait("authority", self.operator.is_serving, "the authority")
        self.operator.enrol_file("n1", self.mesh.state("n1") / "enrol-token")
        self.mesh.start("n1")
        self.mesh.wait("n1", lambda: self.status().state == "ready", "n1")

    def status(self) -> admin.Status:
        try:
            with AdminClient(self.mesh.state("n1")) as client:
                return client.ask(admin.GetStatus(), admin.Status)
        except X0Error:
            return admin.Status("n1", DOMAIN, "", "", 0, 0)

    def x0(self, *arguments: str) -> str:
        """A command as an operator types it."""
        ran = subprocess.run(
            [sys.executable, "-m", "x0tta6bl4", *arguments, "--authority", str(self.dir)],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return ran.stdout


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    root = Path(tempfile.mkdtemp(prefix="x0rv"))
    made = Host(root)
    try:
        made.start()
        yield made
    finally:
        made.mesh.stop()
        shutil.rmtree(root)


@asynccontextmanager
async def workload(host: Host, name: str, ocsp: str = "soft") -> AsyncIterator[X509Source]:
    """A workload's source; of all that this user may be, it is `name`."""

    def pick(svids: tuple[Svid, ...]) -> Svid:
        return next((one for one in svids if one.id == spiffe(name)), svids[0])

    source = X509Source(host.status().workload_api, pick=pick, ocsp=ocsp)  # type: ignore[arg-type]
    async with source:
        await source.wait(10)
        while source.current().id != spiffe(name):
            await source.changed(source.version, 10)
        yield source


def register(host: Host, *names: str) -> None:
    uid = (f"unix:uid:{os.getuid()}",)
    host.operator.create_entries(
        [Entry(id=spiffe(name), node="n1", selectors=uid, key=name) for name in names]
    )


def stolen(source: X509Source) -> SslContext:
    """TLS with the SVID that a source has now, for ever, for somebody who asks nobody."""
    return SslContext(TlsContext(source.current(), source.judges, (), ANYBODY, demand_alpn=False))


async def ends(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError, Refused):
        while await reader.read(1000):
            pass


def test_B4_revoked_connections_end_within_a_second_and_new_ones_are_refused(host: Host) -> None:
    register(host, "api", "loser")

    async def story() -> None:
        async with workload(host, "api") as api, workload(host, "loser") as loser:
            made = await listen("127.0.0.1:0", api, hold, authorize=exact(spiffe("loser")))
            theirs = await listen("127.0.0.1:0", loser, hold, authorize=anyone)
            async with made as listener, theirs as other:
                thief = stolen(loser)
                address = ("127.0.0.1", listener.port)
                honest = await dial(to(listener), loser, authorize=anyone, first_byte=True)
                towards = await dial(to(other), api, authorize=anyone, first_byte=True)
                reader, writer = await asyncio.open_connection(
                    *address, ssl=thief, server_hostname=""
                )
                assert await reader.readexactly(1) == b"!"
                impostor = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0, ssl=thief)
                where = f"127.0.0.1:{impostor.sockets[0].getsockname()[1]}"
                followed = await dial(where, api, authorize=anyone)

                started = time.monotonic()
                ran = asyncio.get_running_loop().run_in_executor(
                    None, host.x0, "authority", "revoke", spiffe("loser"), "--yes"
                )
                watched = (honest.reader, towards.reader, reader, followed.reader)
                async with asyncio.timeout(20):
                    await asyncio.gather(*map(ends, watched))
                took_s = time.monotonic() - started
                await ran
                print(f"\n[revocation] command to the last of 4 connections: {took_s:.3f} s")
                assert took_s < WITHIN_S * SLOW
                writer.close()
                assert api.connections.ended["peer refused: revoked"] >= 2  # The thief's two.
                assert loser.connections.ended["own identity withdrawn"] >= 1
                assert not len(api.connections)
                assert not len(loser.connections)

                before = listener.refused.get("revoked", 0)
                with contextlib.suppress(OSError):  # It hears of it only after the handshake.
                    reader, writer = await asyncio.open_connection(
                        *address, ssl=thief, server_hostname=""
                    )
                    assert not await reader.read()
                assert listener.refused["revoked"] == before + 1
                with pytest.raises(Refused, match="revoked"):
                    await dial(where, api, authorize=anyone)
                with pytest.raises(Unavailable, match="no such SVID"):
                    await dial(to(listener), loser, authorize=anyone, id=spiffe("loser"))
                impostor.close()

    asyncio.run(story())


def test_B4_lists_of_the_authority_name_the_revoked(host: Host, tmp_path: Path) -> None:
    register(host, "listed")

    async def story() -> tuple[int, bytes]:
        async with workload(host, "listed") as source:
            (bundle,) = source.bundles.values()
            leaf = x509.load_der_x509_certificate(source.current().chain[0])
            return leaf.serial_number, bundle[0]

    serial, anchor = asyncio.run(story())
    host.x0("authority", "revoke", spiffe("listed"), "--yes")
    ca = x509.load_der_x509_certificate(anchor)
    found: x509.CertificateRevocationList | None = None

    def listed() -> bool:
        nonlocal found
        found = x509.load_pem_x509_crl(host.x0("authority", "crl").encode())
        return found.get_revoked_certificate_by_serial_number(serial) is not None

    wait_for(listed, "the serial number to be on the list", 10)
    assert found is not None
    assert found.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    (path,) = host.x0("authority", "crl", "--der", str(tmp_path / "lists")).split()
    named = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert Path(path) == tmp_path / "lists" / f"{named.hex()}.crl"
    assert x509.load_der_x509_crl(Path(path).read_bytes()) == found


def test_B4_a_listener_staples_what_the_authority_says_of_it(host: Host) -> None:
    register(host, "stapler", "asker")

    async def story() -> None:
        async with (
            workload(host, "stapler") as stapler,
            workload(host, "asker", "hard") as asker,
        ):
            made = await listen("127.0.0.1:0", stapler, hold, authorize=anyone)
            async with made as listener:
                async with asyncio.timeout(10):
                    while not stapler.staples.of(stapler.current()):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                async with await dial(to(listener), asker, authorize=anyone) as connection:
                    assert connection.stapled == stapler.staples.of(stapler.current())
                plain = stolen(stapler)  # The same SVID, and nothing stapled.
                other = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0, ssl=plain)
                where = f"127.0.0.1:{other.sockets[0].getsockname()[1]}"
                assert asker.status is not None
                await dial(where, asker, authorize=anyone)  # Known from a moment ago.
                asker.status = OcspCache(True, asker.clock)
                asker.version += 1  # Contexts are made anew.
                with pytest.raises(Refused, match="no OCSP response"):
                    await dial(where, asker, authorize=anyone)
                other.close()

    asyncio.run(story())
