"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients know them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from ossia.server.body import read_model
from ossia.server.context import context_of, info_of
from ossia.server.giving import give
from ossia.server.messages_api.schema import CountBody, MessagesBody
from ossia.server.messages_api.service import render_messages, start_messages
from ossia.server.openapi import describe

router = APIRouter(prefix="/v1/messages", tags=["messages"])


@router.post("", **describe(MessagesBody))
async def create_message(request: Request) -> Response:
    """Answer a conversation: at once, or as a stream of events."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, MessagesBody)
    run = await start_messages(context, body, caller=caller)
    return await give(request, run, streams=body.stream is True)


@router.post("/count_tokens", **describe(CountBody))
async def count_tokens(request: Request) -> JSONResponse:
    """How many tokens the prompt of such a request has."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, CountBody)
    prompt = await render_messages(context, body, owner=caller.key_id)
    return JSONResponse({"input_tokens": len(prompt)})
