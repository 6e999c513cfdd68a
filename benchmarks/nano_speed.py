"""Speed of the built-in nano on the CPU: tokens a second at batch 1, and how long `ossia chat` takes from its start.

python -m benchmarks.nano_speed            writes benchmarks/results/nano-speed.md and .json
python -m benchmarks.nano_speed --json     prints the JSON and writes nothing
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.timing import tell

from ossia.agent.loop import AgentLoop
from ossia.agent.turns import Sampling
from ossia.cli.backend import Backend, open_backend
from ossia.cli.turn import Run
from ossia.evals.environment import describe
from ossia.evals.report import markdown_table
from ossia.harmony.message import Conversation, Effort, Message, Role
from ossia.tools.registry import ToolSet

COMMAND = "python -m benchmarks.nano_speed"
QUESTIONS = (
    "How many rs are in the word 'strawberry'?",
    "What is 48213 + 9907?",
    "What is 70210 - 3456?",
    "Reverse the word 'lantern'.",
)
STARTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Seconds from starting `ossia chat` to its first output and to its end."""

    first: float
    whole: float


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    parser.add_argument("--model", default="nano", help="a model name or folder (default nano)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each question is asked (default 3)")
    options = parser.parse_args()
    record = measure(options.model, rounds=options.rounds)
    tell(record, render_page(record), name="nano-speed", as_json=options.json)


def measure(model: str, *, rounds: int) -> dict[str, Any]:
    """All figures, as JSON types."""
    starts = [time_chat(model) for _ in range(STARTS)]
    begin = time.perf_counter()
    # Without the prefix cache, so that each prompt is computed whole.
    backend = open_backend(model, device="cpu", max_num_seqs=1, has_prefix_cache=False)
    load_seconds = time.perf_counter() - begin
    begin_cpu = time.process_time()
    turns = asyncio.run(time_answers(backend, rounds=rounds))
    cpu_seconds = time.process_time() - begin_cpu
    num_tokens = sum(turn.num_tokens for turn in turns)
    return {
        "command": COMMAND,
        "environment": describe(),
        "model": model,
        "load_seconds": round(load_seconds, 3),
        "chat_first_token_seconds": round(statistics.median(start.first for start in starts), 3),
        "chat_whole_answer_seconds": round(statistics.median(start.whole for start in starts), 3),
        "tokens_per_second": round(
            (num_tokens - len(turns)) / sum(turn.seconds - turn.seconds_to_first for turn in turns), 1
        ),
        "tokens_per_cpu_second": round(num_tokens / cpu_seconds, 1),
        "prefill_tokens_per_second": round(
            sum(turn.num_prompt_tokens for turn in turns) / sum(turn.seconds_to_first for turn in turns), 1
        ),
        "first_token_seconds": round(statistics.median(turn.seconds_to_first for turn in turns), 4),
        "num_answers": len(turns),
        "mean_tokens": round(num_tokens / len(turns), 1),
    }


def time_chat(model: str) -> Start:
    """Pipe a question into a fresh `ossia chat` and time its first output and its end: imports and loading count.

    Raises:
        RuntimeError: it gave no answer.
    """
    command = [sys.executable, "-m", "ossia.cli.main", "chat", model, "--show-reasoning", "--temperature", "0"]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(QUESTIONS[0].encode())
        process.stdin.close()
        output = process.stdout.read(1)
        first = time.perf_counter() - begin
        output += process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"ossia chat ended with {process.returncode}: {output.decode()}")
    return Start(first=first, whole=time.perf_counter() - begin)


async def time_answers(backend: Backend, *, rounds: int) -> list[Run]:
    """Ask every question so many times, one after the other."""
    try:
        return [await time_answer(backend, question) for _ in range(rounds) for question in QUESTIONS]
    finally:
        await backend.engine.shutdown()


async def time_answer(backend: Backend, question: str) -> Run:
    """Answer a question greedily at high effort, as `ossia chat` does: sampling, parsing and detokenizing."""
    messages = backend.loaded.opening(effort=Effort.HIGH, date="2026-01-01", instructions=None)
    conversation = Conversation((*messages, Message(role=Role.USER, content=question)))
    loop = AgentLoop(backend.turns, tools=ToolSet(), sampling=Sampling(temperature=0.0))
    run = Run()
    async with contextlib.aclosing(loop.run(conversation)) as events:
        async for event in events:
            run.take(event)
    return run


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    environment = record["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    rows = [
        ["generation, batch 1", f"{record['tokens_per_second']:,} tokens/s"],
        ["the same in CPU time, prefill included", f"{record['tokens_per_cpu_second']:,} tokens/s"],
        ["prefill", f"{record['prefill_tokens_per_second']:,} tokens/s"],
        ["first token, model loaded", f"{record['first_token_seconds']} s"],
        ["importing torch and loading the model", f"{record['load_seconds']} s"],
        ["`ossia chat`, from process start to the first token", f"{record['chat_first_token_seconds']} s"],
        ["`ossia chat`, from process start to the end of the answer", f"{record['chat_whole_answer_seconds']} s"],
    ]
    return "\n".join(
        [
            f"# Speed of {record['model']} on the CPU",
            "",
            f"{record['num_answers']} answers at high effort, {record['mean_tokens']} tokens each on average, one at a",
            "time, by the clock. The CPU time beside it is what they would take on an idle core: so small a model",
            f"runs on one thread. Times of `ossia chat` are medians of {STARTS} fresh processes at medium effort,",
            "importing torch included.",
            "",
            markdown_table(["", ""], rows),
            "",
            "## How it was measured",
            "",
            f"- Command: `{record['command']}`",
            f"- Hardware: {environment['hardware']}; {versions}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
