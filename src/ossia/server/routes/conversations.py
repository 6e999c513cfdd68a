"""/v1/conversations: what responses of one conversation share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ossia.server.body import read_model
from ossia.server.context import ServerContext, context_of, info_of
from ossia.server.errors import not_found, unsupported
from ossia.server.openapi import describe
from ossia.server.responses.items import Item, ItemReader, normalise
from ossia.server.responses.schema import ConversationBody, ConversationUpdate, ItemsBody, JsonObject
from ossia.server.routes.responses import Limit, Order, check_id, page
from ossia.server.store.conversations import StoredConversation

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])


@router.post("", **describe(ConversationBody, is_required=False))
async def create_conversation(request: Request) -> JSONResponse:
    """Begin a conversation, with items if there are any."""
    context, owner = context_of(request), info_of(request).caller.key_id
    body = await read_model(request, ConversationBody)
    items = await _read(context, owner, body.items or (), history=())
    conversation = StoredConversation(context.new_id("conv"), float(int(context.clock())), body.metadata or {})
    await context.database.call(context.responses.conversations.create, owner, conversation, items)
    return JSONResponse(_body(conversation))


@router.get("/{conversation_id}")
async def get_conversation(request: Request, conversation_id: str) -> JSONResponse:
    """A conversation."""
    return JSONResponse(_body(await _load(request, conversation_id)))


@router.post("/{conversation_id}", **describe(ConversationUpdate))
async def update_conversation(request: Request, conversation_id: str) -> JSONResponse:
    """Replace a conversation's metadata."""
    context, owner = context_of(request), info_of(request).caller.key_id
    found = await _load(request, conversation_id)
    body = await read_model(request, ConversationUpdate)
    changed = found._replace(metadata=body.metadata or {})
    await context.database.call(context.responses.conversations.change, owner, conversation_id, changed.metadata)
    return JSONResponse(_body(changed))


@router.delete("/{conversation_id}")
async def delete_conversation(request: Request, conversation_id: str) -> JSONResponse:
    """Forget a conversation and its items; responses made in it stay."""
    context, owner = context_of(request), info_of(request).caller.key_id
    check_id(conversation_id)
    if not await context.database.call(context.responses.conversations.delete, owner, conversation_id):
        raise _missing(conversation_id)
    return JSONResponse({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@router.get("/{conversation_id}/items")
async def list_items(
    request: Request, conversation_id: str, limit: Limit = 20, order: Order = "desc", after: str | None = None
) -> JSONResponse:
    """A conversation's items."""
    items = await _items(request, conversation_id)
    return JSONResponse(page(items, limit=limit, order=order, after=after))


@router.post("/{conversation_id}/items", **describe(ItemsBody))
async def add_items(request: Request, conversation_id: str) -> JSONResponse:
    """Add items at the end."""
    context, owner = context_of(request), info_of(request).caller.key_id
    history = await _items(request, conversation_id)
    body = await read_model(request, ItemsBody)
    items = await _read(context, owner, body.items, history=history)
    await context.database.call(context.responses.conversations.append, owner, conversation_id, items)
    return JSONResponse(page(items, limit=len(items), order="asc", after=None))


@router.get("/{conversation_id}/items/{item_id}")
async def get_item(request: Request, conversation_id: str, item_id: str) -> JSONResponse:
    """One item."""
    for item in await _items(request, conversation_id):
        if item.id == item_id:
            return JSONResponse(item.body)
    raise not_found(f"no item {item_id[:80]!r} is in this conversation", param="item_id")


@router.delete("/{conversation_id}/items/{item_id}")
async def delete_item(request: Request, conversation_id: str, item_id: str) -> JSONResponse:
    """Take an item out."""
    context, owner = context_of(request), info_of(request).caller.key_id
    found = await _load(request, conversation_id)
    check_id(item_id)
    if not await context.database.call(context.responses.conversations.remove, owner, conversation_id, item_id):
        raise not_found(f"no item {item_id[:80]!r} is in this conversation", param="item_id")
    return JSONResponse(_body(found))


async def _load(request: Request, conversation_id: str) -> StoredConversation:
    context, owner = context_of(request), info_of(request).caller.key_id
    check_id(conversation_id)
    found = await context.database.call(context.responses.conversations.load, owner, conversation_id)
    if found is None:
        raise _missing(conversation_id)
    return found


async def _items(request: Request, conversation_id: str) -> list[Item]:
    await _load(request, conversation_id)
    context, owner = context_of(request), info_of(request).caller.key_id
    return await context.database.call(context.responses.conversations.items, owner, conversation_id)


async def _read(
    context: ServerContext, owner: str, given: Sequence[JsonObject], *, history: Sequence[Item]
) -> list[Item]:
    data = normalise(list(given), at="items")
    memory = await context.responses.prompter.memory(data, owner=owner)
    reader = ItemReader(memory, new_id=context.new_id, history=history)
    items = [reader.read(item, at=f"items[{i}]") for i, item in enumerate(data)]
    for approved in reader.approvals.to_make:
        raise unsupported("leave for a call is given in the input of a response", param=approved.at)
    return items


def _missing(conversation_id: str) -> Exception:
    return not_found(f"no conversation {conversation_id[:80]!r} is stored here", param="conversation_id")


def _body(conversation: StoredConversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": int(conversation.created_at),
        "metadata": dict(conversation.metadata),
    }
