"""Responses, items, events, conversations and API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("owner", sa.String(80), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, index=True),
        sa.Column("metadata", sa.Text, nullable=False),
    )
    op.create_table(
        "responses",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("owner", sa.String(80), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, index=True),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("is_background", sa.Boolean, nullable=False),
        sa.Column("previous_id", sa.String(80)),
        sa.Column("conversation_id", sa.String(80)),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("server", sa.String(200)),
        sa.Column("lease_until", sa.Float),
    )
    op.create_index("ix_responses_open", "responses", ["status", "lease_until"])
    op.create_table(
        "items",
        sa.Column("key", big, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(80), nullable=False),
        sa.Column("owner", sa.String(80), nullable=False),
        sa.Column("response_id", sa.String(80), sa.ForeignKey("responses.id", ondelete="CASCADE"), index=True),
        sa.Column("conversation_id", sa.String(80), sa.ForeignKey("conversations.id", ondelete="CASCADE"), index=True),
        sa.Column("is_output", sa.Boolean, nullable=False),
        sa.Column("call_id", sa.String(200)),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("messages", sa.Text),
    )
    op.create_index("ix_items_owner_id", "items", ["owner", "id"])
    op.create_index("ix_items_owner_call", "items", ["owner", "call_id"])
    op.create_table(
        "events",
        sa.Column("response_id", sa.String(80), sa.ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("type", sa.String(80), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("hint", sa.String(8), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("concurrency", sa.Integer),
    )


def downgrade() -> None:
    for table in ("api_keys", "events", "items", "responses", "conversations"):
        op.drop_table(table)
