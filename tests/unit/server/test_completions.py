"""/v1/completions, /v1/models, /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from anthropic.types import ModelInfo
from openai.types import Completion, Model

PATH = "/v1/completions"
TEXT = "and they lived happily."


def ask(client_for, app, *bodies: dict[str, Any], path: str = PATH) -> list[dict[str, Any]]:
    async def run():
        async with client_for(app) as client:
            answers = [await client.post(path, json=body) for body in bodies]
            assert [answer.status_code for answer in answers] == [200] * len(bodies), answers[-1].text
            return [answer.json() for answer in answers]

    return asyncio.run(run())


def test_prompts_of_every_form(make_server, client_for, tokenizer):
    app = make_server(TEXT)
    ids = tokenizer.encode("Once upon")
    bodies = [
        {"prompt": "Once upon", "max_tokens": 50},
        {"prompt": list(ids), "max_tokens": 50},
        {"prompt": ["Once upon", ""], "max_tokens": 50},
        {"prompt": [list(ids), list(ids)], "n": 2, "max_tokens": 50},
        {"max_tokens": 50},
        {"prompt": "<|end|>"},
    ]
    answers = ask(client_for, app, *bodies)
    for answer in answers:
        Completion.model_validate(answer, strict=True)
    prompts = [request.prompt_ids for request in app.state.context.engine.requests]
    assert prompts[0] == prompts[1] == prompts[2] == prompts[4] == prompts[5] == tuple(ids)
    assert prompts[3] == prompts[6] == (tokenizer.endoftext,)
    assert tokenizer.end not in prompts[7]
    assert [len(answer["choices"]) for answer in answers] == [1, 1, 2, 4, 1, 1]
    assert [choice["index"] for choice in answers[3]["choices"]] == [0, 1, 2, 3]
    assert answers[0]["choices"][0]["text"] == TEXT
    assert answers[0]["usage"]["prompt_tokens"] == len(ids)
    assert answers[3]["usage"]["prompt_tokens"] == 2 * len(ids)
    assert app.state.context.engine.requests[-1].params.max_tokens == 16


def test_echo_stop_and_logprobs(make_server, client_for, tokenizer):
    app = make_server(TEXT)
    echoed, scored, stopped, cut = ask(
        client_for,
        app,
        {"prompt": "Once ", "echo": True, "max_tokens": 50, "logprobs": 2},
        {"prompt": "Once ", "echo": True, "max_tokens": 0, "logprobs": 0},
        {"prompt": "Once ", "stop": ["happ", "zz"], "max_tokens": 50},
        {"prompt": "Once ", "max_tokens": 2},
    )
    choice = echoed["choices"][0]
    assert choice["text"] == "Once " + TEXT
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    starts = [choice["text"].index(token, offset) for token, offset in zip(*_tokens(logprobs), strict=True)]
    assert starts == logprobs["text_offset"]
    assert all(top is None or len(top) <= 2 for top in logprobs["top_logprobs"])
    assert logprobs["token_logprobs"][0] is None
    assert scored["choices"][0]["text"] == "Once "
    assert len(scored["choices"][0]["logprobs"]["tokens"]) == len(tokenizer.encode("Once "))
    assert stopped["choices"][0]["text"] == TEXT[: TEXT.index("happ")]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert cut["choices"][0]["finish_reason"] == "length"


def _tokens(logprobs: dict[str, Any]) -> tuple[list[str], list[int]]:
    return logprobs["tokens"], logprobs["text_offset"]


@pytest.mark.parametrize("more", [{}, {"echo": True, "logprobs": 1}, {"n": 2}, {"prompt": ["a b", "c d"], "n": 2}])
def test_streamed_and_whole_completions_agree(make_server, client_for, more):
    app = make_server(TEXT, engine={"tokens_per_event": 2})

    async def run():
        async with client_for(app) as client:
            body = {"prompt": "Once", "max_tokens": 50, **more}
            once = (await client.post(PATH, json=body)).json()
            streaming = {**body, "stream": True, "stream_options": {"include_usage": True}}
            blocks = (await client.post(PATH, json=streaming)).text.strip().split("\n\n")
            assert blocks[-1] == "data: [DONE]"
            chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]
            found: dict[int, dict[str, Any]] = {}
            for chunk in chunks[:-1]:
                assert chunk["usage"] is None
                for choice in chunk["choices"]:
                    whole = found.setdefault(choice["index"], {**choice, "text": "", "logprobs": None})
                    assert whole["finish_reason"] is None
                    whole["text"] += choice["text"]
                    whole["finish_reason"] = choice["finish_reason"]
                    if choice["logprobs"]:
                        whole["logprobs"] = whole["logprobs"] or {name: [] for name in choice["logprobs"]}
                        for name, values in choice["logprobs"].items():
                            whole["logprobs"][name] += values
            assert [found[i] for i in sorted(found)] == once["choices"]
            assert chunks[-1]["choices"] == []
            assert chunks[-1]["usage"] == once["usage"]
            assert not app.state.context.engine.open

    asyncio.run(run())


def test_errors_name_code_and_param(make_server, client_for):
    app = make_server(TEXT, engine={"max_open": 2})
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({"prompt": "a", "suffix": "b"}, "unsupported_value", "suffix"),
        ({"prompt": "a", "best_of": 3}, "unsupported_value", "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [[]]}, "invalid_value", "prompt[0]"),
        ({"prompt": [999_999]}, "invalid_value", "prompt_ids"),
        ({"prompt": [-1]}, "invalid_value", "prompt_ids"),
        ({"prompt": {}}, "invalid_type", "prompt"),
        ({"prompt": "a " * 9000}, "context_length_exceeded", "prompt"),
        ({"prompt": ["a", "b"], "n": 100}, "invalid_value", "n"),
        ({"prompt": ["a", "b", "c"]}, "overloaded", None),
    ]

    async def run():
        async with client_for(app) as client:
            for body, code, param in cases:
                answer = await client.post(PATH, json=body)
                error = answer.json()["error"]
                assert (error["code"], error["param"]) == (code, param), (body, error)
                assert answer.status_code == (503 if code == "overloaded" else 400)
                assert not app.state.context.engine.open, body

    asyncio.run(run())


def test_models_for_both_kinds_of_clients(make_server, client_for):
    async def run():
        async with client_for(make_server()) as client:
            page = (await client.get("/v1/models")).json()
            assert page["object"] == "list"
            assert Model.model_validate(page["data"][0]).id == "scripted"
            assert (await client.get("/v1/models/scripted")).json() == page["data"][0]
            missing = await client.get("/v1/models/openai/gpt-oss-20b")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
            headers = {"anthropic-version": "2023-06-01"}
            other = (await client.get("/v1/models", headers=headers)).json()
            assert ModelInfo.model_validate(other["data"][0]).display_name == "scripted"
            assert not other["has_more"]

    asyncio.run(run())


def test_tokens_and_back(make_server, client_for, tokenizer):
    app = make_server()
    text = "Once <|end|> upon 日本"
    made, chat = ask(
        client_for, app, {"prompt": text}, {"messages": [{"role": "user", "content": text}]}, path="/tokenize"
    )
    assert made["tokens"] == list(tokenizer.encode(text))
    assert made["count"] == len(made["token_strs"]) == len(made["tokens"])
    assert chat["tokens"][-len(made["tokens"]) - 3 : -3] == made["tokens"]

    async def run():
        async with client_for(make_server()) as client:
            back = await client.post("/detokenize", json={"tokens": made["tokens"]})
            assert back.json() == {"prompt": text}
            for path, body in (
                ("/tokenize", {}),
                ("/tokenize", {"prompt": "a", "messages": []}),
                ("/tokenize", {"messages": [{"role": "x"}]}),
                ("/tokenize", {"messages": []}),
                ("/detokenize", {"tokens": [-1]}),
                ("/detokenize", {"tokens": [10**30]}),
            ):
                answer = await client.post(path, json=body)
                assert answer.status_code == 400, (path, body, answer.text)

    asyncio.run(run())
