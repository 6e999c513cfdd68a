"""What the stores give and take: responses and their items, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, RowMapping, Table, or_

from ossia.server.replay import pack_messages, unpack_messages
from ossia.server.responses.items import Item


class StoredResponse(NamedTuple):
    """A response as it lies in the database.

    Attributes:
        body: the Response object.
        state: what a next turn must know beside the items (`date`).
        server: who works at it; None once it is over.
    """

    id: str
    owner: str
    status: str
    is_background: bool
    previous_id: str | None
    conversation_id: str | None
    body: dict[str, Any]
    state: dict[str, Any]
    server: str | None = None
    created_at: float = 0.0


def response_of(row: RowMapping) -> StoredResponse:
    return StoredResponse(
        id=row["id"],
        owner=row["owner"],
        status=row["status"],
        is_background=row["is_background"],
        previous_id=row["previous_id"],
        conversation_id=row["conversation_id"],
        body=json.loads(row["body"]),
        state=json.loads(row["state"]),
        server=row["server"],
        created_at=row["created_at"],
    )


def item_of(row: RowMapping) -> Item:
    messages = unpack_messages(row["messages"]) if row["messages"] else ()
    return Item(json.loads(row["body"]), messages)


def item_row(
    item: Item,
    *,
    owner: str,
    is_output: bool,
    response_id: str | None = None,
    conversation_id: str | None = None,
) -> Mapping[str, Any]:
    return {
        "id": item.id,
        "owner": owner,
        "response_id": response_id,
        "conversation_id": conversation_id,
        "is_output": is_output,
        "call_id": item.call_id,
        "body": json.dumps(item.body, separators=(",", ":")),
        "messages": pack_messages(item.messages),
    }


def is_alive(table: Table, now: float) -> ColumnElement[bool]:
    """The condition that a row has not expired."""
    return or_(table.c.expires_at.is_(None), table.c.expires_at > now)
