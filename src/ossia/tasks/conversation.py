"""Problems and solutions as harmony messages, laid out as the agent lays out conversations with tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from ossia.core.errors import InvalidInputError
from ossia.harmony.builtin_tools import BROWSER, PYTHON
from ossia.harmony.content import Channel, SystemContent, ToolNamespace
from ossia.harmony.message import Conversation, Message, Role
from ossia.tasks.base import Problem, Solution

BUILTIN_TOOLS: Mapping[str, ToolNamespace] = MappingProxyType({"python": PYTHON, "browser": BROWSER})


def problem_messages(problem: Problem, *, system: SystemContent) -> tuple[Message, ...]:
    """All that stands before the assistant's turn.

    Args:
        problem: its built-in tools are added to the system message.
        system: identity, effort and date.

    Raises:
        InvalidInputError: the problem names a built-in tool that there is not.
    """
    if unknown := [name for name in problem.builtin_tools if name not in BUILTIN_TOOLS]:
        raise InvalidInputError(
            f"the problem needs the built-in tools {', '.join(unknown)}; there are {', '.join(BUILTIN_TOOLS)}",
            param="builtin_tools",
        )
    system = dataclasses.replace(system, tools=tuple(BUILTIN_TOOLS[name] for name in problem.builtin_tools))
    messages = [Message(Role.SYSTEM, content=system)]
    if problem.developer is not None:
        messages.append(Message(Role.DEVELOPER, content=problem.developer))
    return (*messages, *problem.history, Message(Role.USER, content=problem.prompt))


def solution_messages(solution: Solution) -> tuple[Message, ...]:
    """The assistant's turn, with the results of its tools. Pieces of the final message stay apart."""
    messages: list[Message] = []
    for call in solution.calls:
        if call.analysis:
            messages.append(Message(Role.ASSISTANT, content=call.analysis, channel=Channel.ANALYSIS))
        messages.append(
            Message(
                Role.ASSISTANT,
                content=call.content,
                channel=call.channel,
                recipient=call.recipient,
                content_type=call.content_type,
            )
        )
        if call.result is not None:
            messages.append(
                Message(
                    Role.TOOL, content=call.result, name=call.recipient, recipient="assistant", channel=call.channel
                )
            )
    if solution.analysis:
        messages.append(Message(Role.ASSISTANT, content=solution.analysis, channel=Channel.ANALYSIS))
    if solution.final:
        messages.append(Message(Role.ASSISTANT, content=solution.final, channel=Channel.FINAL))
    return tuple(messages)


def worked_conversation(problem: Problem, solution: Solution, *, system: SystemContent) -> Conversation:
    """A problem with its solution."""
    return Conversation((*problem_messages(problem, system=system), *solution_messages(solution)))
