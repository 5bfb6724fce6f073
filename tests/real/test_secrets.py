"""After a full run nobody finds a private key or a token: not in logs, arguments, environments,
core dumps, nor in a file that others may read.

The run: an authority, a node, workloads of the SDK that rotate, JWT-SVIDs, SVIDs in files.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import re
import resource
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from tests.real.test_dev import X0, children, said
from x0tta6bl4.edge.tls.x509 import load_any_key
from x0tta6bl4.runtime.secrecy import keep_secrets
from x0tta6bl4.sdk.identity import WorkloadClient, fetch_jwt_svids

PR_GET_DUMPABLE = 3
PEM = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(.*?)-----END", re.DOTALL)


def scalar(der: bytes) -> bytes:
    """The secret number of a private key: it stands in every encoding of the key."""
    key = load_any_key(der)
    assert isinstance(key, EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(32, "big")


def spellings(secret: bytes) -> Iterator[bytes]:
    """As it is, in hex, and in base64 at each of its three alignments."""
    yield secret
    yield secret.hex().encode()
    for skip in range(3):
        yield base64.b64encode(secret[skip:])[:-4]


def holds(data: bytes, secrets: list[bytes]) -> bool:
    """Whether one of the secrets stands in it."""
    found = PEM.findall(data)
    data += b"".join(base64.b64decode(each) for each in found)
    return any(spelt in data for secret in secrets for spelt in spellings(secret))


def wide(path: Path) -> bool:
    """Whether others may read it: its own mode, and a way to it."""
    if not path.stat().st_mode & 0o077:
        return False
    return all(stat.S_IMODE(up.stat().st_mode) & 0o011 for up in path.parents if up != Path("/"))


async def identities(endpoint: str) -> list[bytes]:
    """Secrets that workloads hold now: keys of their SVIDs, and a token."""
    async with WorkloadClient(endpoint) as client:
        held = await client.fetch_x509()
        token = (await fetch_jwt_svids("somebody", client=client))[0].token
    return [*(scalar(svid.key) for svid in held.svids), token.rpartition(".")[2].encode()]


def test_a_search_finds_what_lies_about(tmp_path: Path) -> None:
    secret = bytes(range(32))
    for place, spelt in enumerate(spellings(secret)):
        assert holds(b"xx" + spelt + b"yy", [secret]), place
    assert not holds(b"nothing here", [secret])
    (tmp_path / "open").write_bytes(b"")
    (tmp_path / "open").chmod(0o644)
    tmp_path.chmod(0o700)
    assert not wide(tmp_path / "open")


def test_secrets_stay_where_they_belong() -> None:
    with tempfile.TemporaryDirectory(prefix="sec", dir="/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        home = root / "dev"
        env = {**os.environ}
        with (
            open(root / "out.log", "wb") as log,
            subprocess.Popen(
                [*X0, "dev", "--ttl", "10", "--dir", str(home), "--workload", "web"],
                text=True, stdout=subprocess.PIPE, stderr=log,
            ) as process,
        ):  # fmt: skip
            try:
                endpoint = said(process, "export SPIFFE_ENDPOINT_SOCKET=").partition("=")[2]
                env["SPIFFE_ENDPOINT_SOCKET"] = endpoint
                secrets = asyncio.run(identities(endpoint))
                subprocess.run(
                    [*X0, "svid", "write", "--once", "--dir", str(root / "files")],
                    env=env, check=True, timeout=30, stderr=log,
                )  # fmt: skip
                said(process, "shop heard")
                first = said(process, "stock holds")
                assert said(process, "stock holds") != first
                secrets += asyncio.run(identities(endpoint))
                secrets.append(scalar((home / "dev" / "node.key").read_bytes()))
                living = children(process, str(home))
                assert len(living) >= 5, living
                for pid in living:
                    about = Path("/proc") / pid
                    for what in ("cmdline", "environ"):
                        assert not holds((about / what).read_bytes(), secrets), (pid, what)
                for part in ("authority/authority.pid", "dev/agent.pid", "dev/proxy.pid"):
                    limits = Path(f"/proc/{int((home / part).read_text())}/limits").read_text()
                    assert re.search(r"Max core file size +0 +0 ", limits), part
                process.terminate()
                assert process.wait(15) == 0
            finally:
                process.kill()
        seen = 0
        for path in root.rglob("*"):
            if path.is_file() and holds(path.read_bytes(), secrets):
                seen += 1
                assert path.suffix != ".log", path
                assert not wide(path), f"{path} {path.stat().st_mode:o}"
        assert seen, "not even the files that are meant to hold keys: the search is blind"


def test_memory_with_keys_is_not_dumped_and_not_traced() -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        keep_secrets()
        dumpable = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
        said = f"{dumpable} {resource.getrlimit(resource.RLIMIT_CORE)} {os.umask(0):o}"
        os.write(writing, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 100) == b"0 (0, 0) 77"
    os.close(reading)
    os.close(writing)
