"""PostgreSQL for the tests of its drivers: roles named like the last part of SPIFFE IDs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from tests.sdk.frameworks import servers
from tests.sdk.frameworks.stories import Serve
from x0tta6bl4.sdk.frameworks import postgres
from x0tta6bl4.sdk.identity import X509Source
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.wire.ids import SpiffeId

ROLES = ("web", "client", "other", "shop")


def user_of(id: str) -> str:
    """The role of an ID."""
    return id.rpartition("/")[2]


def users(id: SpiffeId) -> tuple[str, ...]:
    """What the front allows."""
    return (user_of(id),)


@contextmanager
def server() -> Iterator[str]:
    """PostgreSQL with these roles; gives its socket."""
    with servers.postgres_server("".join(f"CREATE ROLE {role} LOGIN;\n" for role in ROLES)) as path:
        yield path


def serving(server: str) -> Serve:
    """A front of this server, for stories."""

    @asynccontextmanager
    async def serve(
        source: X509Source, authorize: Authorizer, id: str | None = None
    ) -> AsyncIterator[int]:
        async with postgres.front(
            "127.0.0.1:0", source, authorize=authorize, server=server, users=users, id=id
        ) as front:
            yield front.port

    return serve
