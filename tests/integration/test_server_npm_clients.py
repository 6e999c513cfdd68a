"""Clients from npm against the server: the Agents SDK, the `ai` SDK, OpenAI's and Anthropic's own, and the Codex CLI.

They are installed by `make compat`, which then runs these tests; without them the tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent / "clients"
NEXT = "<|start|>assistant"
THINK = "<|channel|>analysis<|message|>I need the weather.<|end|>" + NEXT
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Oslo"}<|call|>'
FINAL = "<|channel|>final<|message|>It is sunny in Oslo.<|return|>"
OBJECT = '<|channel|>final<|message|>{"word":"ok"}<|return|>'
ANSWER = "It is sunny in Oslo."

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("node") is None or not (CLIENTS / "node_modules").is_dir(),
        reason="the npm clients are not installed; `make compat` installs them (it needs Node 20 or newer)",
    ),
]


def script(prompt: str) -> str:
    if "Give the object." in prompt:
        return OBJECT
    return FINAL if "Sunny in Oslo." in prompt else THINK + CALL


def run_node(*arguments: str) -> dict[str, object]:
    done = subprocess.run(["node", *arguments], cwd=CLIENTS, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("kind", ["responses", "chat"])
@pytest.mark.parametrize("mode", ["whole", "stream"])
def test_the_agents_sdk(start_server, kind, mode):
    with start_server(script) as server:
        assert run_node("agents.mjs", f"{server.url}/v1", kind, mode) == {"text": ANSWER}
        prompts = [request.prompt_ids for request in server.engine.requests]
        said = tuple(server.engine.tokenizer.encode_with_specials(THINK + CALL))
        assert len(prompts) == 2
        assert prompts[1][: len(prompts[0]) + len(said)] == prompts[0] + said, "reasoning is kept between calls"


def test_the_ai_sdk(start_server):
    with start_server(script) as server:
        assert run_node("ai_sdk.mjs", f"{server.url}/v1") == {"text": ANSWER, "object": {"word": "ok"}}
        assert '"word"' in server.engine.requests[-1].params.constraint.response_format.text


@pytest.mark.parametrize(("name", "path"), [("openai_node.mjs", "/v1"), ("anthropic_node.mjs", "")])
def test_the_makers_own_clients(start_server, name, path):
    with start_server(script) as server:
        assert run_node(name, f"{server.url}{path}") == {"text": ANSWER}


def test_the_codex_cli_runs_a_command(start_server, tmp_path):
    """Codex asks, runs the shell command that the model calls for, and gives its output back."""

    def say(prompt: str) -> str:
        if "Output:\nhello-from-a-shell" in prompt:
            return "<|channel|>final<|message|>The shell said hello.<|return|>"
        arguments = json.dumps({"cmd": "printf hello-from-a-shell"})
        call = f"<|channel|>commentary to=functions.exec_command <|constrain|>json<|message|>{arguments}<|call|>"
        return THINK + call

    home, work = tmp_path / "codex", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    with start_server(say, engine={"context_length": 100_000}) as server:
        (home / "config.toml").write_text(
            f"""
model = "scripted"
model_provider = "ossia"
model_context_window = 100000
approval_policy = "never"
web_search = "disabled"

[model_providers.ossia]
name = "Ossia"
base_url = "{server.url}/v1"
wire_api = "responses"
""",
            encoding="utf-8",
        )
        command = [str(CLIENTS / "node_modules/.bin/codex"), "exec", "--skip-git-repo-check", "--json"]
        # The command is this test's own, and containers seldom let Codex make a sandbox of its own.
        command += ["-s", "danger-full-access", "Say hello in the shell."]
        environment = {**os.environ, "CODEX_HOME": str(home)}
        done = subprocess.run(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        items = [json.loads(line).get("item", {}) for line in done.stdout.splitlines()]
        ran = [item for item in items if item.get("type") == "command_execution" and item["status"] == "completed"]
        assert ran[0]["aggregated_output"] == "hello-from-a-shell"
        assert [item["text"] for item in items if item.get("type") == "agent_message"] == ["The shell said hello."]
        first, second = (request.prompt_ids for request in server.engine.requests)
        assert second[: len(first)] == first, "the prompt only grows, so the prefix cache holds"
