"""Questions, what came of them, and the counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from ossia.evals.results import Cell, Failure, PartCount
from ossia.harmony.message import Channel, Effort
from ossia.harmony.parse import parse
from ossia.harmony.tokenizer import Tokenizer
from ossia.tasks.base import Answer, CallMade, Problem, Task
from ossia.tasks.json_values import INVALID, read_json

KEPT_FAILURES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One problem at one effort; as token ids if it is asked without tools."""

    task: Task
    effort: Effort
    problem: Problem
    prompt_ids: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a question.

    Attributes:
        answer: as the grader saw it.
        completion: all that was generated, control tokens included, and between turns what the tools said.
        num_tokens: generated ones.
        repairs: kinds of the repairs that the parser made.
        is_capped: the token budget was spent, or the turns.
    """

    question: Question
    answer: Answer
    completion: str
    num_tokens: int
    repairs: tuple[str, ...]
    is_correct: bool
    is_capped: bool


def judge(question: Question, completion_ids: Sequence[int], *, tokenizer: Tokenizer, max_tokens: int) -> Outcome:
    """Parse a completion and grade it; a message that calls a tool counts as that, and ends the answer."""
    parsed = parse(completion_ids, tokenizer=tokenizer, role="assistant")
    finals = [message.text for message in parsed.messages if message.channel == Channel.FINAL and not message.is_call]
    calls = tuple(CallMade(message.recipient or "", message.text) for message in parsed.messages if message.is_call)
    answer = Answer(final=finals[-1] if finals else None, calls=calls)
    stops = (tokenizer.return_, tokenizer.call, tokenizer.endoftext)
    return Outcome(
        question=question,
        answer=answer,
        completion=tokenizer.decode(list(completion_ids)),
        num_tokens=len(completion_ids),
        repairs=tuple(repair.kind for repair in parsed.repairs),
        is_correct=(bool(finals) or bool(calls)) and question.task.grade(question.problem, answer),
        is_capped=len(completion_ids) >= max_tokens and completion_ids[-1] not in stops,
    )


def is_valid(problem: Problem, answer: Answer) -> bool | None:
    """Whether a final message follows the problem's response format; None without one, or without jsonschema."""
    formats = problem.developer.response_formats if problem.developer is not None else ()
    if not formats or find_spec("jsonschema") is None:
        return None
    import jsonschema

    value = read_json(answer.final)
    return value is not INVALID and jsonschema.Draft202012Validator(json.loads(formats[0].schema_json)).is_valid(value)


def summarize(outcomes: Sequence[Outcome]) -> tuple[Cell, ...]:
    """Count the outcomes, one cell a task and effort, in the order in which they were asked."""
    groups: dict[tuple[str, Effort], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.question.task.name, outcome.question.effort), []).append(outcome)
    return tuple(_count(task, effort, group) for (task, effort), group in groups.items())


def _count(task: str, effort: Effort, group: Sequence[Outcome]) -> Cell:
    valid = [found for outcome in group if (found := is_valid(outcome.question.problem, outcome.answer)) is not None]
    return Cell(
        task=task,
        effort=effort,
        num_problems=len(group),
        num_correct=sum(outcome.is_correct for outcome in group),
        num_clean=sum(not outcome.repairs and not outcome.is_capped for outcome in group),
        num_capped=sum(outcome.is_capped for outcome in group),
        mean_tokens=sum(outcome.num_tokens for outcome in group) / len(group),
        failures=tuple(map(_failure, [outcome for outcome in group if not outcome.is_correct][:KEPT_FAILURES])),
        parts=_count_parts(group),
        num_valid=sum(valid) if valid else None,
    )


def _count_parts(group: Sequence[Outcome]) -> tuple[PartCount, ...]:
    parts: dict[str, list[bool]] = {}
    for outcome in group:
        for part in filter(None, outcome.question.problem.part.split("; ")):
            parts.setdefault(part, []).append(outcome.is_correct)
    # "9 digits" before "10 digits"
    names = sorted(parts, key=lambda name: (len(name.split(" ")[0]) if name[0].isdigit() else 0, name))
    return tuple(PartCount(name=name, num_problems=len(parts[name]), num_correct=sum(parts[name])) for name in names)


def _failure(outcome: Outcome) -> Failure:
    return Failure(
        prompt=outcome.question.problem.prompt,
        expected=outcome.question.problem.answer,
        final=outcome.answer.final,
        completion=outcome.completion,
        repairs=outcome.repairs,
        is_capped=outcome.is_capped,
    )
