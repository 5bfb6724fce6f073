"""Clients of others, unchanged, against our agent: rotations, a new bundle, tokens, withdrawal.

The packages come from their registries into a place of their own; where they, or Go, can't be had
the test is skipped by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.others import go, python
from tests.real.test_workload_api import DOMAIN, Node, entry
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.wire import admin
from x0tta6bl4.wire import authority as words

pytestmark = [pytest.mark.night, pytest.mark.timeout(400)]
ROTATIONS = 20

SPIFFE = """
import time, warnings
warnings.simplefilter("ignore")
from spiffe import WorkloadApiClient
def say(*words): print(*words, flush=True)
def on_error(error): say("error", repr(error))
def update(context):
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    say("update", len(context.x509_svids), svid.spiffe_id, svid.cert_chain[0].serial_number,
        len(bundle.x509_authorities))
with WorkloadApiClient() as client:
    token = client.fetch_jwt_svid(audience={"db"})
    client.validate_jwt_svid(token.token, "db")
    say("jwt", token.spiffe_id)
    client.stream_x509_contexts(on_success=update, on_error=on_error)
    time.sleep(300)
"""
DEFAKTO = """
import asyncio, os
from cryptography import x509
from spiffe_defakto import LocalWorkloadAPIClient, UnixOptions
def say(*words): print(*words, flush=True)
async def main():
    path = os.environ["SPIFFE_ENDPOINT_SOCKET"].removeprefix("unix://")
    client = LocalWorkloadAPIClient(UnixOptions(path))
    token = await client._fetch_jwt_svid(["db"])
    say("jwt", "spiffe://workload.test/web" if token else "")
    try:
        async for context in client.watch_x509_context():
            svid = context.default_svid()
            serial = getattr(svid.certificates[0], "serial_number", None)
            bundle = next(iter(context.bundles.values()))
            authorities = getattr(bundle, "authorities", None) or bundle.x509_authorities
            say("update", len(context.svids), svid.id, serial, len(authorities))
    except Exception as error:
        say("error", repr(error))
asyncio.run(main())
"""


class Client:
    """A program that says a line for each thing that happens to it."""

    def __init__(self, command: list[str], socket: str) -> None:
        self.lines: list[list[str]] = []
        self._child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{socket}"},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self.lines.append(line.split())

    def wait(self, what: Callable[[list[list[str]]], bool], name: str) -> None:
        """Wait until it has said something."""
        end = time.monotonic() + 30
        while not what(self.lines):
            assert time.monotonic() < end, f"{name}; it said {self.lines[-5:]}"
            time.sleep(0.01)

    def updates(self) -> list[list[str]]:
        return [line for line in self.lines if line[0] == "update"]

    def stop(self) -> None:
        self._child.kill()
        self._child.wait()
        self._reader.join()
        assert self._child.stdout is not None
        self._child.stdout.close()


@pytest.fixture
def node() -> Iterator[Node]:
    root = Path(tempfile.mkdtemp(prefix="x0wl"))
    made = Node(root)
    try:
        made.start()
        yield made
    finally:
        made.mesh.stop()
        shutil.rmtree(root)


@pytest.mark.parametrize("kind", ["go", "spiffe", "spiffe-defakto"])
def test_SP_104_108_116_118_121_others_clients_follow_our_agent_server(
    node: Node, kind: str, tmp_path: Path
) -> None:
    programs = {"spiffe": SPIFFE, "spiffe-defakto": DEFAKTO}
    if kind == "go":
        command = [go(tmp_path)]
    else:
        command = [python(tmp_path, kind), "-c", programs[kind]]
    client = Client(command, node.socket)
    try:
        time.sleep(0.5)  # It waits: there is no entry yet.
        node.operator.create_entries([entry("web")])
        web = f"spiffe://{DOMAIN}/web"
        client.wait(lambda lines: ["jwt", web] in lines, "a token")
        client.wait(lambda _: bool(client.updates()), "the first SVID")
        for _ in range(ROTATIONS):
            before = client.updates()[-1]
            with AdminClient(node.mesh.state("n1")) as desk:
                desk.ask(admin.Renew(id=web), admin.Fine)
            client.wait(lambda _, before=before: client.updates()[-1][3] != before[3], "renewal")  # type: ignore[misc]
        assert client.updates()[-1][4] == "1"
        node.operator.call("BundleRotate", words.BundleRotate(step="prepare", force=True))
        client.wait(lambda _: client.updates()[-1][4] == "2", "the new CA")
        node.operator.create_entries([entry("xtra")])
        client.wait(lambda _: client.updates()[-1][1] == "2", "the second identity")
        for key in ("web", "xtra"):
            node.operator.call("EntryDelete", words.Key(key=key))
        # Not all of them say that they were refused; the one that refused them knows.
        refused = "workload_api_calls_total|FetchX509SVID|permission_denied"
        client.wait(lambda _: refused in node.status().counters, "the withdrawal")
    finally:
        client.stop()
