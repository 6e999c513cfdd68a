"""200 random conversations: streamed and at once they are the same object, and every event is well formed."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from openai.types.responses import Response
from tests.unit.server.hosted import check_events, events_of
from tests.unit.server.scripts import random_script, words

NUM_CONVERSATIONS = 200
TOOLS = [
    {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False},
    {"type": "custom", "name": "g"},
]


def without_names(response: dict[str, Any]) -> dict[str, Any]:
    data = {**response, "id": "", "created_at": 0, "completed_at": 0}
    data["output"] = [{**item, "id": "", **({"call_id": ""} if "call_id" in item else {})} for item in data["output"]]
    return data


def replay(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as a client puts it together from deltas and done events."""
    items: dict[int, dict[str, Any]] = {}
    texts: dict[int, str] = {}
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            items[event["output_index"]] = event["item"]
            texts[event["output_index"]] = ""
        elif kind.endswith(".delta"):
            texts[event["output_index"]] += event["delta"]
        elif kind.endswith(("_text.done", "_arguments.done", "_input.done")):
            text = event.get("text", event.get("arguments", event.get("input")))
            assert texts[event["output_index"]] == text
        elif kind == "response.output_item.done":
            items[event["output_index"]] = event["item"]
    return list(items.values())


def test_streamed_and_whole_responses_agree(make_server, client_for):
    rng = random.Random(20_261_124)
    script = {"text": ""}
    app = make_server(lambda _: script["text"])

    async def run() -> None:
        async with client_for(app) as client:
            for _ in range(NUM_CONVERSATIONS):
                script["text"] = random_script(rng)
                app.state.context.engine.tokens_per_event = rng.randint(1, 4)
                body: dict[str, Any] = {"input": words(rng) or "x", "tools": rng.choice([[], TOOLS])}
                if rng.random() < 0.3:
                    body["max_output_tokens"] = rng.randint(1, 20)
                if rng.random() < 0.2:
                    body["top_logprobs"] = rng.randint(0, 3)
                body["parallel_tool_calls"] = rng.random() < 0.8
                once = (await client.post("/v1/responses", json=body)).json()
                Response.model_validate(once)
                events = events_of((await client.post("/v1/responses", json={**body, "stream": True})).text)
                check_events(events)
                assert without_names(events[-1]["response"]) == without_names(once), script["text"]
                assert replay(events) == events[-1]["response"]["output"]
                assert not app.state.context.engine.open

    asyncio.run(run())
