"""What fewer bits of attention and lm_head do to nano's answers: the same problems asked with each `--cpu-quant`.

python -m benchmarks.engine.cpu_quant_nano --limit 10     writes benchmarks/results/cpu-quant-nano.md and .json
    --json                                                prints the JSON and writes nothing

Greedy, medium effort, held-out problems of every task that needs no tools, held to their schemas as `ossia eval` holds
them. How far logits move is in benchmarks.kernels.cpu_nano.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.timing import tell

from ossia.engine.build import CPU_QUANT, EngineConfig
from ossia.engine.llm import LLM
from ossia.evals.environment import describe
from ossia.evals.outcome import Question, judge
from ossia.evals.play import needs_tools
from ossia.evals.report import markdown_table
from ossia.evals.run import answer, draw_problems, load_evaluated, render_prompt
from ossia.harmony.message import Effort
from ossia.kernels import native
from ossia.tasks.registry import TASKS

COMMAND = "python -m benchmarks.engine.cpu_quant_nano"
MAX_TOKENS = 512


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=10, help="problems a task (default 10)")
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    options = parser.parse_args()
    record = measure(options.limit)
    tell(record, render_page(record), name="cpu-quant-nano", as_json=options.json)


def measure(limit: int) -> dict[str, Any]:
    """Answers right with each form, and answers that are the default's token by token."""
    evaluated = load_evaluated("nano", device="cpu")
    loaded = evaluated.loaded
    questions = [
        Question(
            task=task,
            effort=Effort.MEDIUM,
            problem=problem,
            prompt_ids=render_prompt(loaded, problem, effort=Effort.MEDIUM),
        )
        for task in TASKS.values()
        for problem in draw_problems(task, num_problems=limit, seed=0)
        if not needs_tools(problem)
    ]
    rows: list[dict[str, Any]] = []
    plain: list[tuple[int, ...]] = []
    for quant in CPU_QUANT:
        llm = LLM(loaded, config=EngineConfig(cpu_quant=quant))
        answers = answer(llm, questions, max_tokens=MAX_TOKENS)
        outcomes = [
            judge(question, ids, tokenizer=loaded.tokenizer, max_tokens=MAX_TOKENS)
            for question, ids in zip(questions, answers, strict=True)
        ]
        plain = plain or answers
        rows.append(
            {
                "cpu_quant": quant,
                "right": sum(outcome.is_correct for outcome in outcomes),
                "same": sum(own == other for own, other in zip(answers, plain, strict=True)),
            }
        )
    return {
        "command": f"{COMMAND} --limit {limit}",
        "environment": describe(),
        "level": native.info().level,
        "weights_sha256": evaluated.weights_sha256,
        "questions": len(questions),
        "rows": rows,
    }


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    num, environment = record["questions"], record["environment"]
    rows = [
        [row["cpu_quant"], f"{row['right']} ({row['right'] / num:.1%})", f"{row['same']} ({row['same'] / num:.1%})"]
        for row in record["rows"]
    ]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    return "\n".join(
        [
            "# Fewer bits of attention and lm_head, and nano's answers",
            "",
            f"{num:,} held-out problems, greedy, medium effort, level {record['level']}.",
            "",
            markdown_table(["--cpu-quant", "answers right", "the same tokens as without"], rows),
            "",
            "## How it was measured",
            "",
            f"- Command: `{record['command']}`",
            f"- nano's weights: SHA-256 {record['weights_sha256'][:16]}",
            f"- Hardware: {environment['hardware']}; {versions}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
