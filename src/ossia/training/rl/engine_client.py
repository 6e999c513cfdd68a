"""The engine as episodes see it: in the trainer's own thread, and with everything written down that it samples.

    episode --submit--> RecordingClient --Request with seed and logprobs--> StepClient --add--> Engine
    episode <--events-- RecordedStream <-- StepClient's one task: step, deliver, let the others run

There is no thread and no clock in it, so the same weights, seeds and order of episodes give the same samples. Weights
are exchanged between two rollouts, when nothing runs.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from typing import TYPE_CHECKING, Self

from ossia.engine.engine import Engine
from ossia.engine.output_event import Choices, OutputEvent
from ossia.engine.request import Request
from ossia.kernels.sampling import mix_seed
from ossia.training.rl.trajectory import Transition

if TYPE_CHECKING:
    from ossia.engine.metrics import MetricsSnapshot


class RecordedStream:
    """The events of one request, for whoever reads it, and the transition that comes of them."""

    def __init__(self, request: Request, *, engine: Engine) -> None:
        self._request, self._engine = request, engine
        self._events: deque[OutputEvent] = deque()
        self._error: BaseException | None = None
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._routing: Choices | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputEvent:
        """The next event; raises what ended the engine, if it failed."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._ended.is_set():
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()

    def cancel(self) -> None:
        """Stop the request; what it sampled until then stays recorded."""
        if not self._ended.is_set():
            self._engine.cancel(self._request.id)

    def push(self, event: OutputEvent) -> None:
        """Take the engine's news."""
        self._ids += event.token_ids
        self._logprobs += [entry.logprob for entry in event.logprobs or ()]
        self._events.append(event)
        if event.finish_reason is not None:
            self._routing = event.routing
            self._ended.set()
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """Nothing more will come."""
        self._error = error
        self._ended.set()
        self._news.set()

    async def transition(self) -> Transition:
        """What was seen and sampled, once the engine is done with it; raises what ended the engine, if it failed."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        return Transition(
            prompt_ids=self._request.prompt_ids,
            sampled_ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            routing=self._routing,
        )


class StepClient:
    """Runs an engine by a task of the event loop, as long as it has work.

    Args:
        engine: used by this thread alone.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._streams: dict[str, RecordedStream] = {}
        self._task: asyncio.Task[None] | None = None

    def submit(self, request: Request) -> RecordedStream:
        """Hand a request in. Raises as `Engine.add`."""
        self.engine.add(request)
        stream = self._streams[request.id] = RecordedStream(request, engine=self.engine)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return stream

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)  # until all that are ready have handed in what they want
            while self.engine.has_work:
                for event in self.engine.step():
                    self._deliver(event)
                await asyncio.sleep(0)
        except BaseException as error:
            for stream in self._streams.values():
                stream.fail(error)
            self._streams.clear()
            raise

    def _deliver(self, event: OutputEvent) -> None:
        self._streams[event.request_id].push(event)
        if event.finish_reason is not None:
            del self._streams[event.request_id]


class RecordingClient:
    """An `EngineClient` for one episode: each of its turns has a seed of its own, and is recorded.

    Args:
        client: runs the engine.
        seed: of the episode; None leaves requests as they are.
    """

    is_alive = True

    def __init__(self, client: StepClient, *, seed: int | None) -> None:
        self._client, self._seed = client, seed
        self._streams: list[RecordedStream] = []

    async def submit(self, request: Request) -> RecordedStream:
        """Hand a request in, with the logprobs of its tokens asked for."""
        seed = request.params.seed if self._seed is None else mix_seed(self._seed + len(self._streams)) >> 1
        params = dataclasses.replace(request.params, logprobs=0, seed=seed)
        stream = self._client.submit(dataclasses.replace(request, params=params))
        self._streams.append(stream)
        return stream

    async def transitions(self) -> tuple[Transition, ...]:
        """All turns, when the engine is done with them."""
        return tuple([await stream.transition() for stream in self._streams])

    async def metrics(self) -> MetricsSnapshot:
        """The engine's counts."""
        return self._client.engine.snapshot()

    async def record_repairs(self, kinds: list[str]) -> None:
        """Count what the parser had to mend."""
        self._client.engine.metrics.parser_repairs.update(kinds)

    async def shutdown(self, *, drain: bool = False) -> None:
        """The engine outlives its episodes."""
