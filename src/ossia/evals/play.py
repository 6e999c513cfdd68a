"""Problems with tools, played end to end: the agent's loop, the real python tool, and made-up functions that answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from ossia.agent.events import RunEnded, StopReason
from ossia.agent.loop import AgentLoop, Limits
from ossia.agent.problem import make_tools, opening_of, play_through, read_answer, rules_of
from ossia.agent.turns import EngineClient, Sampling, ServedModel, Turns
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.llm import LLM
from ossia.engine.turn import Turn
from ossia.evals.outcome import Outcome, Question
from ossia.harmony.message import Conversation
from ossia.harmony.render import render_text
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import LoadedModel
from ossia.tasks.base import Problem
from ossia.tools.registry import ToolSet

DATE = "2026-01-01"
"""The date in the prompts: a fixed one, so that results can be repeated."""
MAX_TURNS = 6
MAX_KERNELS = 4
"""Python kernels at once: each is a process."""
_CUT = (StopReason.MAX_TOKENS, StopReason.MAX_TURNS, StopReason.MAX_CALLS)


def needs_tools(problem: Problem) -> bool:
    """Whether tools run while a problem is answered, or functions are declared whose calls end the turn."""
    return bool(problem.builtin_tools) or (problem.developer is not None and bool(problem.developer.tools))


def play(
    llm: LLM,
    questions: Sequence[Question],
    *,
    num_at_once: int,
    max_tokens: int,
    grammar: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Answer questions greedily through the agent's loop.

    Args:
        llm: the model with its engine, which is closed afterwards.
        questions: those that need tools.
        num_at_once: conversations at once; those with python are at most MAX_KERNELS.
        max_tokens: the token budget of an answer, all turns together.
        grammar: hold turns to their rules.
        progress: called with the number of finished and of all answers.

    Raises:
        SandboxError: a question needs python, and no sandbox works here.
    """
    return asyncio.run(
        _play_all(llm, questions, num_at_once=num_at_once, max_tokens=max_tokens, grammar=grammar, progress=progress)
    )


async def _play_all(
    llm: LLM,
    questions: Sequence[Question],
    *,
    num_at_once: int,
    max_tokens: int,
    grammar: bool,
    progress: Callable[[int, int], None] | None,
) -> list[Outcome]:
    engine = AsyncEngine(llm.engine)
    room, kernels = asyncio.Semaphore(num_at_once), asyncio.Semaphore(MAX_KERNELS)
    num_done = 0

    async def run(question: Question) -> Outcome:
        nonlocal num_done
        async with kernels if question.problem.builtin_tools else contextlib.nullcontext(), room:
            outcome = await play_one(question, loaded=llm.loaded, engine=engine, max_tokens=max_tokens, grammar=grammar)
        num_done += 1
        if progress is not None:
            progress(num_done, len(questions))
        return outcome

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(question)) for question in questions]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await engine.shutdown()
    return [task.result() for task in tasks]


async def play_one(
    question: Question, *, loaded: LoadedModel, engine: EngineClient, max_tokens: int, grammar: bool = True
) -> Outcome:
    """Answer one question through the agent's loop over any engine; see `play`."""
    problem, served = question.problem, ServedModel.of(loaded)
    async with ToolSet(make_tools(problem)) as tools:
        loop = AgentLoop(
            Turns(engine, model=served),
            tools=tools,
            rules=rules_of(problem, tools),
            sampling=Sampling(temperature=0.0),
            limits=Limits(max_turns=MAX_TURNS, max_tokens=max_tokens),
            is_constrained=grammar,
        )
        opening = opening_of(problem, identity=loaded.identity, effort=question.effort, date=DATE, tools=tools)
        turns, end = await play_through(loop, opening)
    return _judge(question, end, turns, opening=opening, tokenizer=loaded.tokenizer)


def _judge(
    question: Question, end: RunEnded, turns: Sequence[Turn], *, opening: Conversation, tokenizer: Tokenizer
) -> Outcome:
    answer = read_answer(end.conversation, num_opening=len(opening))
    whole = render_text(end.conversation, tokenizer=tokenizer, next_role=None, drop_analysis=False)
    before = render_text(opening, tokenizer=tokenizer, next_role=None, drop_analysis=False)
    is_capped = end.reason in _CUT
    return Outcome(
        question=question,
        answer=answer,
        completion=whole[len(before) :],
        num_tokens=end.usage.num_output,
        repairs=tuple(repair.kind for turn in turns for repair in turn.repairs),
        is_correct=not is_capped and question.task.grade(question.problem, answer),
        is_capped=is_capped,
    )
