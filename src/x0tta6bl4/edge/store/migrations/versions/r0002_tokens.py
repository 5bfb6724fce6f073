"""JWT keys of CAs, foreign trust domains, and entries that federate."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"


def upgrade() -> None:
    """From 0001 to 0002; a CA from before gets its JWT key when the authority runs."""
    # Columns are added and dropped in place: a table made anew would take its record keys with it.
    op.add_column("ca_keys", sa.Column("jwt_key", sa.String(), nullable=False, server_default=""))
    for name in ("jwt_public", "jwt_private"):
        empty = sa.text("x''")
        op.add_column(
            "ca_keys", sa.Column(name, sa.LargeBinary(), nullable=False, server_default=empty)
        )
    op.add_column(
        "entries", sa.Column("federates_with", sa.String(), nullable=False, server_default="[]")
    )
    op.create_table(
        "federations",
        sa.Column("trust_domain", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("endpoint_id", sa.String(), nullable=False),
        sa.Column("bundle", sa.LargeBinary(), nullable=False),
        sa.Column("sequence", sa.String(), nullable=False),
        sa.Column("fetched_unix_s", sa.Integer(), nullable=False),
        sa.Column("next_unix_s", sa.Integer(), nullable=False),
        sa.Column("failed", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("trust_domain", name=op.f("pk_federations")),
    )


def downgrade() -> None:
    """From 0002 to 0001."""
    op.drop_table("federations")
    op.drop_column("entries", "federates_with")
    for name in ("jwt_private", "jwt_public", "jwt_key"):
        op.drop_column("ca_keys", name)
