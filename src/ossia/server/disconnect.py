"""Stops work for clients that went away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

T = TypeVar("T")

CLIENT_GONE = 499
"""As proxies log it; nobody receives it."""


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | Response:
    """Do work, but cancel it if the client goes away first; the answer is then one that nobody reads.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return Response(status_code=CLIENT_GONE)
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
