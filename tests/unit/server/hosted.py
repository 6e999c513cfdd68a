"""Stand-ins for the server's own tools, and requests whose answers are checked as clients would check them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pydantic
from openai.types.responses import Response, ResponseStreamEvent

from ossia.harmony.content import ToolNamespace
from ossia.tools.base import FailureKind, Source, ToolFile, ToolResult, failure, reply

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
ENDS = ("response.completed", "response.incomplete", "response.failed")


class Stand:
    """A tool that answers with a text."""

    def __init__(
        self,
        space: ToolNamespace,
        text: str,
        *,
        is_builtin: bool = True,
        fails: bool = False,
        guarded: Iterable[str] = (),
    ) -> None:
        self.name = space.name
        self.guarded = frozenset(guarded)
        self.is_builtin = is_builtin
        self.num_calls = 0
        self.is_closed = False
        self.waits: asyncio.Event | None = None
        self._space, self._text, self._fails = space, text, fails

    def declaration(self):
        return self._space

    async def call(self, message, *, context):
        self.num_calls += 1
        if self.waits is not None:
            await self.waits.wait()
        if self._fails:
            return failure(message, self._text, kind=FailureKind.FAILED)
        sources = (Source(cursor=0, url="https://moon.example/tides", title="Tides"),) if self.name == "browser" else ()
        files = (ToolFile(name="a.png", mime_type="image/png", size=3, data=b"png"),) if self.name == "python" else ()
        return ToolResult(messages=(reply(message, self._text),), sources=sources, files=files)

    async def close(self):
        self.is_closed = True


def serve(
    make_server, script, *, database_url: str = "sqlite://", api_keys: tuple[str, ...] = (), **tools: Stand
) -> Any:
    """An app whose server's tools are stand-ins, by their kinds."""
    app = make_server(script, tools=tuple(tools), database_url=database_url, api_keys=api_keys)

    def maker(tool: Stand):
        async def make(_):
            return tool

        return make

    app.state.context.tool_makers = {kind: maker(tool) for kind, tool in tools.items()}
    return app


def events_of(text: str) -> list[dict[str, Any]]:
    """A stream's events; the head of each block names its type."""
    found: list[dict[str, Any]] = []
    for block in text.strip().split("\n\n"):
        head, _, data = block.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        found.append(event)
    return found


def post(client_for, app, *bodies) -> list[Any]:
    async def run():
        answers = []
        async with client_for(app) as client:
            for body in bodies:
                filled = body(answers) if callable(body) else body
                answer = await client.post("/v1/responses", json=filled)
                assert answer.status_code == 200, answer.text
                answers.append(events_of(answer.text) if filled.get("stream") else answer.json())
                if filled.get("stream"):
                    check_events(answers[-1])
                else:
                    Response.model_validate(answers[-1])
        return answers

    return asyncio.run(run())


def check_events(events: list[dict[str, Any]]) -> None:
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] in ENDS for event in events] == [False] * (len(events) - 1) + [True]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert sorted(done, key=lambda item: item["id"]) == sorted(
        events[-1]["response"]["output"], key=lambda item: item["id"]
    )


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]
