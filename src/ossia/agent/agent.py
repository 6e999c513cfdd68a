"""An agent for scripts: a model, tools, and a question.

agent = Agent("nano", tools=["python", my_function])
print(agent.ask("What is 123456 * 789?").text)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Self, TypeAlias

from ossia.agent.events import AgentEvent, CallEnded, RunEnded, StopReason
from ossia.agent.loop import AgentLoop, Limits, collect
from ossia.agent.opening import open_conversation
from ossia.agent.turns import EngineClient, Sampling, ServedModel, Turns
from ossia.core.errors import InvalidInputError
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.turn import Usage
from ossia.harmony.content import Effort
from ossia.harmony.message import Channel, Conversation, Message, Role
from ossia.model.loading import LoadedModel, load
from ossia.tools.base import ApprovalHook, Source, Tool, ToolFile
from ossia.tools.functions import FunctionsTool
from ossia.tools.registry import ToolSet, make_tool

ToolLike: TypeAlias = "str | Tool | Callable[..., Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult:
    """What a run came to.

    Attributes:
        text: the answer; empty if there is none.
        reason: why the run ended.
        conversation: the whole, for `ask(..., after=result.conversation)`.
        usage: the tokens of all turns.
        calls: each call with its result, in order.
        files, sources: what the tools made and showed.
        error: what went wrong, for StopReason.ERROR.
    """

    text: str
    reason: StopReason
    conversation: Conversation
    usage: Usage
    calls: tuple[CallEnded, ...] = ()
    files: tuple[ToolFile, ...] = ()
    sources: tuple[Source, ...] = ()
    error: str | None = None


class Agent:
    """Answers questions with tools. Use it as a context manager, or call `close`: tools may hold processes.

    One conversation at a time uses the tools, for their state (a Python kernel, open pages) is one.
    """

    def __init__(
        self,
        model: str | LoadedModel = "nano",
        *,
        tools: Iterable[ToolLike] = (),
        instructions: str | None = None,
        effort: Effort | str = Effort.MEDIUM,
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        approve: ApprovalHook | None = None,
        device: str = "auto",
        config: EngineConfig | None = None,
        engine: EngineClient | None = None,
    ) -> None:
        """Load the model and make the tools.

        Args:
            model: "nano", a hub id that was pulled, a model folder, or a loaded model.
            tools: names (`python`, `browser`, plugins'), Python functions with type hints, or tools made by hand.
            instructions: what the developer wants of the model.
            effort: how long it thinks.
            sampling: how tokens are chosen; the model's defaults otherwise.
            limits: what a run may spend.
            approve: asked before each call.
            device: for a model that is to be loaded.
            config: sizes of the engine.
            engine: an engine that runs this model already; it stays open at `close`.

        Raises:
            InvalidInputError: an unknown tool, or two of one name.
            MissingExtraError: a tool needs a package that is not installed.
        """
        self._loaded = load(model, device=device) if isinstance(model, str) else model
        self._tools = gather_tools(tools)
        self._effort = Effort.parse(effort)
        self._instructions = instructions
        self._engine = engine or AsyncEngine(build_engine(self._loaded, config=config))
        self._owns_engine = engine is None
        self._loop = AgentLoop(
            Turns(self._engine, model=ServedModel.of(self._loaded)),
            tools=self._tools,
            sampling=sampling,
            limits=limits,
            approve=approve,
        )
        self._runner: asyncio.Runner | None = None

    def opening(self) -> tuple[Message, ...]:
        """The messages before the first question, with the tools declared."""
        return open_conversation(
            self._loaded.identity,
            tools=self._tools,
            effort=self._effort,
            date=date.today().isoformat(),
            instructions=self._instructions,
        )

    def stream(self, question: str, *, after: Conversation | None = None) -> AsyncGenerator[AgentEvent, None]:
        """Answer a question, telling every step. Closing the iterator stops the run.

        Args:
            question: the user's next message.
            after: a conversation to go on from; None for a new one.

        Raises:
            InvalidInputError: the question is empty.
        """
        if not question.strip():
            raise InvalidInputError("the question is empty; write something to answer", param="question")
        before = self.opening() if after is None else after.messages
        return self._loop.run(Conversation((*before, Message(Role.USER, content=question))))

    async def ask_async(self, question: str, *, after: Conversation | None = None) -> AgentResult:
        """Answer a question; see `stream`."""
        events, end = await collect(self.stream(question, after=after))
        return summarize(events, end)

    def ask(self, question: str, *, after: Conversation | None = None) -> AgentResult:
        """As `ask_async`, for scripts without an event loop. All calls run in one loop, which tools may rely on."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(self.ask_async(question, after=after))

    async def close_async(self) -> None:
        """End the tools, and the engine if it is the agent's own."""
        await self._tools.close()
        if self._owns_engine:
            await self._engine.shutdown()

    def close(self) -> None:
        """As `close_async`, behind `ask`."""
        runner, self._runner = self._runner or asyncio.Runner(), None
        with runner:
            runner.run(self.close_async())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_async()


def gather_tools(tools: Iterable[ToolLike]) -> ToolSet:
    """Make a set of names, tools and Python functions; the functions share the namespace `functions`.

    Raises:
        InvalidInputError, MissingExtraError: see `Agent`.
    """
    made: list[Tool] = []
    functions: list[Callable[..., Any]] = []
    for tool in tools:
        if isinstance(tool, str):
            made.append(make_tool(tool))
        elif isinstance(tool, Tool):
            made.append(tool)
        elif callable(tool):
            functions.append(tool)
        else:
            raise InvalidInputError(f"{tool!r} is no tool; give a name, a function or a Tool", param="tools")
    if functions:
        made.append(FunctionsTool(functions))
    return ToolSet(made)


def summarize(events: Sequence[AgentEvent], end: RunEnded) -> AgentResult:
    """The result behind a run's events."""
    calls = tuple(event for event in events if isinstance(event, CallEnded))
    last = end.conversation.messages[-1] if end.conversation.messages else None
    is_answer = last is not None and last.role is Role.ASSISTANT and last.channel == Channel.FINAL
    return AgentResult(
        text=last.text if is_answer and last is not None else "",
        reason=end.reason,
        conversation=end.conversation,
        usage=end.usage,
        calls=calls,
        files=tuple(file for call in calls for file in call.result.files),
        sources=tuple(source for call in calls for source in call.result.sources),
        error=end.error,
    )
