"""Event streams: the frames, clients that go away, and clients that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from ossia.server.sse import SseResponse, frame


def test_frames():
    assert frame('{"a":1}', "x") == b'event: x\ndata: {"a":1}\n\n'
    assert frame("[DONE]") == b"data: [DONE]\n\n"


class Wire:
    """The ASGI side of a client: takes messages, can stop taking them, can go away."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.gone = asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.takes.wait()
        if message["type"] == "http.response.body" and message["body"]:
            self.sent.append(message["body"])


def endless(closed: list[bool]) -> AsyncGenerator[bytes, None]:
    async def make():
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.001)
        finally:
            closed.append(True)

    return make()


def test_a_client_that_goes_away_closes_the_frames():
    async def run():
        wire, closed, left = Wire(), [], []
        response = SseResponse(endless(closed), on_close=lambda: left.append(True))
        task = asyncio.create_task(response({"type": "http"}, wire.receive, wire.send))
        while len(wire.sent) < 5:
            await asyncio.sleep(0.001)
        wire.gone.set()
        await asyncio.wait_for(task, 5)
        assert closed == left == [True]

    asyncio.run(run())


def test_a_client_that_is_gone_before_the_first_frame_still_closes():
    async def run():
        wire, left = Wire(), []

        async def send(_):
            raise OSError

        response = SseResponse(endless([]), on_close=lambda: left.append(True))
        await asyncio.wait_for(response({"type": "http"}, wire.receive, send), 5)
        assert left == [True]

    asyncio.run(run())


def test_a_client_that_takes_nothing_is_cut_off_and_others_go_on():
    async def run():
        stuck, reader = Wire(), Wire()
        closed_stuck, closed_reader = [], []
        tasks = [
            asyncio.create_task(
                SseResponse(endless(closed), stall_seconds=0.2)({"type": "http"}, wire.receive, wire.send)
            )
            for wire, closed in ((stuck, closed_stuck), (reader, closed_reader))
        ]
        while not stuck.sent:
            await asyncio.sleep(0.001)
        stuck.takes.clear()
        await asyncio.wait_for(tasks[0], 10)
        assert closed_stuck == [True]
        before = len(reader.sent)
        await asyncio.sleep(0.05)
        assert len(reader.sent) > before
        assert not closed_reader
        reader.gone.set()
        await tasks[1]

    asyncio.run(run())


def test_frames_that_fail_end_the_stream(caplog):
    async def broken():
        yield b"one"
        raise ValueError("broken")

    async def run():
        wire = Wire()
        await asyncio.wait_for(SseResponse(broken())({"type": "http"}, wire.receive, wire.send), 5)
        assert wire.sent == [b"one"]

    asyncio.run(run())
    assert "a stream broke off" in caplog.text
