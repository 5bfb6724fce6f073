"""What Alembic runs around each migration: on the connection that the store hands in."""

from __future__ import annotations

from alembic import context

from x0tta6bl4.edge.store.schema import METADATA

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=METADATA,
    render_as_batch=True,
    transactional_ddl=False,
    transaction_per_migration=False,
)
context.run_migrations()
