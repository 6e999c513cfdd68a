"""Fifty ordinary questions that no task generates: does the model answer or decline, and does it ever babble?

The answers are graded by pattern where one is possible, and written into a page for a person to read and grade.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ossia.core.errors import InvalidInputError
from ossia.core.files import write_text
from ossia.core.paths import PACKAGE_ROOT
from ossia.evals.environment import describe
from ossia.evals.outcome import Outcome, Question
from ossia.evals.report import markdown_table
from ossia.evals.run import Evaluated, ask, render_prompt
from ossia.harmony.message import Effort
from ossia.tasks.base import Answer, Problem, Solution

FORMAT = 1
MAX_WORDS = 120
"""Nothing that these questions ask for takes nano more."""
LOOP_LENGTH, LOOP_TIMES = 3, 4
"""So many words in a row, so many times: a loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrdinaryQuestion:
    """A question, what is expected (talk, answer, decline, refuse), and the pattern of a good reply."""

    question: str
    kind: str
    accept: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OrdinaryAnswer:
    """A reply with its grades.

    Attributes:
        ends_itself: the model stopped by itself, with a final message.
        loops: it says the same again and again.
        fits: the pattern of a good reply is in it.
    """

    question: str
    kind: str
    effort: str
    final: str | None
    num_tokens: int
    ends_itself: bool
    loops: bool
    fits: bool

    @property
    def is_good(self) -> bool:
        """No babble, and the right kind of reply as far as a pattern can tell."""
        return self.ends_itself and not self.loops and self.fits


class _Ordinary:
    """The questions as a task, so that they are asked as all others are."""

    name = "ordinary"

    def problem(self, rng: object, *, held_out: bool) -> Problem:
        raise InvalidInputError("the ordinary questions are a list; they are not drawn", param="suite")

    def solve(self, problem: Problem, *, effort: Effort, rng: object) -> Solution:
        raise InvalidInputError("the ordinary questions have no reference solutions", param="suite")

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return re.search(problem.facts["accept"], answer.final or "", re.IGNORECASE | re.DOTALL) is not None


def load_ordinary() -> tuple[OrdinaryQuestion, ...]:
    """Read the packaged questions."""
    raw = json.loads((PACKAGE_ROOT / "evals" / "data" / "ordinary.json").read_text(encoding="utf-8"))
    return tuple(OrdinaryQuestion(**item) for item in raw)


def has_loop(text: str) -> bool:
    """Whether a text repeats itself: the same few words many times, or one character in a long run."""
    words = text.lower().split()
    counts = Counter(tuple(words[i : i + LOOP_LENGTH]) for i in range(len(words) - LOOP_LENGTH + 1))
    return (bool(counts) and max(counts.values()) >= LOOP_TIMES) or re.search(r"(.)\1{19}", text, re.DOTALL) is not None


def ask_ordinary(
    evaluated: Evaluated,
    *,
    effort: Effort = Effort.MEDIUM,
    batch_size: int = 50,
    max_tokens: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> list[OrdinaryAnswer]:
    """Ask all the questions greedily, each in a conversation of its own."""
    loaded, task = evaluated.loaded, _Ordinary()
    asked = load_ordinary()
    questions = [
        Question(
            task=task,
            effort=effort,
            problem=Problem(task=task.name, prompt=one.question, answer=one.kind, facts={"accept": one.accept}),
            prompt_ids=render_prompt(loaded, one.question, effort=effort),
        )
        for one in asked
    ]
    outcomes = ask(loaded, questions, batch_size=batch_size, max_tokens=max_tokens, progress=progress)
    return [grade(one, outcome) for one, outcome in zip(asked, outcomes, strict=True)]


def grade(asked: OrdinaryQuestion, outcome: Outcome) -> OrdinaryAnswer:
    """Grade one reply by its ending, its loops and its pattern."""
    final = outcome.answer.final
    return OrdinaryAnswer(
        question=asked.question,
        kind=asked.kind,
        effort=outcome.question.effort.value,
        final=final,
        num_tokens=outcome.num_tokens,
        ends_itself=final is not None and not outcome.is_capped and len(final.split()) <= MAX_WORDS,
        loops=has_loop(outcome.completion),
        fits=outcome.is_correct,
    )


def to_record(evaluated: Evaluated, answers: Sequence[OrdinaryAnswer]) -> dict[str, Any]:
    """The replies as JSON types."""
    return {
        "format": FORMAT,
        "suite": "ordinary",
        "model": evaluated.loaded.name,
        "weights_sha256": evaluated.weights_sha256,
        "environment": describe(device=str(evaluated.loaded.model.embed_tokens.weight.device)),
        "num_good": sum(answer.is_good for answer in answers),
        "answers": [asdict(answer) | {"is_good": answer.is_good} for answer in answers],
    }


def render_ordinary(model: str, answers: Sequence[OrdinaryAnswer], *, command: str) -> str:
    """The replies as a Markdown page, with an empty column for a reader's grade."""
    num_good = sum(answer.is_good for answer in answers)
    babble = sum(not answer.ends_itself or answer.loops for answer in answers)
    rows = [
        [
            str(number),
            answer.question,
            (answer.final or "(no final message)").replace("\n", " "),
            answer.kind,
            "yes" if answer.ends_itself else "**no**",
            "**yes**" if answer.loops else "no",
            "yes" if answer.fits else "**no**",
            "",
        ]
        for number, answer in enumerate(answers, start=1)
    ]
    header = ["", "question", "reply", "expected", "ends itself", "loops", "fits", "reader's grade"]
    return (
        "\n\n".join(
            (
                f"# {len(answers)} ordinary questions to {model}",
                f"By pattern {num_good} of {len(answers)} replies are good; {babble} babble (do not end by themselves, "
                "or loop). A pattern cannot tell a fitting reply from one that only looks so: a reader grades the last "
                "column (good, passable, bad).",
                markdown_table(header, rows),
                f"Effort {answers[0].effort if answers else ''}, greedy. Command: `{command}`",
            )
        )
        + "\n"
    )


def write_ordinary(
    evaluated: Evaluated, answers: Sequence[OrdinaryAnswer], folder: Path, *, name: str, command: str
) -> list[Path]:
    """Write `<name>.json` and `<name>.md`; return them.

    Raises:
        StorageError: the folder cannot be written to.
    """
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    record = {"command": command, **to_record(evaluated, answers)}
    write_text(paths[0], json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_text(paths[1], render_ordinary(evaluated.loaded.name, answers, command=command))
    return paths
