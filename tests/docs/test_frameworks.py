"""The pages of frameworks: their code is that of the examples, and the examples run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs import runner
from x0tta6bl4.app.mesh import free_ports
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

PAGES = sorted((runner.ROOT / "docs" / "frameworks").glob("*.md"))
WITH_A_SERVER = (
    "asyncio",
    "grpcio",
    "grpclib",
    "uvloop",
    "aiohttp",
    "httpx",
    "uvicorn",
    "hypercorn",
    "starlette",
)
"""Frameworks whose example is a server and a client that take a port."""


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_code_of_a_page_is_that_of_its_files(page: Path) -> None:
    assert runner.stale(page) == []
    assert runner.unnamed(page) == 0
    assert runner.blocks(page, "python")


@pytest.mark.parametrize("name", WITH_A_SERVER)
def test_an_example_does_what_its_page_says(name: str) -> None:
    page = runner.ROOT / "docs" / "frameworks" / f"{name}.md"
    server, *_ = runner.blocks(page, "python")
    said = runner.blocks(page, "text")
    assert said
    assert said == {client: run(server, client) for client in said}


def run(server: str, client: str) -> str:
    """What the client prints, with a server and a Workload API of its own."""
    with WorkloadApi() as api:
        api.issue("/web")
        port = str(free_ports(1)[0])
        env = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": api.endpoint}
        with runner.running(server, port, env=env):
            return runner.output(client, port, env=env)
