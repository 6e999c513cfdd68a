"""gpt-oss reads text only: an image, a sound or a file, wherever it stands, is refused by its place."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
FILE = {"type": "input_file", "file_id": "file_1"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
CHAT_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CHAT_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BASE64 = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}
TEXT = {"type": "text", "text": "Look:"}


def of_user(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


RESPONSES = [
    (of_user({"type": "input_text", "text": "Look:"}, IMAGE), "input[0].content[1].type"),
    (of_user(FILE), "input[0].content[0].type"),
    (of_user({"type": "input_audio", "input_audio": {}}), "input[0].content[0].type"),
    ([CALL, {"type": "function_call_output", "call_id": "c", "output": [IMAGE]}], "input[1].output[0].type"),
    ([{"type": "image_generation_call", "id": "ig_1", "result": "AAAA", "status": "completed"}], "input[0].type"),
]
CHAT = [
    (of_user(TEXT, CHAT_IMAGE), "messages[0].content[1].type"),
    (of_user({"type": "file", "file": {"file_id": "x"}}), "messages[0].content[0].type"),
    (of_user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}), "messages[0].content[0].type"),
    (
        [
            {"role": "assistant", "tool_calls": [CHAT_CALL]},
            {"role": "tool", "tool_call_id": "c", "content": [CHAT_IMAGE]},
        ],
        "messages[1].content[0].type",
    ),
]
MESSAGES = [
    (of_user(TEXT, {"type": "image", "source": BASE64}), "messages[0].content[1].type"),
    (of_user({"type": "document", "source": BASE64 | {"media_type": "application/pdf"}}), "messages[0].content[0]"),
    (
        [USE, *of_user({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image", "source": BASE64}]})],
        "messages[1].content[0].content[0].type",
    ),
]


@pytest.mark.parametrize(
    ("path", "field", "given", "param"),
    [
        *(("/v1/responses", "input", given, param) for given, param in RESPONSES),
        *(("/v1/chat/completions", "messages", given, param) for given, param in CHAT),
        *(("/v1/messages", "messages", given, param) for given, param in MESSAGES),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(make_server, client_for, path, field, given, param):
    app = make_server()

    async def run():
        async with client_for(app) as client:
            answer = await client.post(path, json={"model": "scripted", "max_tokens": 9, field: given})
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error"
            if path == "/v1/messages":  # Anthropic's errors have no field for it
                assert param in error["message"], error
            else:
                assert (error["param"], error["code"]) == (param, "unsupported_value"), error
            assert "text" in error["message"] or "type" in error["message"]
            assert not app.state.context.engine.requests

    asyncio.run(run())
