"""The tables, as SQLAlchemy Core sees them. `migrations/` makes them; a test holds the two together.

JSON stands in text columns: the server reads and writes it whole, and so SQLite and PostgreSQL hold the same bytes.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

_ID = String(80)
_BIG = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up only an INTEGER PRIMARY KEY

conversations = Table(
    "conversations",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("owner", _ID, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, index=True),
    Column("metadata", Text, nullable=False),
)

responses = Table(
    "responses",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("owner", _ID, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, index=True),
    Column("status", String(20), nullable=False),
    Column("is_background", Boolean, nullable=False),
    Column("previous_id", _ID),
    Column("conversation_id", _ID),
    Column("body", Text, nullable=False),  # the Response object
    Column("state", Text, nullable=False),  # what the next turn must know beside the items
    Column("server", String(200)),  # who works at it; null once it is over
    Column("lease_until", Float),
    Index("ix_responses_open", "status", "lease_until"),
)

items = Table(
    "items",
    metadata,
    Column("key", _BIG, primary_key=True, autoincrement=True),
    Column("id", _ID, nullable=False),
    Column("owner", _ID, nullable=False),
    Column("response_id", _ID, ForeignKey("responses.id", ondelete="CASCADE"), index=True),
    Column("conversation_id", _ID, ForeignKey("conversations.id", ondelete="CASCADE"), index=True),
    Column("is_output", Boolean, nullable=False),
    Column("call_id", String(200)),
    Column("body", Text, nullable=False),  # the item
    Column("messages", Text),  # what the model said for it, with the ids as sampled
    Index("ix_items_owner_id", "owner", "id"),
    Index("ix_items_owner_call", "owner", "call_id"),
)

events = Table(
    "events",
    metadata,
    Column("response_id", _ID, ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("type", String(80), nullable=False),
    Column("data", Text, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("hint", String(8), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("concurrency", Integer),
)
