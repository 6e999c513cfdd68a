"""The engine for servers: one thread runs it, any event loop talks to it, and no loop is ever blocked.

loop: submit, cancel, call --commands (a queue)--> engine thread: take commands, step
loop: RequestStream <--events (one call_soon_threadsafe a step and loop)-- engine thread
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ossia.core.errors import EngineDeadError, OssiaError
from ossia.engine.engine import Engine
from ossia.engine.metrics import MetricsSnapshot
from ossia.engine.output_event import OutputEvent
from ossia.engine.request import Request

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class _Command(NamedTuple):
    """Something for the engine's thread to do between two steps."""

    run: Callable[[], None]
    fail: Callable[[BaseException], None] | None


class RequestStream:
    """The events of one request, as they come; iterate once. It ends behind the last event of its last answer.

    Leaving it early (`async with`, or `cancel`) gives the request's pages back within one step. All of it runs in the
    loop that submitted the request.
    """

    def __init__(self, request: Request, *, loop: asyncio.AbstractEventLoop, cancel: Callable[[str], None]) -> None:
        self.request = request
        self.loop = loop
        self._cancel = cancel
        self._events: deque[OutputEvent] = deque()
        self._error: BaseException | None = None
        self._num_open = request.params.n
        self._news = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputEvent:
        """The next event.

        Raises:
            EngineDeadError: the engine stopped before the request was done.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._num_open == 0:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        event = self._events.popleft()
        self._num_open -= event.finish_reason is not None
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop the request, if it is not done; its answers then end with CANCELLED."""
        if self._num_open and self._error is None:
            self._cancel(self.request.id)

    def push(self, event: OutputEvent) -> None:
        """For the engine: more news."""
        self._events.append(event)
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """For the engine: nothing more will come."""
        self._error = error
        self._news.set()


class AsyncEngine:
    """Runs an engine in a thread of its own.

    Args:
        engine: from now on used by that thread alone.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._streams: dict[str, RequestStream] = {}
        self._error: BaseException | None = None
        self._is_stopping = False
        self._is_draining = False
        self._lock = threading.Lock()  # between the thread's last look at its commands and whoever adds one
        self._thread = threading.Thread(target=self._run, name="ossia-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken."""
        return self._error is None and not self._is_draining and not self._is_stopping

    async def submit(self, request: Request) -> RequestStream:
        """Hand in a request; returns when it is taken.

        Raises:
            EngineOverloadedError: the queue is full; nothing was taken.
            InvalidInputError: the request cannot be run by this model.
            EngineDeadError: the engine has stopped or is shutting down.
        """
        loop = asyncio.get_running_loop()
        stream = RequestStream(request, loop=loop, cancel=self.cancel)

        def add() -> None:
            if self._is_draining:
                raise EngineDeadError("the engine is shutting down and takes no new requests")
            self.engine.add(request)
            self._streams[request.id] = stream

        try:
            await self._call(add)
        except asyncio.CancelledError:
            self.cancel(request.id)
            raise
        return stream

    async def generate(self, request: Request) -> AsyncIterator[OutputEvent]:
        """Submit a request and yield its events; closing the iterator cancels it. Raises as `submit`."""
        async with await self.submit(request) as stream:
            async for event in stream:
                yield event

    def cancel(self, request_id: str) -> None:
        """Stop a request, from any thread; one that is done or unknown is left alone."""
        self._post(lambda: self.engine.cancel(request_id))

    async def metrics(self) -> MetricsSnapshot:
        """The counts as of now. Of a dead engine, its last ones."""
        if self._error is not None:
            return self.engine.snapshot()
        return await self._call(self.engine.snapshot)

    async def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """As `Engine.update_weights`, between two steps."""
        await self._call(lambda: self.engine.update_weights(weights))

    async def record_repairs(self, kinds: list[str]) -> None:
        """Count what a parser had to mend in this engine's output."""
        if kinds:
            self._post(lambda: self.engine.metrics.parser_repairs.update(kinds))

    async def shutdown(self, *, drain: bool = False) -> None:
        """Stop the engine and wait until its thread is gone.

        Args:
            drain: finish what was taken first; otherwise it ends with CANCELLED. New requests are refused either way.
        """

        def stop() -> None:
            self._is_draining = True
            if not drain:
                self.engine.cancel_all()

        self._post(stop)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def _call(self, function: Callable[[], Any]) -> Any:
        """Run a function in the engine's thread, between two steps, and return what it returns."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(setter: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                setter(value)

        def run() -> None:
            try:
                result = function()
            except OssiaError as error:
                _tell(loop, settle, future.set_exception, error)
            else:
                _tell(loop, settle, future.set_result, result)

        def fail(error: BaseException) -> None:
            _tell(loop, settle, future.set_exception, error)

        if not self._post(run, fail=fail):
            raise self._dead()
        return await future

    def _post(self, run: Callable[[], None], *, fail: Callable[[BaseException], None] | None = None) -> bool:
        """Queue a command; False if nobody will run it. `fail` is called if the thread ends before it comes to it."""
        with self._lock:
            if self._is_stopping:
                return False
            self._commands.put(_Command(run, fail))
            return True

    def _run(self) -> None:
        """The engine's thread."""
        try:
            while self._take_commands():
                if self.engine.has_work:
                    self._deliver(self.engine.step())
        except BaseException as error:
            logger.exception("the engine died")
            self._error = error
        finally:
            with self._lock:
                self._is_stopping = True
            self._fail_all()

    def _take_commands(self) -> bool:
        """Run what is queued, waiting if there is nothing else to do; False when the thread is to end."""
        while True:
            try:
                command = self._commands.get(block=not self.engine.has_work and not self._is_draining)
            except queue.Empty:
                break
            command.run()
        return self.engine.has_work or not self._is_draining

    def _deliver(self, events: list[OutputEvent]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[RequestStream, OutputEvent]]] = defaultdict(list)
        open_answers: dict[str, int] = {}
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is not None:
                by_loop[stream.loop].append((stream, event))
                if event.finish_reason is not None:
                    open_answers[event.request_id] = self.engine.num_open(event.request_id)
        for request_id, num_open in open_answers.items():
            if num_open == 0:
                del self._streams[request_id]
        for loop, news in by_loop.items():
            if not _tell(loop, _push_all, news):
                for stream, _ in news:  # its loop is closed: nobody listens any more
                    self._streams.pop(stream.request.id, None)
                    self.engine.cancel(stream.request.id)

    def _fail_all(self) -> None:
        while not self._commands.empty():
            command = self._commands.get()
            if command.fail is not None:
                command.fail(self._dead())
        for stream in self._streams.values():
            _tell(stream.loop, stream.fail, self._dead())
        self._streams.clear()

    def _dead(self) -> EngineDeadError:
        if self._error is None:
            return EngineDeadError("the engine was shut down")
        error = EngineDeadError(f"the engine died ({type(self._error).__name__}); restart the server and see its log")
        error.__cause__ = self._error
        return error


def _push_all(news: list[tuple[RequestStream, OutputEvent]]) -> None:
    for stream, event in news:
        stream.push(event)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> bool:
    """Have a loop call a function soon; False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        return False
    return True
