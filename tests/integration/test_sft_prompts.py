"""What fine-tuning shows a model before its answer is what the server shows it, token for token."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.agent.turns import ServedModel
from ossia.harmony.content import Effort
from ossia.harmony.render import render
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity
from ossia.server.chat.messages import read_messages
from ossia.server.chat.params import read_params
from ossia.server.chat.schema import ChatBody
from ossia.server.conversation.prompt import build_conversation
from ossia.server.replay import ReplayCache
from ossia.server.settings import ReasoningPolicy
from ossia.training.data.batches.conversations import encode_conversation
from ossia.training.data.chat.rows import read_row

TOKENIZER = Tokenizer.o200k_harmony()
IDENTITY = Identity(model_identity="You are a test.", knowledge_cutoff="2025-01")
MODEL = ServedModel(name="test", tokenizer=TOKENIZER, identity=IDENTITY, context_length=4096)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time"}},
    {"type": "custom", "custom": {"name": "note", "description": "Keeps a note"}},
]
FORMATS = [
    None,
    {"type": "text"},
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "place", "description": "A place", "schema": SCHEMA}},
]
WORDS = ["Oslo", "rain", "snø", "日本", "<|end|>", "maybe", "2 + 2", "a\nb"]


def words(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 5)))


def random_body(rng: random.Random) -> dict[str, Any]:
    """A whole conversation in OpenAI's form, which ends with an answer."""
    has_tools = rng.random() < 0.6
    messages: list[dict[str, Any]] = [
        {"role": rng.choice(["system", "developer"]), "content": words(rng)} for _ in range(rng.choice([0, 0, 1, 2]))
    ]
    for turn in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": words(rng)})
        for step in range(rng.choice([0, 0, 1, 2]) if has_tools else 0):
            calls = [random_call(f"call_{turn}_{step}_{i}", rng) for i in range(rng.randint(1, 2))]
            calling = {"role": "assistant", "content": words(rng) if rng.random() < 0.4 else None, "tool_calls": calls}
            messages.append(with_thought(calling, rng))
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": words(rng)} for call in calls]
        messages.append(with_thought({"role": "assistant", "content": words(rng)}, rng))
        if rng.random() < 0.1:
            messages.append({"role": "developer", "content": words(rng)})
    body: dict[str, Any] = {"messages": messages, "reasoning_effort": rng.choice(["low", "medium", "high"])}
    if has_tools:
        body["tools"] = TOOLS
    if (form := rng.choice(FORMATS)) is not None:
        body["response_format"] = form
    return body


def random_call(call_id: str, rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.2:
        return {"id": call_id, "type": "custom", "custom": {"name": "note", "input": words(rng)}}
    arguments = json.dumps({"city": words(rng)}, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def with_thought(message: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.6:
        message[rng.choice(["reasoning", "reasoning_content"])] = words(rng)
    return message


def served_prompt(body: dict[str, Any], *, num_messages: int) -> list[int]:
    """The prompt of a request that holds the first messages."""
    request = ChatBody.model_validate({**body, "messages": body["messages"][:num_messages]})
    messages = read_messages(request.messages, replay=ReplayCache(), owner="", policy=ReasoningPolicy.RAW)
    rules, effort, _ = read_params(request)
    conversation = build_conversation(messages, model=MODEL, date="2026-11-24", rules=rules, effort=effort)
    return render(conversation, tokenizer=TOKENIZER)


@settings(max_examples=120)
@given(st.integers(0, 2**64))
def test_each_message_is_learned_behind_the_prompt_that_the_server_gives(seed: int) -> None:
    body = random_body(random.Random(seed))
    row = read_row(body)
    conversation, learned = row.conversation(IDENTITY, effort=Effort.MEDIUM, date="2026-11-24")
    prompts: list[list[int]] = []
    for example in encode_conversation(conversation, tokenizer=TOKENIZER, learned=learned):
        edges = zip([False, *example.is_learned], example.is_learned, strict=False)
        prompts += [example.ids[:place] for place, edge in enumerate(edges) if edge == (False, True)]
    said = [i for i, message in enumerate(body["messages"]) if message["role"] == "assistant"]
    expected = [served_prompt(body, num_messages=i) for i in said]
    assert prompts == expected
