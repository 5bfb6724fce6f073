"""The first tables."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None


def upgrade() -> None:
    """From nothing to 0001."""
    _keys()
    _nodes()
    _registry()
    _published()


def _keys() -> None:
    op.create_table(
        "trust_domain",
        sa.Column("one", sa.Integer(), nullable=False),
        sa.Column("trust_domain", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("created_unix_s", sa.Integer(), nullable=False),
        sa.Column("policy_version", sa.Integer(), nullable=False),
        sa.Column("floor_unix_us", sa.Integer(), nullable=False),
        sa.Column("renew_before_unix_s", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_trust_domain")),
    )
    op.create_table(
        "ca_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("private", sa.LargeBinary(), nullable=False),
        sa.Column("not_before_unix_s", sa.Integer(), nullable=False),
        sa.Column("not_after_unix_s", sa.Integer(), nullable=False),
        sa.Column("prepared_unix_s", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ca_keys")),
    )
    op.create_table(
        "record_keys",
        sa.Column("record_key", sa.String(), nullable=False),
        sa.Column("ca", sa.String(), nullable=False),
        sa.Column("record_point", sa.LargeBinary(), nullable=False),
        sa.Column("record_private", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["ca"], ["ca_keys.id"], name=op.f("fk_record_keys_ca"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("record_key", name=op.f("pk_record_keys")),
    )


def _nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("point", sa.LargeBinary(), nullable=False),
        sa.Column("enrolled_unix_s", sa.Integer(), nullable=False),
        sa.Column("attested_unix_s", sa.Integer(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("evicted_unix_s", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_nodes")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("created_unix_s", sa.Integer(), nullable=False),
        sa.Column("expires_unix_s", sa.Integer(), nullable=False),
        sa.Column("used_unix_s", sa.Integer(), nullable=False),
        sa.Column("used_by", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["used_by"], ["nodes.name"], name=op.f("fk_tokens_used_by"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
    )
    op.create_table(
        "issued",
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=True),
        sa.Column("entry", sa.String(), nullable=False),
        sa.Column("not_before_unix_s", sa.Integer(), nullable=False),
        sa.Column("not_after_unix_s", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["node"], ["nodes.name"], name=op.f("fk_issued_node"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_issued")),
    )
    op.create_index("ix_issued_node", "issued", ["node"], unique=False)
    op.create_index("ix_issued_not_after_unix_s", "issued", ["not_after_unix_s"], unique=False)
    op.create_index("ix_issued_subject", "issued", ["subject"], unique=False)


def _registry() -> None:
    op.create_table(
        "entries",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("selectors", sa.String(), nullable=False),
        sa.Column("ttl_s", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("proxy_header", sa.Boolean(), nullable=False),
        sa.Column("hint", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_entries")),
    )
    op.create_index("ix_entries_node", "entries", ["node"], unique=False)
    op.create_table(
        "names",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("callers", sa.String(), nullable=False),
        sa.Column("proxy_header", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_names")),
    )
    op.create_table(
        "rules",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("effect", sa.String(), nullable=False),
        sa.Column("callers", sa.String(), nullable=False),
        sa.Column("targets", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rules")),
    )


def _published() -> None:
    op.create_table(
        "sets",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("expires_unix_s", sa.Integer(), nullable=False),
        sa.Column("records", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sets")),
    )
    op.create_table(
        "bundles",
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("signer", sa.String(), nullable=False),
        sa.Column("keys", sa.String(), nullable=False),
        sa.Column("records", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_bundles")),
    )
    op.create_table(
        "bans",
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("since_unix_s", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_bans")),
    )
    op.create_table(
        "revocations",
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("issued_before_unix_s", sa.Integer(), nullable=False),
        sa.Column("until_unix_s", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "issued_before_unix_s", name=op.f("pk_revocations")),
    )


def downgrade() -> None:
    """From 0001 to nothing."""
    op.drop_table("tokens")
    op.drop_table("record_keys")
    op.drop_index("ix_issued_subject", table_name="issued")
    op.drop_index("ix_issued_not_after_unix_s", table_name="issued")
    op.drop_index("ix_issued_node", table_name="issued")
    op.drop_table("issued")
    op.drop_table("trust_domain")
    op.drop_table("sets")
    op.drop_table("rules")
    op.drop_table("revocations")
    op.drop_table("nodes")
    op.drop_table("names")
    op.drop_index("ix_entries_node", table_name="entries")
    op.drop_table("entries")
    op.drop_table("ca_keys")
    op.drop_table("bundles")
    op.drop_table("bans")
