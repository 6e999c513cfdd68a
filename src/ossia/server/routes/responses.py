"""/v1/responses: OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from ossia.server.body import read_model
from ossia.server.context import ServerContext, context_of, info_of
from ossia.server.errors import ApiError
from ossia.server.giving import give_at_once
from ossia.server.openapi import describe
from ossia.server.responses.builder import StreamEvent
from ossia.server.responses.envelope import FINISHED
from ossia.server.responses.items import Item
from ossia.server.responses.run import Run, drain
from ossia.server.responses.schema import CreateBody, PromptBody
from ossia.server.sse import SseResponse

router = APIRouter(prefix="/v1/responses", tags=["responses"])

Order = Literal["asc", "desc"]
Limit = Annotated[int, Query(ge=1, le=100)]
MAX_ID = 80


@router.post("", **describe(CreateBody))
async def create_response(request: Request) -> Response:
    """Answer: at once, as a stream of events, or in the background."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, CreateBody)
    run = await context.responses.create(body, caller)
    if body.background:
        running = context.responses.run_beside(run)
        if body.stream:
            return stream_events(context, running.follow(after=-1))
        return JSONResponse({**run.envelope, "status": "queued"})
    if body.stream:
        return stream_events(context, run.events(), run=run)
    return await give_at_once(request, drain(run), leave=run.leave)


@router.post("/input_tokens", **describe(PromptBody))
async def count_input_tokens(request: Request) -> JSONResponse:
    """How many tokens the prompt of such a request has."""
    context, caller = context_of(request), info_of(request).caller
    body = await read_model(request, PromptBody)
    prompt = await context.responses.prompter.render(body, owner=caller.key_id)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(prompt)})


@router.get("/{response_id}")
async def get_response(
    request: Request, response_id: str, stream: bool = False, starting_after: Annotated[int, Query(ge=-1)] = -1
) -> Response:
    """A stored response; with `stream`, the events of a background response behind `starting_after`."""
    context, caller = context_of(request), info_of(request).caller
    check_id(response_id)
    running = context.responses.running(caller, response_id)
    if running is not None:
        if stream:
            return stream_events(context, running.follow(after=starting_after))
        return JSONResponse(running.run.snapshot)
    stored = await context.responses.load(caller, response_id)
    if not stream:
        return JSONResponse(stored.body)
    if stored.status not in FINISHED:
        raise ApiError("this response runs on another server; ask it for the events", status=409, code="conflict")
    log = await context.database.call(context.responses.store.log, response_id, after=starting_after)
    if not log and not await context.database.call(context.responses.store.log, response_id, after=-1):
        raise ApiError(
            "only responses that ran in the background to their end can be streamed again",
            code="invalid_value",
            param="stream",
        )
    return stream_events(context, _once(log))


@router.delete("/{response_id}")
async def delete_response(request: Request, response_id: str) -> JSONResponse:
    """Forget a response."""
    check_id(response_id)
    await context_of(request).responses.delete(info_of(request).caller, response_id)
    return JSONResponse({"id": response_id, "object": "response.deleted", "deleted": True})


@router.post("/{response_id}/cancel")
async def cancel_response(request: Request, response_id: str) -> JSONResponse:
    """End a background response."""
    check_id(response_id)
    return JSONResponse(await context_of(request).responses.cancel(info_of(request).caller, response_id))


@router.get("/{response_id}/input_items")
async def list_input_items(
    request: Request, response_id: str, limit: Limit = 20, order: Order = "desc", after: str | None = None
) -> JSONResponse:
    """What a response was made from: earlier responses' items, then its own input."""
    context, caller = context_of(request), info_of(request).caller
    check_id(response_id)
    await context.responses.load(caller, response_id)
    stored = await context.database.call(context.responses.store.history, caller.key_id, response_id)
    num_outputs = 0  # its own output stands at the end
    while num_outputs < len(stored) and stored[-1 - num_outputs].is_output:
        num_outputs += 1
    items = [entry.item for entry in stored[: len(stored) - num_outputs]]
    return JSONResponse(page(items, limit=limit, order=order, after=after))


def page(items: Sequence[Item], *, limit: int, order: Order, after: str | None) -> dict[str, Any]:
    """A page of a list of items.

    Raises:
        ApiError: `after` names none of them.
    """
    bodies = [item.body for item in items]
    if order == "desc":
        bodies.reverse()
    if after is not None:
        ids = [body["id"] for body in bodies]
        if after not in ids:
            raise ApiError(f"no item {after[:MAX_ID]!r} is in this list", code="invalid_value", param="after")
        bodies = bodies[ids.index(after) + 1 :]
    shown = bodies[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(bodies) > limit,
    }


def check_id(name: str) -> None:
    """Raises ApiError for what no id of ours looks like."""
    if not (name.isascii() and name.replace("_", "").replace("-", "").isalnum() and len(name) <= MAX_ID):
        raise ApiError(f"nothing is called {name[:MAX_ID]!r} here", status=404, code="not_found")


def stream_events(
    context: ServerContext, bunches: AsyncGenerator[list[StreamEvent], None], *, run: Run | None = None
) -> SseResponse:
    """Events as a response of the HTTP kind; of a foreground run they end it if the client leaves."""
    return SseResponse(
        _frames(bunches),
        stall_seconds=context.settings.limits.stall_seconds,
        on_close=None if run is None else run.leave,
    )


async def _frames(bunches: AsyncGenerator[list[StreamEvent], None]) -> AsyncGenerator[bytes, None]:
    try:
        async for bunch in bunches:
            if bunch:
                text = "".join([f"event: {event.type}\ndata: {event.data}\n\n" for event in bunch])
                yield text.encode()
    finally:
        await bunches.aclose()


async def _once(log: list[StreamEvent]) -> AsyncGenerator[list[StreamEvent], None]:
    yield log
