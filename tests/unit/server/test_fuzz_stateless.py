"""Whatever a client sends to Chat Completions, Completions, Messages or /tokenize, the answer is below 500."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.unit.server.fuzzing import fuzz, values

JSON = {"content-type": "application/json"}
PATHS = (
    "/v1/chat/completions",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
_M = b'{"max_tokens":9,"messages":[{"role":"user","content":"x"}],'

MALFORMED = [
    b"",
    b"nul",
    b"[]",
    b'"x"',
    b"\xff\xfe",
    b'{"messages":"\xff"}',
    b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"messages":[{"role":"user","content":"a\\u0000b"}],"max_tokens":3}',
    _M + b'"temperature":1e999}',
    _M + b'"seed":' + b"9" * 30 + b"}",
    _M + b'"n":' + b"9" * 4000 + b"}",
    _M + b'"stop":["\\ud83d"]}',
    _M + b'"stop":"\\u0000"}',
    _M + b'"logit_bias":{"\\u0661":1}}',
    _M + b'"logit_bias":{"-1":1}}',
    _M + b'"tools":[{"type":"function","function":{"name":"f","parameters":{"$ref":"#"}}}]}',
    _M + b'"tools":[{"type":"function","function":{"name":"f","parameters":{"type":1e3}}}],"tool_choice":"required"}',
    _M + b'"tools":[{"type":"custom","custom":{"name":"f","format":{"type":"grammar","grammar":{"syntax":"x"}}}}]}',
    _M + b'"tools":[{"type":"custom","custom":{"name":"f","format":[]}}]}',
    _M + b'"tools":[{"name":"f","input_schema":{"$ref":"#/nowhere"}}]}',
    _M + b'"tools":[{"name":"\\u0000","input_schema":{}}]}',
    _M + b'"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[1]}}}',
    _M + b'"tool_choice":{"type":[]}}',
    _M + b'"response_format":{"type":[]}}',
    _M + b'"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"$ref":"#/nowhere"}}}}',
    _M + b'"thinking":{"type":[]}}',
    _M + b'"thinking":{"type":"enabled","budget_tokens":1e400}}',
    _M + b'"output_config":{"format":{"type":"json_schema","schema":{"type":[]}}}}',
    b'{"max_tokens":1,"messages":[{"role":"assistant","tool_calls":[{"id":"\\u0000"}]}]}',
    b'{"messages":[{"role":"assistant","tool_calls":{}}]}',
    b'{"messages":[{"role":"assistant","function_call":[]}]}',
    b'{"messages":[{"role":"assistant","reasoning":[1],"content":"x"}]}',
    b'{"messages":[{"role":"function","name":" ","content":"x"}]}',
    b'{"messages":[{"role":"function","name":"a<|end|>","content":"x"}]}',
    b'{"messages":[{"role":"assistant","content":"\\ud800"}],"max_tokens":3}',
    b'{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"b","input":'
    + b'{"a":' * 80
    + b"1"
    + b"}" * 80
    + b'}]},{"role":"user","content":[]}],"max_tokens":9}',
    b'{"messages":[{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"\\u00e9"}]}]}',
    b'{"prompt":"' + b" " * 100_000 + b'"}',
    b'{"prompt":"\\ud800"}',
    b'{"prompt":[1,"a"]}',
    b'{"prompt":[[1,2.5]]}',
    b'{"prompt":[99999999999999999999]}',
    b'{"tokens":[99999999999999999999]}',
    b'{"tokens":[1.5]}',
    b'{"prompt":"x","logprobs":5,"echo":true,"max_tokens":0,"stream":true}',
]


async def _ask(client: Any, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body, headers=JSON)
    assert answer.status_code < 500, (path, body[:300], answer.text)
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"]
        assert error["type"]


@pytest.mark.parametrize("path", PATHS)
def test_malformed_bodies_get_clear_errors(make_server, client_for, path):
    async def run():
        async with client_for(make_server()) as client:
            for body in MALFORMED:
                await _ask(client, path, body)
            body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
            body = {"tokens": [1]} if path == "/detokenize" else body
            assert (await client.post(path, json=body)).status_code == 200

    asyncio.run(run())


WORDS = [
    "function",
    "custom",
    "user",
    "assistant",
    "system",
    "tool",
    "auto",
    "required",
    "any",
    "none",
    "json_schema",
    "text",
    "tool_use",
    "tool_result",
    "thinking",
    "enabled",
    "low",
    "allowed_tools",
]
KEYS = [
    "type",
    "role",
    "content",
    "id",
    "name",
    "arguments",
    "input",
    "text",
    "format",
    "schema",
    "parameters",
    "properties",
    "effort",
    "tools",
    "strict",
    "function",
    "custom",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning",
    "tool_use_id",
    "input_schema",
    "thinking",
    "signature",
    "data",
    "source",
    "grammar",
    "definition",
    "syntax",
    "json_schema",
    "allowed_tools",
    "mode",
    "anyOf",
    "enum",
    "$ref",
    "items",
    "budget_tokens",
]
TOP = [
    "model",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "response_format",
    "n",
    "logprobs",
    "top_logprobs",
    "seed",
    "stop",
    "stop_sequences",
    "logit_bias",
    "presence_penalty",
    "max_tokens",
    "max_completion_tokens",
    "reasoning_effort",
    "reasoning",
    "parallel_tool_calls",
    "thinking",
    "output_config",
    "prompt",
    "echo",
    "suffix",
    "best_of",
    "stream",
    "stream_options",
    "tokens",
    "top_k",
    "user",
]
_value = values(words=WORDS, keys=KEYS)
_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "function"]), "content": _value},
    optional={"tool_calls": _value, "tool_call_id": _value, "name": _value, "reasoning": _value},
)
_body = st.dictionaries(st.sampled_from(TOP), _value, max_size=4)


def _with_messages(drawn: tuple[list[Any], dict[str, Any]]) -> dict[str, Any]:
    messages, body = drawn
    return {"max_tokens": 5, "prompt": "x", "messages": messages, **body} if messages else body


_bodies = st.tuples(st.lists(_message, max_size=3), _body).map(_with_messages)


def test_random_bodies_never_make_a_server_error(make_server, client_for):
    assert fuzz(make_server(), client_for, paths=PATHS, bodies=_bodies, ask=_ask) > 300
