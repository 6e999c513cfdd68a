"""Responses that run without a client: their tasks, and their events for whoever asks for them again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from ossia.server.responses.builder import StreamEvent

if TYPE_CHECKING:
    from ossia.server.responses.run import Run

logger = logging.getLogger(__name__)


class BackgroundRun:
    """A run with a task of its own.

    Attributes:
        log: its events so far; an event's sequence number is its place.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.log: list[StreamEvent] = []
        run.log = self.log
        self._news = asyncio.Event()
        self._is_over = False
        self.task = asyncio.create_task(self._work(), name=f"ossia-{run.id}")

    async def _work(self) -> None:
        events = self.run.events()
        try:
            async for bunch in events:
                self.log += bunch
                self._tell()
        except Exception:
            logger.exception("a background response broke off")
        finally:
            await events.aclose()
            self._is_over = True
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, *, after: int) -> AsyncGenerator[list[StreamEvent], None]:
        """The events behind a sequence number: those that are there, then the others as they come."""
        place = after + 1
        while True:
            if place < len(self.log):
                bunch = self.log[place:]
                place = len(self.log)
                yield bunch
            elif self._is_over:
                return
            else:
                await self._news.wait()
