"""Evaluation: ask held-out problems at every effort, generate greedily, parse, grade, count.

    draw_problems -> requests (rendered prompts) -> generate_batch -> judge (parse, grade) -> summarize -> EvalResults

All efforts of a task get the same problems, so their accuracies may be compared problem by problem.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossia.core.errors import InvalidInputError
from ossia.evals.environment import describe
from ossia.evals.results import Cell, EvalResults, Failure
from ossia.harmony.message import Channel, Conversation, Effort, Message, Role, SystemContent
from ossia.harmony.parse import parse
from ossia.harmony.render import render
from ossia.harmony.tokenizer import Tokenizer
from ossia.tasks.base import Problem, Task
from ossia.tasks.registry import TASKS

if TYPE_CHECKING:
    from ossia.model.transformer import Transformer

NUM_PROBLEMS = 500
MAX_TOKENS = 512
BATCH_SIZE = 128
KEPT_FAILURES = 3
DATE = "2026-01-01"
"""The date in the prompts: a fixed one, so that results can be repeated."""
UNPACK_BELOW = 250_000_000
"""Parameters: a model with fewer has its experts unpacked from MXFP4, which is exact and faster to multiply with."""
MAX_REPEATS = 200
"""A task that draws known problems so often in a row has no more to give."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What is evaluated.

    Attributes:
        name: how the results call it.
        model: the weights, on the device and in the dtype to evaluate with.
        tokenizer: the one that goes with them.
        model_identity: the first line of its system message; None for the published models' own.
        knowledge_cutoff: likewise the second line; it is left out when None.
        weights_sha256: see `hash_weights`; empty for a model that is not on disk.
    """

    name: str
    model: Transformer
    tokenizer: Tokenizer
    model_identity: str | None = None
    knowledge_cutoff: str | None = None
    weights_sha256: str = ""

    def system(self, effort: Effort) -> SystemContent:
        """The system message that asks for this effort."""
        if self.model_identity is None:
            return SystemContent(effort=effort, date=DATE)
        return SystemContent(
            model_identity=self.model_identity, knowledge_cutoff=self.knowledge_cutoff, effort=effort, date=DATE
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One problem at one effort, as token ids."""

    task: Task
    effort: Effort
    problem: Problem
    prompt_ids: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a request."""

    request: Request
    completion_ids: list[int]
    final: str | None
    repairs: tuple[str, ...]
    is_correct: bool
    is_capped: bool


def load_evaluated(name_or_path: str, *, device: str = "cpu", dtype: str = "auto") -> Evaluated:
    """Load a model and its tokenizer for `run_eval`.

    Args:
        name_or_path: "nano", a hub id that was pulled, or a model folder.
        device: "cpu", "cuda" or "cuda:1".
        dtype: of the activations and the dense weights: "float32", "bfloat16", or "auto" (float32 on the CPU, where
            bfloat16 matrix products are slow on many processors, and bfloat16 elsewhere).

    Raises:
        ModelNotFoundError, CheckpointError: as `ossia.model.checkpoint.load` says.
    """
    import torch

    from ossia.harmony.hf_tokenizer import load_tokenizer
    from ossia.model.checkpoint import load_model, read_config, resolve_model
    from ossia.model.config import num_parameters

    folder = resolve_model(name_or_path)
    dtypes = {
        "auto": torch.float32 if device == "cpu" else torch.bfloat16,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }
    if dtype not in dtypes:
        raise InvalidInputError(f"dtype {dtype!r} is not one of {', '.join(dtypes)}", param="dtype")
    is_small = num_parameters(read_config(folder)) < UNPACK_BELOW
    own = read_identity(folder)
    return Evaluated(
        name=name_or_path,
        model=load_model(folder, device=device, dtype=dtypes[dtype], packed_experts=False if is_small else None),
        tokenizer=load_tokenizer(folder),
        model_identity=own.get("model_identity"),
        knowledge_cutoff=own.get("knowledge_cutoff"),
        weights_sha256=hash_weights(folder),
    )


def read_identity(folder: Path) -> Mapping[str, Any]:
    """What the folder's config.json says under `ossia`: model_identity and knowledge_cutoff; empty without it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = config.get("ossia")
    return own if isinstance(own, dict) else {}


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
        progress: called with the number of finished and of all answers after each batch.

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
    requests = [
        Request(
            task=task,
            effort=effort,
            problem=problem,
            prompt_ids=render_prompt(evaluated, problem.prompt, effort=effort),
        )
        for effort in efforts
        for name, task in tasks.items()
        for problem in problems[name]
    ]
    start = time.perf_counter()
    outcomes: list[Outcome] = []
    for batch in chunked(requests, batch_size):
        outcomes += answer_batch(evaluated, batch, max_tokens=max_tokens)
        if progress is not None:
            progress(len(outcomes), len(requests))
    weight = evaluated.model.embed_tokens.weight
    return EvalResults(
        model=evaluated.name,
        weights_sha256=evaluated.weights_sha256,
        seed=seed,
        max_tokens=max_tokens,
        dtype=str(weight.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - start,
        environment=describe(device=str(weight.device)),
        cells=summarize(outcomes, tokenizer=evaluated.tokenizer),
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


def render_prompt(evaluated: Evaluated, text: str, *, effort: Effort) -> list[int]:
    """The harmony prompt of one user message."""
    messages = (
        Message(role=Role.SYSTEM, content=evaluated.system(effort)),
        Message(role=Role.USER, content=text),
    )
    return render(Conversation(messages=messages), tokenizer=evaluated.tokenizer, next_role="assistant")


def chunked(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Cut into batches. Requests come sorted by effort and task, so that the answers of a batch are alike in length."""
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def answer_batch(evaluated: Evaluated, requests: Sequence[Request], *, max_tokens: int) -> list[Outcome]:
    """Generate and judge the answers to some requests."""
    from ossia.evals.batched import generate_batch

    tokenizer = evaluated.tokenizer
    completions = generate_batch(
        evaluated.model,
        [request.prompt_ids for request in requests],
        max_tokens=max_tokens,
        stop_ids=(tokenizer.return_, tokenizer.call, tokenizer.endoftext),
    )
    return [
        judge(request, ids, tokenizer=tokenizer, max_tokens=max_tokens)
        for request, ids in zip(requests, completions, strict=True)
    ]


def judge(request: Request, completion_ids: list[int], *, tokenizer: Tokenizer, max_tokens: int) -> Outcome:
    """Parse a completion and grade its final message; without one the answer is wrong."""
    parsed = parse(completion_ids, tokenizer=tokenizer, role="assistant")
    final = next((message.text for message in reversed(parsed.messages) if message.channel == Channel.FINAL), None)
    stops = (tokenizer.return_, tokenizer.call, tokenizer.endoftext)
    return Outcome(
        request=request,
        completion_ids=completion_ids,
        final=final,
        repairs=tuple(repair.kind for repair in parsed.repairs),
        is_correct=final is not None and request.task.grade(request.problem, final),
        is_capped=len(completion_ids) >= max_tokens and completion_ids[-1] not in stops,
    )


def summarize(outcomes: Sequence[Outcome], *, tokenizer: Tokenizer) -> tuple[Cell, ...]:
    """Count the outcomes, one cell a task and effort, in the order in which they were asked."""
    groups: dict[tuple[str, Effort], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.request.task.name, outcome.request.effort), []).append(outcome)
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
                    prompt=outcome.request.problem.prompt,
                    expected=outcome.request.problem.answer,
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
