"""Evaluation: ask held-out problems at every effort, generate greedily, parse, grade, count.

    draw_problems -> requests (rendered prompts) -> the engine -> judge (parse, grade) -> summarize -> EvalResults

All efforts of a task get the same problems, so their accuracies may be compared problem by problem.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ossia.core.errors import InvalidInputError
from ossia.engine.build import EngineConfig
from ossia.engine.llm import LLM
from ossia.engine.request import SamplingParams
from ossia.evals.environment import describe
from ossia.evals.results import Cell, EvalResults, Failure
from ossia.harmony.message import Channel, Conversation, Effort, Message, Role
from ossia.harmony.parse import parse
from ossia.harmony.render import render
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint.resolve import resolve_model
from ossia.model.loading import LoadedModel, load
from ossia.tasks.base import Answer, Problem, Task
from ossia.tasks.registry import TASKS

NUM_PROBLEMS = 500
MAX_TOKENS = 512
BATCH_SIZE = 128
KEPT_FAILURES = 3
DATE = "2026-01-01"
"""The date in the prompts: a fixed one, so that results can be repeated."""
MAX_REPEATS = 200
"""A task that draws known problems so often in a row has no more to give."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What is evaluated.

    Attributes:
        loaded: the model with its tokenizer and identity, on the device and in the dtype to evaluate with.
        weights_sha256: see `hash_weights`; empty for a model that is not on disk.
    """

    loaded: LoadedModel
    weights_sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One problem at one effort, as token ids."""

    task: Task
    effort: Effort
    problem: Problem
    prompt_ids: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a question."""

    question: Question
    completion_ids: tuple[int, ...]
    final: str | None
    repairs: tuple[str, ...]
    is_correct: bool
    is_capped: bool


def load_evaluated(name_or_path: str, *, device: str = "cpu") -> Evaluated:
    """Load a model for `run_eval`.

    Args:
        name_or_path: "nano", a hub id that was pulled, or a model folder.
        device: "cpu", "cuda", "cuda:1" or "auto".

    Raises:
        ModelNotFoundError, CheckpointError, InvalidInputError: as `ossia.model.loading.load`.
    """
    return Evaluated(loaded=load(name_or_path, device=device), weights_sha256=hash_weights(resolve_model(name_or_path)))


def hash_weights(folder: Path) -> str:
    """SHA-256 over the folder's safetensors files in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def run_eval(
    evaluated: Evaluated,
    *,
    tasks: Mapping[str, Task] = TASKS,
    efforts: Sequence[Effort] = tuple(Effort),
    num_problems: int = NUM_PROBLEMS,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResults:
    """Measure a model on held-out problems of the given tasks at the given efforts.

    Args:
        evaluated: from `load_evaluated`, or put together by hand during training.
        tasks: what to ask, by name.
        efforts: with which reasoning efforts.
        num_problems: distinct problems a task; a task that has fewer gives what it has.
        seed: seeds the drawing of problems.
        batch_size: how many answers are generated at once.
        max_tokens: the token budget of one answer.
        progress: called with the number of finished and of all answers.

    Raises:
        InvalidInputError: a number is not positive, or there is no task or effort.
        ContextLengthError: a prompt and `max_tokens` do not fit the model's context.
    """
    for name, value in (("num_problems", num_problems), ("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value < 1:
            raise InvalidInputError(f"{name} is {value}; it must be at least 1", param=name)
    if not tasks or not efforts:
        raise InvalidInputError("there is nothing to evaluate; name at least one task and one effort", param="tasks")
    problems = {name: draw_problems(task, num_problems=num_problems, seed=seed) for name, task in tasks.items()}
    loaded = evaluated.loaded
    questions = [
        Question(
            task=task, effort=effort, problem=problem, prompt_ids=render_prompt(loaded, problem.prompt, effort=effort)
        )
        for effort in efforts
        for name, task in tasks.items()
        for problem in problems[name]
    ]
    start = time.perf_counter()
    completions = answer(loaded, questions, batch_size=batch_size, max_tokens=max_tokens, progress=progress)
    outcomes = [
        judge(question, ids, tokenizer=loaded.tokenizer, max_tokens=max_tokens)
        for question, ids in zip(questions, completions, strict=True)
    ]
    weight = loaded.model.embed_tokens.weight
    return EvalResults(
        model=loaded.name,
        weights_sha256=evaluated.weights_sha256,
        seed=seed,
        max_tokens=max_tokens,
        dtype=str(weight.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - start,
        environment=describe(device=str(weight.device)),
        cells=summarize(outcomes, tokenizer=loaded.tokenizer),
    )


def draw_problems(task: Task, *, num_problems: int, seed: int) -> list[Problem]:
    """Draw distinct held-out problems, the same ones whatever other tasks are asked."""
    rng = random.Random(f"{task.name} {seed}")
    problems: dict[str, Problem] = {}
    repeats = 0
    while len(problems) < num_problems and repeats < MAX_REPEATS:
        problem = task.problem(rng, held_out=True)
        repeats = repeats + 1 if problem.prompt in problems else 0
        problems.setdefault(problem.prompt, problem)
    return list(problems.values())


def render_prompt(loaded: LoadedModel, text: str, *, effort: Effort) -> list[int]:
    """The harmony prompt of one user message."""
    opening = loaded.opening(effort=effort, date=DATE)
    conversation = Conversation((*opening, Message(role=Role.USER, content=text)))
    return render(conversation, tokenizer=loaded.tokenizer, next_role="assistant")


def answer(
    loaded: LoadedModel,
    questions: Sequence[Question],
    *,
    batch_size: int,
    max_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> list[tuple[int, ...]]:
    """The ids of a greedy answer to each question."""
    llm = LLM(loaded, config=EngineConfig(max_num_seqs=batch_size))
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    prompts = [question.prompt_ids for question in questions]
    return [done.token_ids for done in llm.generate(prompts, params, progress=progress or False)]


def judge(question: Question, completion_ids: tuple[int, ...], *, tokenizer: Tokenizer, max_tokens: int) -> Outcome:
    """Parse a completion and grade its final message; without one the answer is wrong."""
    parsed = parse(completion_ids, tokenizer=tokenizer, role="assistant")
    final = next((message.text for message in reversed(parsed.messages) if message.channel == Channel.FINAL), None)
    stops = (tokenizer.return_, tokenizer.call, tokenizer.endoftext)
    return Outcome(
        question=question,
        completion_ids=completion_ids,
        final=final,
        repairs=tuple(repair.kind for repair in parsed.repairs),
        is_correct=final is not None and question.task.grade(question.problem, Answer(final=final)),
        is_capped=len(completion_ids) >= max_tokens and completion_ids[-1] not in stops,
    )


def summarize(outcomes: Sequence[Outcome], *, tokenizer: Tokenizer) -> tuple[Cell, ...]:
    """Count the outcomes, one cell a task and effort, in the order in which they were asked."""
    groups: dict[tuple[str, Effort], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.question.task.name, outcome.question.effort), []).append(outcome)
    return tuple(
        Cell(
            task=task,
            effort=effort,
            num_problems=len(group),
            num_correct=sum(outcome.is_correct for outcome in group),
            num_clean=sum(not outcome.repairs and not outcome.is_capped for outcome in group),
            num_capped=sum(outcome.is_capped for outcome in group),
            mean_tokens=sum(len(outcome.completion_ids) for outcome in group) / len(group),
            failures=tuple(
                Failure(
                    prompt=outcome.question.problem.prompt,
                    expected=outcome.question.problem.answer,
                    final=outcome.final,
                    completion=tokenizer.decode(outcome.completion_ids),
                    repairs=outcome.repairs,
                    is_capped=outcome.is_capped,
                )
                for outcome in [outcome for outcome in group if not outcome.is_correct][:KEPT_FAILURES]
            ),
        )
        for (task, effort), group in groups.items()
    )
