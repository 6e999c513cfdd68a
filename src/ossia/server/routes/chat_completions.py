"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ossia.server.body import read_model
from ossia.server.chat.schema import ChatBody
from ossia.server.chat.service import start_chat
from ossia.server.context import context_of, info_of
from ossia.server.giving import give
from ossia.server.openapi import describe

router = APIRouter(prefix="/v1/chat", tags=["chat"])


@router.post("/completions", **describe(ChatBody))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation: at once, or as a stream of chunks."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, ChatBody)
    run = await start_chat(context, body, caller=caller)
    return await give(request, run, streams=body.stream is True)
