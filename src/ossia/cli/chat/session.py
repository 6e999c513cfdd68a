"""A conversation with a model: what was said, and how the next question joins it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ossia.agent.events import AgentEvent
from ossia.agent.loop import AgentLoop, Limits
from ossia.agent.opening import open_conversation
from ossia.agent.turns import Sampling
from ossia.cli.backend import Backend
from ossia.cli.turn import Delta, Kind, Run, kind_of, require_text
from ossia.core.errors import InvalidInputError
from ossia.core.files import write_text
from ossia.core.paths import data_home
from ossia.harmony.message import Conversation, Effort, Message, Role, conversation_to_dict
from ossia.tools.base import ApprovalHook, Tool
from ossia.tools.registry import ToolSet

if TYPE_CHECKING:
    from ossia.tools.mcp.config import McpServer

T = TypeVar("T")

MAX_TURNS_WITHOUT_TOOLS = 4
"""A model may call what is not there; it is told so, and has some tries to answer without."""

Show = Callable[[Run, AgentEvent, list[Delta]], None]
"""Shows a step of a run: the run so far, the event, and the text in it."""


class ChatSession:
    """Keeps the history of a conversation. The model may still be loading: it is asked for with the first question.

    Use it as a context manager: its end closes the tools and the engine.

    Attributes:
        effort: reasoning effort of the next turn.
        instructions: text of the developer message, if any.
        tools: what the model may call.
    """

    def __init__(
        self,
        get_backend: Callable[[], Backend],
        *,
        effort: Effort,
        date: str,
        instructions: str | None = None,
        sampling: Sampling | None = None,
        tools: ToolSet | None = None,
        approve: ApprovalHook | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._get_backend = get_backend
        self._backend: Backend | None = None
        self._runner: asyncio.Runner | None = asyncio.Runner()
        self._history: list[Message] = []
        self._sampling = sampling
        self._approve = approve
        self.effort = effort
        self.date = date
        self.instructions = instructions
        self.tools = ToolSet() if tools is None else tools
        self._limits = limits

    @property
    def num_questions(self) -> int:
        return sum(message.role == Role.USER for message in self._history)

    def ask(self, text: str, *, show: Show) -> Run:
        """Answer a question and keep what came of it. Ctrl-C stops the answer and the tools.

        Raises:
            InvalidInputError: the question is empty.
            ContextLengthError: the conversation does not fit the context any more.
            OssiaError: the model cannot be loaded, or the engine has failed.
        """
        question = Message(role=Role.USER, content=require_text(text, what="question"))
        backend = self._need_backend()
        loop = AgentLoop(
            backend.turns,
            tools=self.tools,
            sampling=self._sampling,
            approve=self._approve,
            limits=self._limits or (Limits() if len(self.tools) else Limits(max_turns=MAX_TURNS_WITHOUT_TOOLS)),
        )
        run = Run()
        try:
            self._run(_follow(loop, self._conversation(question), run=run, show=show))
        except (KeyboardInterrupt, asyncio.CancelledError):
            run.is_stopped = True
        if run.is_worth_keeping:
            self._history += [question, *run.messages]
        return run

    def connect(self, servers: Sequence[McpServer]) -> None:
        """Connect MCP servers, whose tools join the others; they stay connected until the session ends.

        Raises:
            McpError: one cannot be reached.
            InvalidInputError: two tools of one name.
            MissingExtraError: the SDK is not installed.
        """
        for server in servers:
            tool = self._run(_connect(server))
            try:
                self.tools = ToolSet([*self.tools, tool])
            except InvalidInputError:
                self._run(tool.close())
                raise

    def clear(self) -> None:
        """Forget the conversation; effort, instructions and sampling stay."""
        self._history.clear()

    def save(self, path: Path | None, *, with_reasoning: bool) -> Path:
        """Write the conversation as JSON, or a message a line if the name ends in .jsonl; return where it is.

        The JSON form is what `ossia harmony render` takes.

        Raises:
            StorageError: it cannot be written; a file that was there is as it was.
        """
        path = path or data_home() / "chats" / f"{datetime.now():%Y-%m-%d_%H%M%S}.json"
        messages = [message for message in self._history if with_reasoning or kind_of(message) is not Kind.REASONING]
        record = conversation_to_dict(self._conversation(history=messages))
        write_text(path, to_lines(record["messages"]) if path.suffix == ".jsonl" else to_json(record))
        return path

    def close(self) -> None:
        """End the tools and the engine. A second time does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            with runner:
                runner.run(self._close())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run some work in the session's event loop, which the tools' processes belong to."""
        assert self._runner is not None, "the session is closed"
        return self._runner.run(work)

    async def _close(self) -> None:
        await self.tools.close()
        if self._backend is not None:
            await self._backend.engine.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _need_backend(self) -> Backend:
        if self._backend is None:
            self._backend = self._get_backend()
        return self._backend

    def _conversation(self, *more: Message, history: list[Message] | None = None) -> Conversation:
        first = open_conversation(
            self._need_backend().loaded.identity,
            tools=self.tools,
            effort=self.effort,
            date=self.date,
            instructions=self.instructions,
        )
        return Conversation(messages=(*first, *(self._history if history is None else history), *more))


async def _connect(server: McpServer) -> Tool:
    from ossia.tools.mcp.client import connect_mcp

    return await connect_mcp(server)


async def _follow(loop: AgentLoop, conversation: Conversation, *, run: Run, show: Show) -> None:
    async with contextlib.aclosing(loop.run(conversation)) as events:
        async for event in events:
            show(run, event, run.take(event))


def to_json(record: dict[str, Any]) -> str:
    return json.dumps({"conversation": record, "next_role": None}, indent=2) + "\n"


def to_lines(messages: list[Any]) -> str:
    return "".join(json.dumps(message) + "\n" for message in messages)
