"""What the model would read: prompts of each API as tokens and text, and text to tokens and back. For debugging.

Nothing runs. Control tokens stand in the texts by name; sending such a text again does not make them control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from ossia.server.body import read_model, validate
from ossia.server.chat.schema import ChatBody
from ossia.server.chat.service import render_chat
from ossia.server.context import context_of, info_of
from ossia.server.errors import ApiError
from ossia.server.messages_api.schema import CountBody
from ossia.server.messages_api.service import render_messages
from ossia.server.openapi import describe
from ossia.server.responses.schema import Body, JsonObject, PromptBody

if TYPE_CHECKING:
    from ossia.server.context import ServerContext

router = APIRouter(tags=["render"])


class TokenizeBody(Body):
    """Text, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[JsonObject] | None = None
    tools: list[JsonObject] | None = None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=1_000_000)]


@router.post("/v1/chat/completions/render", **describe(ChatBody))
async def render_chat_completion(request: Request) -> JSONResponse:
    """The prompt of a chat completion."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, ChatBody)
    return _answer(context, await render_chat(context, body, owner=caller.key_id))


@router.post("/v1/responses/render", **describe(PromptBody))
async def render_response(request: Request) -> JSONResponse:
    """The prompt of a response."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, PromptBody)
    return _answer(context, await context.responses.prompter.render(body, owner=caller.key_id))


@router.post("/v1/messages/render", **describe(CountBody))
async def render_message(request: Request) -> JSONResponse:
    """The prompt of a message."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, CountBody)
    return _answer(context, await render_messages(context, body, owner=caller.key_id))


@router.post("/tokenize", **describe(TokenizeBody))
async def tokenize(request: Request) -> JSONResponse:
    """The tokens of a text, or of a chat's prompt."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, TokenizeBody)
    context.check_takes_work(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError("give prompt or messages, one of them", code="invalid_value", param="prompt")
    tokenizer = context.model.tokenizer
    if body.prompt is not None:
        tokens: Sequence[int] = tokenizer.encode(body.prompt)
    else:
        chat = validate(ChatBody, {"messages": body.messages, "tools": body.tools})
        tokens = await render_chat(context, chat, owner=caller.key_id)
    return JSONResponse(
        {
            "tokens": list(tokens),
            "token_strs": [tokenizer.decode((token,)) for token in tokens],
            "count": len(tokens),
            "max_model_len": context.model.context_length,
        }
    )


@router.post("/detokenize", **describe(DetokenizeBody))
async def detokenize(request: Request) -> JSONResponse:
    """The text of tokens."""
    context = context_of(request)
    body = await read_model(request, DetokenizeBody)
    context.check_takes_work(body.model)
    size = context.model.tokenizer.vocab_size
    for i, token in enumerate(body.tokens):
        if not 0 <= token < size:
            raise ApiError(
                f"tokens[{i}] is {str(token)[:20]}; ids run from 0 to {size - 1}",
                code="invalid_value",
                param=f"tokens[{i}]",
            )
    return JSONResponse({"prompt": context.model.tokenizer.decode(body.tokens)})


def _answer(context: ServerContext, prompt: Sequence[int]) -> JSONResponse:
    body: dict[str, Any] = {
        "object": "prompt",
        "model": context.model.name,
        "num_tokens": len(prompt),
        "token_ids": list(prompt),
        "text": context.model.tokenizer.decode(prompt),
    }
    return JSONResponse(body)
