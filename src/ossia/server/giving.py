"""How an answer goes out: at once, or as a stream; either way the work ends with its client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from ossia.server.context import context_of
from ossia.server.disconnect import until_gone
from ossia.server.sse import SseResponse


class Run(Protocol):
    """An answer in progress, of any of the stateless APIs."""

    def frames(self) -> AsyncGenerator[bytes, None]:
        """The answer as a stream."""
        ...

    def complete(self) -> Coroutine[Any, Any, dict[str, Any]]:
        """The answer at once."""
        ...

    def leave(self) -> None:
        """Give up, if it is not over."""
        ...


async def give(request: Request, run: Run, *, streams: bool) -> Response:
    """The answer in the way that was asked for."""
    if not streams:
        return await give_at_once(request, run.complete(), leave=run.leave)
    stall_seconds = context_of(request).settings.limits.stall_seconds
    return SseResponse(run.frames(), stall_seconds=stall_seconds, on_close=run.leave)


async def give_at_once(
    request: Request, work: Coroutine[Any, Any, dict[str, Any]], *, leave: Callable[[], None]
) -> Response:
    """Wait for the whole answer.

    Args:
        leave: called in the end, whether the answer came about or the client went away.
    """
    try:
        answer = await until_gone(request, work)
    finally:
        leave()
    return answer if isinstance(answer, Response) else JSONResponse(answer)
