"""Evaluation: ask held-out problems at every effort, generate greedily, parse, grade, count.

    draw_problems -> ask: prompts -> the engine -> judge (parse, grade) | play: agent loop, tools -> summarize

All efforts of a task get the same problems, so their accuracies may be compared problem by problem.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ossia.agent.problem import opening_of, rules_of
from ossia.core.errors import InvalidInputError
from ossia.engine.build import EngineConfig
from ossia.engine.llm import LLM
from ossia.engine.request import SamplingParams
from ossia.evals.environment import describe
from ossia.evals.outcome import Outcome, Question, judge, summarize
from ossia.evals.play import DATE, needs_tools, play
from ossia.evals.results import EvalResults
from ossia.harmony.message import Effort
from ossia.harmony.render import render
from ossia.model.checkpoint.resolve import resolve_model
from ossia.model.loading import LoadedModel, load
from ossia.tasks.base import Problem, Task
from ossia.tasks.registry import TASKS

NUM_PROBLEMS = 500
MAX_TOKENS = 512
BATCH_SIZE = 128
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
    grammar: bool = True,
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
        max_tokens: the token budget of one answer, all its turns together.
        grammar: hold calls and structured answers to their schemas, as the server does; without, the model is free.
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
            task=task,
            effort=effort,
            problem=problem,
            prompt_ids=[] if needs_tools(problem) else render_prompt(loaded, problem, effort=effort),
        )
        for effort in efforts
        for name, task in tasks.items()
        for problem in problems[name]
    ]
    start = time.perf_counter()
    outcomes = ask(loaded, questions, batch_size=batch_size, max_tokens=max_tokens, grammar=grammar, progress=progress)
    weight = loaded.model.embed_tokens.weight
    return EvalResults(
        model=loaded.name,
        weights_sha256=evaluated.weights_sha256,
        seed=seed,
        max_tokens=max_tokens,
        dtype=str(weight.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - start,
        environment=describe(device=str(weight.device)),
        cells=summarize(outcomes),
        grammar=grammar,
    )


def ask(
    loaded: LoadedModel,
    questions: Sequence[Question],
    *,
    batch_size: int,
    max_tokens: int,
    grammar: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Ask all questions: those without tools as one batch of prompts, the others through the agent's loop."""
    plain = [question for question in questions if not needs_tools(question.problem)]
    tooled = [question for question in questions if needs_tools(question.problem)]
    num_all = len(questions)

    def count(before: int) -> Callable[[int, int], None]:
        def told(done: int, _: int) -> None:
            if progress is not None:
                progress(before + done, num_all)

        return told

    llm = LLM(loaded, config=EngineConfig(max_num_seqs=batch_size))
    completions = answer(llm, plain, max_tokens=max_tokens, grammar=grammar, progress=count(0)) if plain else []
    outcomes = {
        id(question): judge(question, ids, tokenizer=loaded.tokenizer, max_tokens=max_tokens)
        for question, ids in zip(plain, completions, strict=True)
    }
    if tooled:
        played = play(
            llm, tooled, num_at_once=batch_size, max_tokens=max_tokens, grammar=grammar, progress=count(len(plain))
        )
        outcomes |= {id(question): outcome for question, outcome in zip(tooled, played, strict=True)}
    return [outcomes[id(question)] for question in questions]


def draw_problems(task: Task, *, num_problems: int, seed: int) -> list[Problem]:
    """Draw distinct held-out problems, the same ones whatever other tasks are asked."""
    rng = random.Random(f"{task.name} {seed}")
    problems: dict[str, Problem] = {}
    repeats = 0
    while len(problems) < num_problems and repeats < MAX_REPEATS:
        problem = task.problem(rng, held_out=True)
        repeats = repeats + 1 if problem.opening in problems else 0
        problems.setdefault(problem.opening, problem)
    return list(problems.values())


def render_prompt(loaded: LoadedModel, problem: Problem | str, *, effort: Effort) -> list[int]:
    """The harmony prompt of a problem without built-in tools, or of one user message."""
    if isinstance(problem, str):
        problem = Problem(task="", prompt=problem, answer="")
    return render(opening_of(problem, identity=loaded.identity, effort=effort, date=DATE), tokenizer=loaded.tokenizer)


def answer(
    llm: LLM,
    questions: Sequence[Question],
    *,
    max_tokens: int,
    grammar: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[int, ...]]:
    """The ids of a greedy answer to each question."""
    free = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    params = [
        replace(free, constraint=rules_of(question.problem)) if grammar and question.problem.developer else free
        for question in questions
    ]
    prompts = [question.prompt_ids for question in questions]
    return [done.token_ids for done in llm.generate(prompts, params, progress=progress or False)]
