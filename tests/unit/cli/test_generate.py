from __future__ import annotations

import json
from typing import Any

import pytest

from ossia.cli.generate import timing


def test_the_answer_goes_to_stdout(run: Any, script: Any) -> None:
    result = run("generate", "-p", "What is 17 + 25?")
    assert (result.exit_code, result.stdout) == (0, "17 + 25 = 42.\n")


def test_a_prompt_from_stdin(run: Any, script: Any) -> None:
    run("generate", "--effort", "low", stdin="What is\n17 + 25?\n")
    assert "<|message|>What is\n17 + 25?<|end|>" in script.prompts[0]
    assert "Reasoning: low" in script.prompts[0]


def test_json(run: Any, script: Any) -> None:
    result = run("generate", "-p", "What is 17 + 25?", "--json")
    record = json.loads(result.stdout)
    assert record["text"] == "17 + 25 = 42."
    assert "reasoning" not in record
    assert record["finish_reason"] == "stop"
    assert record["tokens"]["completion"] > record["tokens"]["reasoning"] > 0
    assert record["tokens"]["prompt"] == len(script.loaded.tokenizer.encode_with_specials(script.prompts[0]))
    assert set(record["timing"]) == {"load_seconds", "first_token_seconds", "total_seconds", "tokens_per_second"}


def test_reasoning_is_given_only_when_asked_for(run: Any, script: Any) -> None:
    result = run("generate", "-p", "What is 17 + 25?", "--json", "--show-reasoning")
    assert json.loads(result.stdout)["reasoning"] == "17+25 is 42"


def test_show_reasoning_without_json_goes_to_stderr(run: Any, script: Any) -> None:
    result = run("generate", "-p", "What is 17 + 25?", "--show-reasoning")
    assert (result.stdout, result.stderr) == ("17 + 25 = 42.\n", "17+25 is 42\n")


def test_a_call_is_reported(run: Any, script: Any) -> None:
    script.completions[:] = ['<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>']
    record = json.loads(run("generate", "-p", "x", "--json").stdout)
    assert record["calls"] == [{"recipient": "functions.f", "arguments": '{"a": 1}'}]
    assert (record["finish_reason"], record["text"]) == ("tool_call", "")


def test_raw_continues_the_text_and_drops_the_stop_token(run: Any, script: Any) -> None:
    script.completions[:] = [" upon a time<|endoftext|>"]
    result = run("generate", "--raw", "-p", "Once")
    assert result.stdout == " upon a time\n"
    assert script.prompts == ["Once"]


def test_raw_json(run: Any, script: Any) -> None:
    script.completions[:] = [" upon a time"]
    record = json.loads(run("generate", "--raw", "-p", "Once", "--json", "--max-tokens", "2").stdout)
    assert (record["text"], record["finish_reason"]) == (" upon a", "length")
    assert record["tokens"] == {"prompt": 1, "completion": 2}


def test_raw_keeps_the_prompt_as_it_is(run: Any, script: Any) -> None:
    script.completions[:] = ["<|endoftext|>"]
    run("generate", "--raw", "-p", "  <|start|> two spaces  ")
    assert script.prompts == ["  <|start|> two spaces  "]


def test_sampling_options(run: Any, script: Any) -> None:
    run(
        "generate", "-p", "x", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "5", "--min-p", "0.1", "--seed", "7"
    )
    choice = script.requests[0].params
    assert (choice.temperature, choice.top_p, choice.top_k, choice.min_p, choice.seed) == (0.5, 0.9, 5, 0.1, 7)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["-p", " "], "prompt is empty"),
        (["--raw", "-p", ""], "prompt is empty"),
        (["-p", "x", "--effort", "max"], "'medium'"),
        (["-p", "x", "--temperature", "-1"], "temperature is -1"),
        (["-p", "x", "--top-k", "-1"], "top_k is -1"),
        (["-p", "x", "--min-p", "2"], "min_p is 2"),
        (["-p", "word " * 500], "at most 399 fit"),
        (["--raw", "-p", "word " * 500], "at most 399 fit"),
    ],
)
def test_bad_input_is_one_line_and_code_1(run: Any, script: Any, args: list[str], part: str) -> None:
    result = run("generate", *args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert part in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_timing_leaves_the_prompt_out_of_the_rate() -> None:
    assert timing(first=1.0, total=3.0, num_tokens=5)["tokens_per_second"] == 2.0
    assert timing(first=1.0, total=1.0, num_tokens=1)["tokens_per_second"] is None
    assert timing(first=0.0, total=0.0, num_tokens=0)["tokens_per_second"] is None
