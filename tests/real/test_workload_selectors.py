"""Programs of one user told apart by a real agent: each gets what its script may have."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.test_workload_api import DOMAIN, Node
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.authority import Entry

ID = f"spiffe://{DOMAIN}/script"
SHOW = (
    "import sys\nfrom x0tta6bl4.app.cli.main import main\n"
    "main(['svid', 'show', '--timeout', sys.argv[1]])\n"
)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    root = Path(tempfile.mkdtemp(prefix="x0ws"))
    made = Node(root)
    try:
        made.start()
        yield made
    finally:
        made.mesh.stop()
        shutil.rmtree(root)


def show(node: Node, script: Path, timeout_s: int) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_"))}
    return subprocess.run(
        [sys.executable, "-I", str(script), str(timeout_s)],
        env={**clean, "SPIFFE_ENDPOINT_SOCKET": f"unix:{node.socket}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def why(node: Node) -> dict[str, str]:
    with AdminClient(node.mesh.state("n1")) as client:
        found = client.ask(admin.ExplainDenied(ID), admin.CheckAnswer).findings
    return {one.id: one.what for one in found}


def test_SP_097_a_script_has_its_identity_and_another_of_its_user_has_not(
    node: Node, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(SHOW)
    bad.write_text(SHOW + "# and something else\n")
    digest = hashlib.sha256(good.read_bytes()).hexdigest()
    selectors = (f"python:script-sha256:{digest}", f"unix:uid:{os.getuid()}")
    assert f"no entry gives {ID} to a program of node n1" in why(node).values()
    node.operator.call("EntryCreate", Entry(id=ID, node="n1", selectors=selectors))
    time.sleep(0.05)  # Files are stamped in ticks: the programs are younger than their scripts.
    ran = show(node, good, 30)
    assert ran.returncode == 0, ran.stderr
    assert ID in ran.stdout
    assert why(node).keys() == {"X0-DEN-010"}
    ran = show(node, bad, 1)
    assert ran.returncode != 0
    assert ID not in ran.stdout
    found = why(node)
    assert f"it is not python:script-sha256:{digest} but" in found["X0-DEN-009"]
    assert str(bad) in found["X0-DEN-009"]
