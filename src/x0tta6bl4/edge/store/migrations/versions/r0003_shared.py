"""Commits are numbered and logged, for the other authorities of a trust domain."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"


def upgrade() -> None:
    """From 0002 to 0003."""
    op.create_table(
        "head",
        sa.Column("one", sa.Integer(), nullable=False),
        sa.Column("commits", sa.Integer(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.CheckConstraint("one = 1", name=op.f("ck_head_single")),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_head")),
    )
    op.execute("INSERT INTO head (one, commits, changed) VALUES (1, 0, 0)")
    op.create_table(
        "log",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("writer", sa.String(), nullable=False),
        sa.Column("changes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_log")),
    )


def downgrade() -> None:
    """From 0003 to 0002."""
    op.drop_table("log")
    op.drop_table("head")
