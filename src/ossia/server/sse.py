"""Server-sent events, written as fast as each client reads them and no faster.

Every stream is written by its own task and waits only for its own client: uvicorn holds a client's unread bytes up to
64 KiB and then lets this task wait, so what a slow reader has not taken stays with the engine's stream of that one
request, which is no longer than its answer. A reader that takes nothing for `stall_seconds`, or goes away, ends its
stream, and with it (the frames are closed) whatever makes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_SECONDS = 15.0
"""Proxies cut connections on which nothing comes, as while a long prompt waits in the queue."""


def frame(data: str, event: str | None = None) -> bytes:
    """One event. `data` is one line, as `json.dumps` writes it."""
    return f"event: {event}\ndata: {data}\n\n".encode() if event else f"data: {data}\n\n".encode()


class SseResponse(Response):
    """Sends frames as they come.

    Args:
        frames: each is one or more whole events. It is closed when the stream ends, in whatever way: put what is to
            be given back (`async with`) inside of it. It should tell of its own errors as its API does; one that
            escapes is logged and ends the stream.
        stall_seconds: how long the client may take nothing.
        on_close: called at the end, also where the client was gone before the first frame was asked for.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        stall_seconds: float = 60.0,
        on_close: Callable[[], None] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.frames = frames
        self.stall_seconds = stall_seconds
        self.on_close = on_close
        self._waits_since: float | None = None  # a send that the client holds up
        self._last_sent = 0.0
        self._is_written = False
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.current_task()
        assert writer is not None
        watcher = asyncio.create_task(self._watch(receive, send, writer))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._write(send)
        except asyncio.CancelledError:
            if not watcher.done():  # not by the watcher: the server itself is stopping
                raise
            writer.uncancel()
        except OSError:
            logger.debug("a client went away in mid-stream")
        finally:
            watcher.cancel()
            try:
                await self.frames.aclose()
            finally:
                if self.on_close is not None:
                    self.on_close()

    async def _write(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        try:
            async for data in self.frames:
                self._waits_since = self._last_sent = loop.time()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                self._waits_since = None
        except (asyncio.CancelledError, OSError):
            raise
        except Exception:
            logger.exception("a stream broke off")
        self._is_written = True  # from here on `receive` tells of a disconnect although all went well
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive, send: Send, writer: asyncio.Task[object]) -> None:
        """Cancel the writer when the client is gone or stalls; keep the connection warm meanwhile."""
        loop = asyncio.get_running_loop()
        self._last_sent = loop.time()
        tick = min(KEEP_ALIVE_SECONDS, self.stall_seconds) / 4
        message = asyncio.ensure_future(receive())
        try:
            while True:
                await asyncio.wait({message}, timeout=tick)
                now = loop.time()
                if message.done():
                    if message.exception() is not None or message.result()["type"] == "http.disconnect":
                        break
                    message = asyncio.ensure_future(receive())
                elif self._waits_since is not None:
                    if now - self._waits_since > self.stall_seconds:
                        logger.info("a client took nothing for %.0f s; its stream is cut off", self.stall_seconds)
                        break
                elif now - self._last_sent > KEEP_ALIVE_SECONDS:
                    self._last_sent = now
                    with contextlib.suppress(OSError):
                        await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
        finally:
            message.cancel()
        if not self._is_written:
            writer.cancel()
