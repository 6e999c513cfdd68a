"""A task's problem as the agent plays it: what stands before the turn, which tools run, what a turn may look like.

Evaluation and reinforcement learning play problems alike.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from ossia.agent.events import RunEnded, TurnEnded
from ossia.agent.loop import AgentLoop, grammars_of
from ossia.agent.opening import open_conversation
from ossia.engine.constraint import JsonSchema, TurnConstraint
from ossia.engine.declared import declared_grammars
from ossia.engine.turn import Turn
from ossia.harmony.content import Effort, ToolNamespace
from ossia.harmony.message import Channel, Conversation, Message, Role
from ossia.model.loading import Identity
from ossia.tasks.base import Answer, CallMade, Problem
from ossia.tasks.functions import find_result
from ossia.tools.base import FailureKind, Tool, ToolContext, ToolResult, failure, reply
from ossia.tools.registry import ToolSet, make_tool


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


def opening_of(
    problem: Problem, *, identity: Identity, effort: Effort, date: str, tools: ToolSet | None = None
) -> Conversation:
    """All that stands before the assistant's turn. Of the tools, the system message declares the built-in ones."""
    builtin = ToolSet(tool for tool in tools or () if tool.is_builtin)
    system = open_conversation(identity, tools=builtin, effort=effort, date=date)[0]
    developer = () if problem.developer is None else (Message(Role.DEVELOPER, content=problem.developer),)
    return Conversation((system, *developer, *problem.history, Message(Role.USER, content=problem.prompt)))


class Played(NamedTuple):
    """A run of the loop: its turns, and how it ended."""

    turns: list[Turn]
    end: RunEnded


async def play_through(loop: AgentLoop, opening: Conversation) -> Played:
    """Run the loop to its end."""
    turns: list[Turn] = []
    end: RunEnded | None = None
    async with contextlib.aclosing(loop.run(opening)) as events:
        async for event in events:
            if isinstance(event, TurnEnded):
                turns.append(event.turn)
            elif isinstance(event, RunEnded):
                end = event
    assert end is not None
    return Played(turns, end)


def read_answer(conversation: Conversation, *, num_opening: int) -> Answer:
    """What the model did behind the opening: its calls in order, and its final message if the last one is that."""
    said = conversation.messages[num_opening:]
    calls = tuple(CallMade(message.recipient or "", message.text) for message in said if message.is_call)
    last = said[-1] if said else None
    is_final = last is not None and last.channel is Channel.FINAL and not last.is_call
    return Answer(final=last.text if is_final and last is not None else None, calls=calls)
