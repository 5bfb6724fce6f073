"""The same for threads, and without a pool."""

import sys

import psycopg

from x0tta6bl4.sdk.frameworks.psycopg import blocking_route
from x0tta6bl4.sdk.identity import exact
from x0tta6bl4.sdk.identity.blocking import X509Source

with X509Source() as source:
    source.wait()
    who = exact("spiffe://example.org/web")
    with (
        blocking_route(f"127.0.0.1:{sys.argv[1]}", source, authorize=who) as where,
        psycopg.connect(**where, user="web", dbname="postgres") as connection,
    ):
        print(connection.execute("SELECT current_user").fetchone())
