"""`ossia chat` through a pipe. With a terminal: tests/integration/test_cli.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest


def test_stdout_gets_the_answer_alone(run: Any, script: Any) -> None:
    result = run("chat", stdin="What is 17 + 25?\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "17 + 25 = 42.\n", "")


def test_many_lines_are_one_question(run: Any, script: Any) -> None:
    assert run("chat", stdin="What is\n\n17 + 25?\n").exit_code == 0
    assert "<|message|>What is\n\n17 + 25?<|end|>" in script.prompts[0]


def test_options_reach_the_prompt_and_the_sampler(run: Any, script: Any) -> None:
    options = ["--temperature", "0.5", "--top-p", "0.9", "--seed", "3", "--max-tokens", "200"]
    run("chat", "--effort", "high", "--system", "Be brief.", *options, stdin="Hi")
    assert "Reasoning: high" in script.prompts[0]
    assert "# Instructions\n\nBe brief." in script.prompts[0]
    choice = script.requests[0].params
    assert (choice.temperature, choice.top_p, choice.seed, choice.max_tokens) == (0.5, 0.9, 3, 200)


def test_show_reasoning_goes_to_stderr(run: Any, script: Any) -> None:
    result = run("chat", "--show-reasoning", stdin="What is 17 + 25?")
    assert (result.stdout, result.stderr) == ("17 + 25 = 42.\n", "17+25 is 42\n")


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_question(run: Any, script: Any, text: str) -> None:
    result = run("chat", stdin=text)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("ossia: the question is empty")
    assert len(result.stderr.splitlines()) == 1


def test_a_question_that_is_not_utf_8(run: Any, script: Any) -> None:
    result = run("chat", stdin=b"caf\xe9")
    assert result.exit_code == 1
    assert "not UTF-8" in result.stderr


def test_unknown_effort_names_the_three(run: Any, script: Any) -> None:
    result = run("chat", "--effort", "extreme", stdin="Hi")
    assert result.exit_code == 1
    assert all(name in result.stderr for name in ("extreme", "low", "medium", "high"))


def test_a_question_beyond_the_context(run: Any, script: Any) -> None:
    result = run("chat", stdin="word " * 500)
    assert result.exit_code == 1
    assert "at most 399 fit" in result.stderr


def test_a_cut_off_answer_is_printed_and_said_so(run: Any, script: Any) -> None:
    script.completions[:] = ["<|channel|>final<|message|>one two three four five<|return|>"]
    result = run("chat", "--max-tokens", "5", stdin="Count")
    assert (result.exit_code, result.stdout) == (0, "one two\n")
    assert "cut off" in result.stderr


def test_no_answer_is_code_1(run: Any, script: Any) -> None:
    result = run("chat", "--max-tokens", "4", stdin="What is 17 + 25?")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cut off" in result.stderr


def test_the_engine_is_small_and_its_options_reach_it(run: Any, script: Any) -> None:
    run("chat", "some-model", "--kv-dtype", "fp8", "--num-drafts", "4", stdin="Hi")
    assert script.names == ["some-model"]
    assert script.sizes == {"max_num_seqs": 2, "kv_dtype": "fp8", "num_drafts": 4}


@pytest.mark.parametrize(("option", "value"), [("--temperature", "-1"), ("--top-p", "0"), ("--max-tokens", "0")])
def test_choices_out_of_range_are_told_before_a_model_is_loaded(run: Any, script: Any, option: str, value: str) -> None:
    result = run("chat", option, value, stdin="Hi")
    assert (result.exit_code, script.names) == (1, [])
    assert f"{option.removeprefix('--').replace('-', '_')} is {value}" in result.stderr


def test_a_call_of_what_is_not_there_is_answered_and_the_model_goes_on(run: Any, script: Any) -> None:
    script.completions.insert(0, "<|channel|>commentary to=functions.f<|message|>{}<|call|>")
    result = run("chat", stdin="What is 17 + 25?")
    assert (result.exit_code, result.stdout) == (0, "17 + 25 = 42.\n")
    assert "There is no tool 'functions.f'" in script.prompts[1]


def test_tools_through_a_pipe_need_leave(run: Any, script: Any) -> None:
    result = run("chat", "--tools", "browser", stdin="Hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--allow-all" in result.stderr


def test_an_unknown_tool(run: Any, script: Any) -> None:
    result = run("chat", "--tools", "nonsense", "--allow-all", stdin="Hi")
    assert result.exit_code == 1
    assert "there is no tool 'nonsense'; these exist: apply_patch, browser" in result.stderr


def test_a_tool_through_a_pipe(run: Any, script: Any, tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("The answer is 42.")
    patch = "*** Begin Patch\n*** Add File: new.txt\n+hello\n*** End Patch"
    script.completions.insert(0, f"<|channel|>commentary to=apply_patch<|message|>{patch}<|call|>")
    result = run("chat", "--tools", "apply_patch", "--root", str(tmp_path), "--allow-all", stdin="Make a file")
    assert (result.exit_code, result.stdout) == (0, "17 + 25 = 42.\n")
    assert (tmp_path / "new.txt").read_text() == "hello\n"
    assert "apply_patch" in script.prompts[0]


def test_tools_of_an_mcp_server(run: Any, script: Any, tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="the extra ossia[tools] is not installed")
    (tmp_path / "a.txt").write_text("harbour cranes")
    script.completions.insert(
        0,
        '<|channel|>commentary to=repo.repo_browser_open_file <|constrain|>json<|message|>{"path": "a.txt"}<|call|>',
    )
    server = f"repo={sys.executable} -m ossia.cli.main mcp --tools repo_browser --root {tmp_path}"
    result = run("chat", "--mcp", server, "--allow-all", stdin="Read the file")
    assert (result.exit_code, result.stdout) == (0, "17 + 25 = 42.\n"), result.stderr
    assert "namespace repo {" in script.prompts[0]
    assert "harbour cranes" in script.prompts[1]


def test_a_server_that_is_not_there(run: Any, script: Any) -> None:
    pytest.importorskip("mcp", reason="the extra ossia[tools] is not installed")
    result = run("chat", "--mcp", "x=/nowhere/server", "--allow-all", stdin="Hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
