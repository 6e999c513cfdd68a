"""Conversations and their items. All methods block: call them through `Database.call`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from ossia.server.responses.items import Item
from ossia.server.store.database import Database
from ossia.server.store.rows import is_alive, item_of, item_row
from ossia.server.store.tables import conversations, items


class StoredConversation(NamedTuple):
    """A conversation without its items."""

    id: str
    created_at: float
    metadata: Mapping[str, str]


class ConversationStore:
    """See the module.

    Args:
        clock: seconds since 1970.
        ttl: seconds that a conversation lives after its last change; None for ever.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float], ttl: float | None) -> None:
        self._database = database
        self._clock = clock
        self._ttl = ttl

    def create(self, owner: str, conversation: StoredConversation, new: Sequence[Item]) -> None:
        """Keep a conversation with its first items."""

        def work(db: Connection) -> None:
            row = {
                "id": conversation.id,
                "owner": owner,
                "created_at": conversation.created_at,
                "expires_at": self._expiry(),
                "metadata": json.dumps(dict(conversation.metadata)),
            }
            db.execute(insert(conversations).values(row))
            _add(db, owner, conversation.id, new)

        self._database.run(work)

    def load(self, owner: str, conversation_id: str) -> StoredConversation | None:
        """A conversation of that owner."""
        query = select(conversations).where(
            conversations.c.id == conversation_id,
            conversations.c.owner == owner,
            is_alive(conversations, self._clock()),
        )
        row = self._database.run(lambda db: db.execute(query).mappings().one_or_none())
        return None if row is None else _conversation_of(row)

    def change(self, owner: str, conversation_id: str, metadata: Mapping[str, str]) -> bool:
        """Replace a conversation's metadata; False if there is none."""
        query = update(conversations).where(conversations.c.id == conversation_id, conversations.c.owner == owner)
        values = {"metadata": json.dumps(dict(metadata)), "expires_at": self._expiry()}
        return self._database.run(lambda db: db.execute(query.values(values)).rowcount) > 0

    def delete(self, owner: str, conversation_id: str) -> bool:
        """Forget a conversation and its items; False if there is none."""
        query = delete(conversations).where(conversations.c.id == conversation_id, conversations.c.owner == owner)
        return self._database.run(lambda db: db.execute(query).rowcount) > 0

    def items(self, owner: str, conversation_id: str) -> list[Item]:
        """A conversation's items, in order."""
        query = (
            select(items)
            .where(items.c.conversation_id == conversation_id, items.c.owner == owner)
            .order_by(items.c.key)
        )
        return self._database.run(lambda db: [item_of(row) for row in db.execute(query).mappings()])

    def append(self, owner: str, conversation_id: str, new: Sequence[Item]) -> None:
        """Add items at the end."""

        def work(db: Connection) -> None:
            change = update(conversations).where(conversations.c.id == conversation_id)
            db.execute(change.values(expires_at=self._expiry()))
            _add(db, owner, conversation_id, new)

        self._database.run(work)

    def remove(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """Take an item out; False if there is none."""
        query = delete(items).where(
            items.c.conversation_id == conversation_id, items.c.owner == owner, items.c.id == item_id
        )
        return self._database.run(lambda db: db.execute(query).rowcount) > 0

    def sweep(self) -> int:
        """Delete what has expired; how many conversations went."""
        query = delete(conversations).where(conversations.c.expires_at <= self._clock())
        return self._database.run(lambda db: db.execute(query).rowcount)

    def _expiry(self) -> float | None:
        return None if self._ttl is None else self._clock() + self._ttl


def _add(db: Connection, owner: str, conversation_id: str, new: Sequence[Item]) -> None:
    if new:
        rows = [item_row(item, owner=owner, is_output=False, conversation_id=conversation_id) for item in new]
        db.execute(insert(items), rows)


def _conversation_of(row: RowMapping) -> StoredConversation:
    return StoredConversation(row["id"], row["created_at"], json.loads(row["metadata"]))
