"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ossia.server.body import read_model
from ossia.server.chat.completions import start_completion
from ossia.server.chat.schema import CompletionBody
from ossia.server.context import context_of, info_of
from ossia.server.giving import give
from ossia.server.openapi import describe

router = APIRouter(prefix="/v1/completions", tags=["completions"])


@router.post("", **describe(CompletionBody))
async def create_completion(request: Request) -> Response:
    """Go on from plain text: at once, or as a stream of chunks."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, CompletionBody)
    run = await start_completion(context, body, caller=caller)
    return await give(request, run, streams=body.stream is True)
