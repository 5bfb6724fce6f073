"""Tables of an authority's store.

One class of rows (`core.authority.rows`) is one table, field by field; a CA is split from its
record key.  Lists are JSON text, lists of bytes msgpack.  Private keys are in the file: it is 0600
in a directory 0700, so that a key and the certificate made for it are written together or not at
all, and one file is all there is to back up.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    text,
)

REVISION: Final = "0003"
"""Newest migration; a store of another revision is migrated when it is opened."""

METADATA: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _text(name: str, **options: object) -> Column[str]:
    return Column(name, String, nullable=False, **options)  # type: ignore[arg-type]


def _int(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False)


def _blob(name: str, **options: object) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=False, **options)  # type: ignore[arg-type]


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


TRUST_DOMAIN = Table(
    "trust_domain",
    METADATA,
    Column("one", Integer, CheckConstraint("one = 1", name="single"), primary_key=True),
    _text("trust_domain"),
    _text("authority"),
    _int("created_unix_s"),
    _int("policy_version"),
    _int("floor_unix_us"),
    _int("renew_before_unix_s"),
)
CA_KEYS = Table(
    "ca_keys",
    METADATA,
    Column("id", String, primary_key=True),
    _text("state"),
    _blob("certificate"),
    _blob("private"),
    _int("not_before_unix_s"),
    _int("not_after_unix_s"),
    _int("prepared_unix_s"),
    _text("jwt_key", server_default=""),
    _blob("jwt_public", server_default=text("x''")),
    _blob("jwt_private", server_default=text("x''")),
)
RECORD_KEYS = Table(
    "record_keys",
    METADATA,
    Column("record_key", String, primary_key=True),
    Column("ca", String, ForeignKey("ca_keys.id", ondelete="CASCADE"), nullable=False),
    _blob("record_point"),
    _blob("record_private"),
)
NODES = Table(
    "nodes",
    METADATA,
    Column("name", String, primary_key=True),
    _blob("point"),
    _int("enrolled_unix_s"),
    _int("attested_unix_s"),
    _flag("draining"),
    _int("evicted_unix_s"),
    _text("reason"),
)
TOKENS = Table(
    "tokens",
    METADATA,
    Column("id", String, primary_key=True),
    _blob("digest"),
    _text("node"),
    _int("created_unix_s"),
    _int("expires_unix_s"),
    _int("used_unix_s"),
    Column("used_by", String, ForeignKey("nodes.name", ondelete="SET NULL"), nullable=True),
)
ISSUED = Table(
    "issued",
    METADATA,
    Column("serial", String, primary_key=True),
    _text("subject"),
    Column("node", String, ForeignKey("nodes.name", ondelete="SET NULL"), nullable=True),
    _text("entry"),
    _int("not_before_unix_s"),
    _int("not_after_unix_s"),
    Index("ix_issued_not_after_unix_s", "not_after_unix_s"),
    Index("ix_issued_subject", "subject"),
    Index("ix_issued_node", "node"),
)
SETS = Table(
    "sets",
    METADATA,
    Column("name", String, primary_key=True),
    _int("sequence"),
    _int("generation"),
    _int("expires_unix_s"),
    _blob("records"),
)
BUNDLES = Table(
    "bundles",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    _blob("digest"),
    _blob("body"),
    _text("signer"),
    _text("keys"),
    _blob("records"),
)
ENTRIES = Table(
    "entries",
    METADATA,
    Column("key", String, primary_key=True),
    _text("id"),
    _text("node"),
    _text("selectors"),
    _int("ttl_s"),
    _text("address"),
    _flag("proxy_header"),
    _text("hint"),
    _int("revision"),
    _text("federates_with", server_default="[]"),
    Index("ix_entries_node", "node"),
)


class _Unsigned(TypeDecorator[int]):
    """An integer of 64 bits without sign, as decimal text: SQLite's own have a sign."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: object) -> str:
        """To text."""
        return str(value)

    def process_result_value(self, value: str | None, dialect: object) -> int:
        """From text."""
        return int(value or 0)


FEDERATIONS = Table(
    "federations",
    METADATA,
    Column("trust_domain", String, primary_key=True),
    _text("url"),
    _text("profile"),
    _text("endpoint_id"),
    _blob("bundle"),
    Column("sequence", _Unsigned, nullable=False),
    _int("fetched_unix_s"),
    _int("next_unix_s"),
    _text("failed"),
)
NAMES = Table(
    "names",
    METADATA,
    Column("name", String, primary_key=True),
    _text("id"),
    _text("callers"),
    _flag("proxy_header"),
)
RULES = Table(
    "rules",
    METADATA,
    Column("id", String, primary_key=True),
    _text("effect"),
    _text("callers"),
    _text("targets"),
)
BANS = Table(
    "bans",
    METADATA,
    Column("subject", String, primary_key=True),
    _text("reason"),
    _int("since_unix_s"),
)
REVOCATIONS = Table(
    "revocations",
    METADATA,
    Column("subject", String, primary_key=True),
    Column("issued_before_unix_s", Integer, primary_key=True),
    _int("until_unix_s"),
    _text("reason"),
)
HEAD = Table(
    "head",
    METADATA,
    Column("one", Integer, CheckConstraint("one = 1", name="single"), primary_key=True),
    _int("commits"),
    _int("changed"),
)
"""How many commits there were, and which was the newest that did more than to add what is out."""
LOG = Table(
    "log",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    _text("writer"),
    _blob("changes"),
)
"""The newest commits: what each has changed, by class and key; no copy of a row that can change."""
