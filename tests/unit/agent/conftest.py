"""A loop over a model that follows a script, with real harmony ids, and tools to give it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import pytest

from ossia.agent.events import AgentEvent, RunEnded
from ossia.agent.loop import AgentLoop, collect
from ossia.agent.opening import open_conversation
from ossia.agent.turns import ServedModel, Turns
from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.scripted import ScriptedEngine
from ossia.harmony.content import FunctionTool, ToolNamespace
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.harmony.message import Conversation, Message, Role
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity
from ossia.tools.base import Tool, ToolContext, ToolProgress, ToolResult, reply
from ossia.tools.functions import FunctionsTool
from ossia.tools.registry import ToolSet

HANG = 20.0
IDENTITY = Identity(model_identity="You are a test.", knowledge_cutoff="2024-06")


def final(text: str) -> str:
    return f"<|channel|>final<|message|>{text}<|return|>"


def think(text: str) -> str:
    return f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant"


def call(recipient: str, arguments: str) -> str:
    return f"<|channel|>commentary to={recipient} <|constrain|>json<|message|>{arguments}<|call|>"


def calls(*pairs: tuple[str, str]) -> str:
    return "<|start|>assistant".join(call(*pair) for pair in pairs)


class FakeTool:
    """A tool of one function, `fake.do`, that does what a test tells it to.

    Attributes:
        running: calls in progress.
        closed: whether `close` was called.
    """

    name = "fake"
    is_builtin = False

    def __init__(self, do: Callable[[Message, ToolContext], Awaitable[ToolResult]]) -> None:
        self._do = do
        self.running = 0
        self.most_running = 0
        self.closed = False

    def declaration(self) -> ToolNamespace:
        return ToolNamespace("fake", tools=(FunctionTool("do", description="Does.", parameters={"type": "object"}),))

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._do(message, context)
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.closed = True


def answer_with(text: str) -> Callable[[Message, ToolContext], Awaitable[ToolResult]]:
    async def do(message: Message, context: ToolContext) -> ToolResult:
        if context.report is not None:
            context.report(ToolProgress(tool="fake", text=f"working on {message.text}"))
        await asyncio.sleep(0)
        return ToolResult(messages=(reply(message, text),))

    return do


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Stage:
    """A scripted model and tools.

    Attributes:
        engine: what it was asked is in `requests`.
        prompts: as text.
    """

    def __init__(
        self, tokenizer: Tokenizer, says: Iterable[str | Callable[[str], str]], *, tools: Sequence[Tool], **engine: Any
    ) -> None:
        lines = iter(says)
        self.prompts: list[str] = []

        def script(prompt: str) -> str:
            self.prompts.append(prompt)
            line = next(lines)
            return line(prompt) if callable(line) else line

        self.engine = ScriptedEngine(tokenizer, script=script, **engine)
        self.model = ServedModel(
            name="scripted",
            tokenizer=tokenizer,
            identity=IDENTITY,
            context_length=self.engine.context_length,
        )
        self.tools = ToolSet(tools)

    def loop(self, **options: Any) -> AgentLoop:
        return AgentLoop(Turns(self.engine, model=self.model), tools=self.tools, **options)

    def conversation(self, question: str = "What is 2 + 3?", *, after: Conversation | None = None) -> Conversation:
        first = open_conversation(IDENTITY, tools=self.tools) if after is None else after.messages
        return Conversation((*first, Message(Role.USER, content=question)))

    def run(self, conversation: Conversation | None = None, **options: Any) -> tuple[list[AgentEvent], RunEnded]:
        """All events of a run, in an event loop that must have nothing left to do."""

        async def work() -> tuple[list[AgentEvent], RunEnded]:
            result = await collect(self.loop(**options).run(conversation or self.conversation()))
            assert_nothing_left(self)
            return result

        return asyncio.run(asyncio.wait_for(work(), HANG))


def assert_nothing_left(stage: Stage) -> None:
    """No task but the test's own (`work` or `main`, and `wait_for` around it), and no request at the engine."""
    names = [getattr(task.get_coro(), "__name__", "") for task in asyncio.all_tasks()]
    assert [name for name in names if name not in ("work", "main", "wait_for")] == []
    assert stage.engine.open == set()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(PACKAGE_ROOT / "nano")


MakeStage = Callable[..., Stage]


@pytest.fixture
def make_stage(tokenizer: Tokenizer) -> MakeStage:
    """`make_stage("what it says first", "then", ..., tools=[...])`; by default the tool is `functions.add`."""

    def make(*says: str | Callable[[str], str], tools: Sequence[Tool] | None = None, **engine: Any) -> Stage:
        return Stage(tokenizer, says, tools=[FunctionsTool([add])] if tools is None else tools, **engine)

    return make
