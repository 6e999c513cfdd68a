"""The asyncio bridge: many clients, clients that leave, a full queue, a dying engine, shutdown. Nobody ever hangs."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ossia.core.errors import EngineDeadError, EngineOverloadedError, InvalidInputError
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.engine import Engine
from ossia.engine.output_event import OutputEvent
from ossia.engine.request import FinishReason, Request, SamplingParams

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
LONG = dataclasses.replace(GREEDY, max_tokens=200)
HANG = 60.0
"""Seconds after which a test that waits is taken for hanging."""


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), HANG))  # type: ignore[arg-type]


def request(name: str, *, params: SamplingParams = GREEDY, length: int = 9) -> Request:
    return Request(id=name, prompt_ids=tuple(range(30, 30 + length)), params=params)


async def collect(engine: AsyncEngine, wanted: Request) -> list[OutputEvent]:
    return [event async for event in engine.generate(wanted)]


def tokens(events: list[OutputEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def test_many_streams_get_what_the_engine_alone_gives(make_engine: MakeEngine) -> None:
    plain = make_engine()
    plain.add(request("a"))
    wanted: list[int] = []
    while plain.has_work:
        wanted += tokens(plain.step())

    async def work() -> None:
        engine = AsyncEngine(make_engine())
        many = await asyncio.gather(*(collect(engine, request(str(i))) for i in range(40)))
        assert all(tokens(events) == wanted for events in many)
        assert all(events[-1].finish_reason is FinishReason.LENGTH for events in many)
        metrics = await engine.metrics()
        assert metrics.finished == {"length": 40}
        assert metrics.time_to_first_token.count == 40
        await engine.shutdown()

    run(work)


def test_the_loop_is_not_blocked_while_the_engine_works(make_engine: MakeEngine) -> None:
    inner = make_engine()
    step = inner.step

    def slow_step() -> list[OutputEvent]:
        time.sleep(0.05)
        return step()

    inner.step = slow_step  # type: ignore[method-assign]

    async def work() -> None:
        engine = AsyncEngine(inner)
        task = asyncio.ensure_future(collect(engine, request("a")))
        num_turns = 0
        while not task.done():
            await asyncio.sleep(0)
            num_turns += 1
        # A loop blocked by 8 steps would get a turn a step; this one gets thousands.
        assert num_turns > 100
        await engine.shutdown()

    run(work)


def test_all_answers_of_n_come_through_one_stream(make_engine: MakeEngine) -> None:
    async def work() -> None:
        engine = AsyncEngine(make_engine())
        params = SamplingParams(temperature=1.0, seed=1, n=3, max_tokens=5, ignore_eos=True)
        events = await collect(engine, request("a", params=params))
        assert {event.index for event in events} == {0, 1, 2}
        assert sum(event.finish_reason is not None for event in events) == 3
        await engine.shutdown()

    run(work)


def test_leaving_a_stream_gives_its_pages_back(make_engine: MakeEngine) -> None:
    async def work() -> None:
        inner = make_engine()
        engine = AsyncEngine(inner)
        async with await engine.submit(request("a", params=LONG)) as stream:
            async for _ in stream:
                break
        metrics = await engine.metrics()  # runs in the engine's thread, behind the cancellation
        assert metrics.num_free_pages == metrics.num_pages
        assert metrics.num_running == 0
        await engine.shutdown()

    run(work)


def test_a_cancelled_task_cancels_its_request(make_engine: MakeEngine) -> None:
    async def work() -> None:
        engine = AsyncEngine(make_engine())
        task = asyncio.ensure_future(collect(engine, request("a", params=LONG)))
        while (await engine.metrics()).num_running == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while (await engine.metrics()).num_running:
            await asyncio.sleep(0)
        assert (await engine.metrics()).finished == {"cancelled": 1}
        await engine.shutdown()

    run(work)


def test_cancel_ends_a_stream_with_its_reason(make_engine: MakeEngine) -> None:
    async def work() -> None:
        engine = AsyncEngine(make_engine())
        stream = await engine.submit(request("a", params=LONG))
        engine.cancel("a")
        events = [event async for event in stream]
        assert events[-1].finish_reason is FinishReason.CANCELLED
        await engine.shutdown()

    run(work)


def test_refusals_reach_whoever_submits(make_engine: MakeEngine) -> None:
    async def work() -> None:
        engine = AsyncEngine(make_engine(max_queue=1, max_num_seqs=1))
        with pytest.raises(InvalidInputError, match="prompt_ids"):
            await engine.submit(Request(id="bad", prompt_ids=(99999,), params=GREEDY))
        many = [engine.submit(request(str(index), params=LONG)) for index in range(20)]
        outcomes = await asyncio.gather(*many, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, EngineOverloadedError)]
        assert 0 < len(refused) < 20
        await engine.shutdown()

    run(work)


def test_a_dying_engine_is_reported_to_everyone(make_engine: MakeEngine) -> None:
    inner = make_engine()
    proceed = threading.Event()
    step = inner.step

    def dying_step() -> list[OutputEvent]:
        if proceed.is_set():
            raise RuntimeError("the device is gone")
        return step()

    inner.step = dying_step  # type: ignore[method-assign]

    async def work() -> None:
        engine = AsyncEngine(inner)
        streams = [await engine.submit(request(str(i), params=LONG)) for i in range(3)]
        proceed.set()
        for stream in streams:
            with pytest.raises(EngineDeadError, match="RuntimeError"):
                async for _ in stream:
                    pass
        assert not engine.is_alive
        with pytest.raises(EngineDeadError):
            await engine.submit(request("late"))
        assert (await engine.metrics()).num_requests == 3
        await engine.shutdown()  # of a dead engine returns at once

    run(work)


def test_shutdown_drains_if_told(make_engine: MakeEngine) -> None:
    async def work() -> None:
        engine = AsyncEngine(make_engine())
        stream = await engine.submit(request("a"))
        stopping = asyncio.ensure_future(engine.shutdown(drain=True))
        events = [event async for event in stream]
        await stopping
        assert events[-1].finish_reason is FinishReason.LENGTH
        assert len(tokens(events)) == 8
        with pytest.raises(EngineDeadError):
            await engine.submit(request("late"))

    run(work)


def test_shutdown_aborts_otherwise(make_engine: MakeEngine) -> None:
    async def work() -> None:
        engine = AsyncEngine(make_engine())
        stream = await engine.submit(request("a", params=LONG))
        await engine.shutdown()
        events = [event async for event in stream]
        assert events[-1].finish_reason is FinishReason.CANCELLED

    run(work)


def test_several_loops_share_one_engine(make_engine: MakeEngine) -> None:
    engine = AsyncEngine(make_engine())
    results: list[list[OutputEvent]] = []

    def client(name: str) -> None:
        results.append(run(lambda: collect(engine, request(name))))

    threads = [threading.Thread(target=client, args=(str(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(tokens(events)) for events in results}) == 1
    assert len(results) == 3
    run(engine.shutdown)


def test_a_loop_that_closed_loses_its_requests_and_nobody_else(make_engine: MakeEngine) -> None:
    engine = AsyncEngine(make_engine())

    async def abandon() -> None:
        await engine.submit(request("abandoned", params=LONG))

    asyncio.run(abandon())

    async def work() -> None:
        events = await collect(engine, request("kept"))
        assert events[-1].finish_reason is FinishReason.LENGTH
        while (await engine.metrics()).num_running:
            await asyncio.sleep(0)
        assert (await engine.metrics()).finished["cancelled"] == 1
        await engine.shutdown()

    run(work)


def test_repairs_are_counted(make_engine: MakeEngine) -> None:
    async def work() -> None:
        engine = AsyncEngine(make_engine())
        await engine.record_repairs(["missing_channel", "missing_channel"])
        await engine.record_repairs([])
        assert (await engine.metrics()).parser_repairs == {"missing_channel": 2}
        await engine.shutdown()

    run(work)
