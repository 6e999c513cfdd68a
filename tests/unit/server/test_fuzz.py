"""Whatever a client sends, the answer is below 500, and the next request is served."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.unit.server.fuzzing import fuzz, values

JSON = {"content-type": "application/json"}
PATHS = ("/v1/responses", "/v1/responses/input_tokens", "/v1/conversations")

MALFORMED = [
    b"",
    b" ",
    b"nul",
    b"{",
    b"}",
    b'{"input"',
    b'{"input":}',
    b"[]",
    b"null",
    b"1",
    b'"x"',
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b'{"input":"\xff"}',
    b'{"input":"\\ud800"}',
    b'{"input":"a\x00"}',
    b'{"input":"a\\u0000b"}',
    b'{"input":NaN}',
    b'{"temperature":1e999,"input":"x"}',
    b'{"temperature":-1e999,"input":"x"}',
    b'{"input":"x","top_logprobs":1e400}',
    b'{"input":"x","max_output_tokens":' + b"9" * 4000 + b"}",
    b'{"input":"x","temperature":' + b"9" * 4000 + b"}",
    b'{"input":"x","max_output_tokens":' + b"9" * 5000 + b"}",
    b'{"input":"x","seed":' + b"9" * 30 + b"}",
    b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"input":"x","tools":' + b'[{"a":' * 90 + b"1" + b"}]" * 90 + b"}",
    b'{"input":"x","metadata":{"a":"\\ud83d\\ude00\\u0000"}}',
    b'{"input":"x","input":7}',
    b'{"input":"' + b"x" * 200_000 + b'"}',
    b'{"input":"x","model":"\\u0000"}',
    b'{"input":"x","previous_response_id":"\\u0000"}',
    b'{"input":"x","previous_response_id":"' + b"a" * 5000 + b'"}',
    b'{"input":"x","conversation":{"id":"a\\u0000"}}',
    b'{"input":[{"type":"item_reference","id":"\\u0000"}]}',
    b'{"input":[{"id":"\\u0000"}]}',
    b'{"input":[{"type":"reasoning","encrypted_content":"AAAA"}]}',
    b'{"input":[{"type":"reasoning","encrypted_content":"\\u00e9"}]}',
    b'{"input":[{"type":"reasoning","id":"\\u0000","content":[{"type":"reasoning_text","text":"a\\u0000"}]}]}',
    b'{"input":[{"type":"function_call","name":"a b<|end|>","arguments":"{","call_id":"c"}]}',
    b'{"input":[{"type":"function_call","name":"","arguments":"","call_id":"\\u0000"},'
    b'{"type":"function_call_output","call_id":"\\u0000","output":""}]}',
    b'{"input":[{"role":"user","content":[{"type":"input_text","text":1}]}]}',
    b'{"input":[{"type":"mcp_call"}]}',
    b'{"input":[{"type":"mcp_call","id":"a","server_label":"a b","name":"f","arguments":"","output":"x"}]}',
    b'{"input":[{"type":"mcp_call","id":"a","server_label":"a","name":"f","arguments":"","error":{"type":7}}]}',
    b'{"input":[{"type":"mcp_approval_request","id":"a","server_label":[],"name":"f","arguments":"{}"}]}',
    b'{"input":[{"type":"mcp_approval_response","approval_request_id":"\\u0000","approve":true}]}',
    b'{"input":[{"type":"mcp_approval_response","approval_request_id":[],"approve":1}]}',
    b'{"input":[{"type":"code_interpreter_call","id":"a","code":[],"outputs":{}}]}',
    b'{"input":[{"type":"mcp_list_tools","server_label":[]}]}',
    b'{"input":"x","tools":[{"type":"function","name":"f","parameters":{"$ref":"#"}}]}',
    b'{"input":"x","tools":[{"type":"function","name":"f","parameters":{"type":1e3}}]}',
    b'{"input":"x","tools":[{"type":"function","name":"f","parameters":{"enum":[1e308,null,[]]}}]}',
    b'{"input":"x","tools":[{"type":"function","name":"f","parameters":{"properties":[]}}],"tool_choice":"required"}',
    b'{"input":"x","tools":[{"type":"custom","name":"f","format":{"type":"grammar","syntax":"lark","definition":""}}]}',
    b'{"input":"x","tools":[{"type":"custom","name":"f","format":{"type":"grammar","syntax":"x","definition":"a"}}]}',
    b'{"input":"x","tool_choice":{"type":"allowed_tools","mode":"auto","tools":[]}}',
    b'{"input":"x","tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":"function"}]}}',
    b'{"input":"x","text":{"format":{"type":"json_schema","name":"a","schema":{"$ref":"#/nowhere"}}}}',
    b'{"input":"x","text":{"format":[]}}',
    b'{"input":"x","text":{"format":"x"}}',
    b'{"input":"x","reasoning":{"effort":[]}}',
]


async def _ask(client: Any, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body, headers=JSON)
    assert answer.status_code < 500, (path, body[:200], answer.text)
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"], body[:200]


@pytest.mark.parametrize("path", PATHS)
def test_malformed_bodies_get_clear_errors(make_server, client_for, path):
    async def run():
        async with client_for(make_server()) as client:
            for body in MALFORMED:
                await _ask(client, path, body)
            good = await client.post(path, json={} if path.endswith("conversations") else {"input": "x"})
            assert good.status_code == 200

    asyncio.run(run())


PATHS_TO_GET = [
    "/v1/responses/%00",
    "/v1/responses/a%00b",
    "/v1/responses/" + "a" * 3000,
    "/v1/responses/é",
    "/v1/responses/..%2f..",
    "/v1/responses/resp_1?stream=maybe",
    "/v1/responses/resp_1?starting_after=x",
    "/v1/responses/resp_1?starting_after=-5",
    "/v1/responses/resp_1?stream=true&starting_after=99999999999999999999999",
    "/v1/responses/resp_1/input_items?limit=0",
    "/v1/responses/resp_1/input_items?limit=9999999999999999999999",
    "/v1/responses/resp_1/input_items?order=up",
    "/v1/conversations/%00",
    "/v1/conversations/x/items/%00",
    "/v1/conversations/x/items?after=%00",
]


def test_odd_paths_and_queries_get_clear_errors(make_server, client_for):
    async def run():
        async with client_for(make_server()) as client:
            made = (await client.post("/v1/conversations", json={})).json()["id"]
            response = (await client.post("/v1/responses", json={"input": "x"})).json()["id"]
            paths = [*PATHS_TO_GET, f"/v1/conversations/{made}/items/%00", f"/v1/conversations/{made}/items?after=%00"]
            paths += [f"/v1/responses/{response}/input_items?after=%00"]
            assert (await client.get(f"/v1/responses/{response}?stream=true")).status_code == 400
            for path in paths:
                for method in ("GET", "DELETE", "POST", "PUT"):
                    answer = await client.request(method, path)
                    assert 400 <= answer.status_code < 500, (method, path, answer.text)
                    assert answer.json()["error"]["code"], path

    asyncio.run(run())


WORDS = [
    "function",
    "custom",
    "message",
    "user",
    "assistant",
    "auto",
    "required",
    "item_reference",
    "reasoning",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "mcp_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "code_interpreter_call",
    "json_schema",
    "input_text",
    "low",
]
KEYS = [
    "type",
    "role",
    "content",
    "id",
    "call_id",
    "server_label",
    "approval_request_id",
    "approve",
    "error",
    "outputs",
    "name",
    "arguments",
    "output",
    "input",
    "text",
    "format",
    "schema",
    "parameters",
    "properties",
    "effort",
    "summary",
    "tools",
    "mode",
    "strict",
    "description",
    "encrypted_content",
    "status",
    "phase",
    "definition",
    "syntax",
    "verbosity",
    "anyOf",
    "enum",
    "$ref",
    "items",
]
TOP = [
    "model",
    "input",
    "instructions",
    "previous_response_id",
    "conversation",
    "tools",
    "tool_choice",
    "text",
    "include",
    "parallel_tool_calls",
    "reasoning",
    "truncation",
    "store",
    "background",
    "metadata",
    "max_output_tokens",
    "top_p",
    "max_tool_calls",
    "temperature",
    "top_logprobs",
    "service_tier",
    "prompt",
    "user",
    "seed",
    "top_k",
    "min_p",
    "items",
]
_value = values(words=WORDS, keys=KEYS)
_body = st.dictionaries(st.sampled_from(TOP), _value, max_size=4)


_bodies = st.tuples(st.booleans(), _body).map(lambda drawn: {"input": "Hello", **drawn[1]} if drawn[0] else drawn[1])


def test_random_bodies_never_make_a_server_error(make_server, client_for):
    assert fuzz(make_server(), client_for, paths=PATHS, bodies=_bodies, ask=_ask) > 300
