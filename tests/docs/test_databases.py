"""The pages of databases: their examples run against real servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.docs import runner
from tests.fakes.workload import WEB
from tests.sdk.frameworks import databases, servers
from x0tta6bl4.app.mesh import free_ports
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

PASSWORD = "for the front"


@contextmanager
def redis_server(folder: Path) -> Iterator[list[str]]:
    """Arguments of the front, after its port."""
    with servers.redis_server() as path:
        admin: Any
        with redis.Redis(unix_socket_path=path) as admin:
            admin.acl_setuser(
                WEB, enabled=True, passwords=["+" + PASSWORD], keys=["*"], commands=["+@all"]
            )
            admin.acl_setuser("default", enabled=False)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        yield [path, str(secret)]


@contextmanager
def postgres_server(folder: Path) -> Iterator[list[str]]:
    """Likewise."""
    with databases.server() as path:
        yield [path]


SERVERS: dict[str, Callable[[Path], AbstractContextManager[list[str]]]] = {
    "redis": redis_server,
    "psycopg": postgres_server,
    "asyncpg": postgres_server,
}
FRONTS = {"asyncpg": "psycopg"}
"""Page -> folder with the front's file, where it is another one."""


@pytest.mark.parametrize("name", SERVERS)
def test_an_example_does_what_its_page_says(name: str, tmp_path: Path) -> None:
    page = runner.ROOT / "docs" / "frameworks" / f"{name}.md"
    assert runner.blocks(page, "text") == outputs(name, tmp_path)


def outputs(name: str, folder: Path) -> dict[str, str]:
    """What the clients of a page print: all files of it but the front."""
    page = runner.ROOT / "docs" / "frameworks" / f"{name}.md"
    clients = [file for file in runner.blocks(page, "python") if not file.endswith("front.py")]
    with WorkloadApi() as api, SERVERS[name](folder) as arguments:
        api.issue("/web")
        port = str(free_ports(1)[0])
        env = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": api.endpoint}
        front = f"examples/{FRONTS.get(name, name)}/front.py"
        with runner.running(front, port, *arguments, env=env):
            return {client: runner.output(client, port, env=env) for client in clients}
