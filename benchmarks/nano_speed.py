"""Speed of the built-in nano on the CPU: tokens a second at batch 1, and how long `ossia chat` takes from its start.

python -m benchmarks.nano_speed            writes benchmarks/results/nano-speed.md and .json
python -m benchmarks.nano_speed --json     prints the JSON and writes nothing
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.timing import results_folder

from ossia.evals.environment import describe
from ossia.evals.report import markdown_table, write_text
from ossia.evals.run import Evaluated, load_evaluated, render_prompt
from ossia.harmony.message import Effort

COMMAND = "python -m benchmarks.nano_speed"
QUESTIONS = (
    "How many rs are in the word 'strawberry'?",
    "What is 48213 + 9907?",
    "What is 70210 - 3456?",
    "Reverse the word 'lantern'.",
)
STARTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Timings of one answer.

    Attributes:
        num_prompt: tokens of the prompt.
        num_generated: tokens of the answer.
        first: seconds to the first token, prefill included.
        rest: seconds from the first to the last token.
    """

    num_prompt: int
    num_generated: int
    first: float
    rest: float


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
    if options.json:
        json.dump(record, sys.stdout, indent=1)
        print()
        return
    page = render_page(record)
    write_text(results_folder() / "nano-speed.json", json.dumps(record, indent=1) + "\n")
    write_text(results_folder() / "nano-speed.md", page)
    print(page)


def measure(model: str, *, rounds: int) -> dict[str, Any]:
    """All figures, as JSON types."""
    starts = [time_chat(model) for _ in range(STARTS)]
    begin = time.perf_counter()
    evaluated = load_evaluated(model)
    load_seconds = time.perf_counter() - begin
    answers = [time_answer(evaluated, question) for _ in range(rounds) for question in QUESTIONS]
    return {
        "command": COMMAND,
        "environment": describe(),
        "model": model,
        "load_seconds": round(load_seconds, 3),
        "chat_first_token_seconds": round(statistics.median(start.first for start in starts), 3),
        "chat_whole_answer_seconds": round(statistics.median(start.whole for start in starts), 3),
        "tokens_per_second": round(
            sum(answer.num_generated - 1 for answer in answers) / sum(answer.rest for answer in answers), 1
        ),
        "prefill_tokens_per_second": round(
            sum(answer.num_prompt for answer in answers) / sum(answer.first for answer in answers), 1
        ),
        "first_token_seconds": round(statistics.median(answer.first for answer in answers), 4),
        "num_answers": len(answers),
        "mean_tokens": round(statistics.mean(answer.num_generated for answer in answers), 1),
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


def time_answer(evaluated: Evaluated, question: str) -> Answer:
    """Answer a question greedily at high effort with the naive, KV-cached `generate`."""
    from ossia.model.generate import GenerationOptions, generate

    tokenizer = evaluated.tokenizer
    ids = render_prompt(evaluated, question, effort=Effort.HIGH)
    stops = (tokenizer.return_, tokenizer.call, tokenizer.endoftext)
    options = GenerationOptions(temperature=0.0, max_tokens=512, stop_ids=stops)
    begin = time.perf_counter()
    tokens = generate(evaluated.model, ids, options=options)
    next(tokens)
    first = time.perf_counter()
    num_generated = 1 + sum(1 for _ in tokens)
    return Answer(
        num_prompt=len(ids), num_generated=num_generated, first=first - begin, rest=time.perf_counter() - first
    )


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    environment = record["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    rows = [
        ["generation, batch 1", f"{record['tokens_per_second']:,} tokens/s"],
        ["prefill", f"{record['prefill_tokens_per_second']:,} tokens/s"],
        ["first token, model loaded", f"{record['first_token_seconds']} s"],
        ["loading the model, torch imported", f"{record['load_seconds']} s"],
        ["`ossia chat`, from process start to the first token", f"{record['chat_first_token_seconds']} s"],
        ["`ossia chat`, from process start to the end of the answer", f"{record['chat_whole_answer_seconds']} s"],
    ]
    return "\n".join(
        [
            f"# Speed of {record['model']} on the CPU",
            "",
            f"{record['num_answers']} answers at high effort, {record['mean_tokens']} tokens each on average, one at a",
            f"time. Times of `ossia chat` are medians of {STARTS} fresh processes at medium effort; importing torch is",
            "counted in.",
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
