"""Problems with tools, played end to end: the agent's loop, the real python tool, and made-up functions that answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from ossia.agent.events import RunEnded, StopReason, TurnEnded
from ossia.agent.loop import AgentLoop, Limits, grammars_of
from ossia.agent.opening import open_conversation
from ossia.agent.turns import EngineClient, Sampling, ServedModel, Turns
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.constraint import JsonSchema, TurnConstraint
from ossia.engine.declared import declared_grammars
from ossia.engine.llm import LLM
from ossia.engine.turn import Turn
from ossia.evals.outcome import Outcome, Question
from ossia.harmony.content import ToolNamespace
from ossia.harmony.message import Channel, Conversation, Effort, Message, Role
from ossia.harmony.render import render_text
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity, LoadedModel
from ossia.tasks.base import Answer, CallMade, Problem
from ossia.tasks.functions import find_result
from ossia.tools.base import FailureKind, Tool, ToolContext, ToolResult, failure, reply
from ossia.tools.registry import ToolSet, make_tool

DATE = "2026-01-01"
"""The date in the prompts: a fixed one, so that results can be repeated."""
MAX_TURNS = 6
MAX_KERNELS = 4
"""Python kernels at once: each is a process."""
_CUT = (StopReason.MAX_TOKENS, StopReason.MAX_TURNS, StopReason.MAX_CALLS)


class RecordedFunctions:
    """The functions of a problem's developer message, which answer as the problem says.

    Another call than those that the problem expects is told so, and the model may go on.
    """

    is_builtin = False

    def __init__(self, problem: Problem, space: ToolNamespace) -> None:
        self._problem, self._space = problem, space
        self._seen: list[CallMade] = []

    @property
    def name(self) -> str:
        return self._space.name

    def declaration(self) -> ToolNamespace:
        return self._space

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        made = CallMade(message.recipient or "", message.text)
        result = find_result(self._problem, made, seen=tuple(self._seen))
        self._seen.append(made)
        if result is None:
            return failure(message, '{"error":"invalid arguments"}', kind=FailureKind.INVALID_ARGUMENTS)
        return ToolResult(messages=(reply(message, result),))

    async def close(self) -> None:
        return


def needs_tools(problem: Problem) -> bool:
    """Whether tools run while a problem is answered, or functions are declared whose calls end the turn."""
    return bool(problem.builtin_tools) or (problem.developer is not None and bool(problem.developer.tools))


def make_tools(problem: Problem) -> list[Tool]:
    """The tools that run: built-in ones, and functions that have results to give."""
    tools = [make_tool(name) for name in problem.builtin_tools]
    if problem.developer is not None and problem.facts.get("results", "[]") != "[]":
        tools += [RecordedFunctions(problem, space) for space in problem.developer.tools]
    return tools


def rules_of(problem: Problem, tools: ToolSet | None = None) -> TurnConstraint:
    """What a turn may look like: the tools that run, functions that do not, and the response format."""
    grammars = list(grammars_of(tools)) if tools is not None else []
    developer = problem.developer
    if developer is None:
        return TurnConstraint(tools=tuple(grammars))
    known = {grammar.recipient for grammar in grammars}
    grammars += [grammar for grammar in declared_grammars(developer.tools) if grammar.recipient not in known]
    if len(developer.response_formats) != 1:
        return TurnConstraint(tools=tuple(grammars))
    return TurnConstraint(tools=tuple(grammars), response_format=JsonSchema(developer.response_formats[0].schema))


def opening_of(problem: Problem, *, identity: Identity, effort: Effort, tools: ToolSet | None = None) -> Conversation:
    """All that stands before the assistant's turn."""
    system = open_conversation(identity, tools=tools or ToolSet(), effort=effort, date=DATE)[0]
    developer = () if problem.developer is None else (Message(Role.DEVELOPER, content=problem.developer),)
    return Conversation((system, *developer, *problem.history, Message(Role.USER, content=problem.prompt)))


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
        opening = opening_of(problem, identity=loaded.identity, effort=question.effort, tools=_builtin(tools))
        turns: list[Turn] = []
        end: RunEnded | None = None
        async with contextlib.aclosing(loop.run(opening)) as events:
            async for event in events:
                if isinstance(event, TurnEnded):
                    turns.append(event.turn)
                elif isinstance(event, RunEnded):
                    end = event
    assert end is not None
    return _judge(question, end, turns, opening=opening, tokenizer=loaded.tokenizer)


def _judge(
    question: Question, end: RunEnded, turns: Sequence[Turn], *, opening: Conversation, tokenizer: Tokenizer
) -> Outcome:
    said = end.conversation.messages[len(opening) :]
    last = said[-1] if said else None
    is_final = last is not None and last.channel == Channel.FINAL and not last.is_call
    answer = Answer(
        final=last.text if last is not None and is_final else None,
        calls=tuple(CallMade(message.recipient or "", message.text) for message in said if message.is_call),
    )
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


def _builtin(tools: ToolSet) -> ToolSet:
    """The tools that the system message declares; the others stand in the problem's developer message already."""
    return ToolSet(tool for tool in tools if tool.is_builtin)
