"""What a tool is: a name, a declaration for the prompt, and an asynchronous call.

A call takes the assistant's message whose recipient names the tool and gives back a `ToolResult`: the tool messages
to append to the conversation, and what travels beside them (files, sources for citations, the kind of a failure).
A tool's failure is a tool message like any other, so that the model can mend it; a call raises nothing but
`asyncio.CancelledError`, and a cancelled call leaves the tool usable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from ossia.core.errors import OssiaError
from ossia.harmony.content import ToolNamespace
from ossia.harmony.message import Message, Role

__all__ = [
    "FailureKind",
    "Source",
    "Tool",
    "ToolContext",
    "ToolError",
    "ToolFile",
    "ToolProgress",
    "ToolResult",
    "failure",
    "reply",
]


class FailureKind(StrEnum):
    """Why a call gave no proper result."""

    NO_SUCH_TOOL = "no_such_tool"
    INVALID_ARGUMENTS = "invalid_arguments"
    DENIED = "denied"
    TIMEOUT = "timeout"
    FAILED = "failed"


class ToolError(OssiaError):
    """A call that fails in a way the model can read about. Tools raise it inside; `ToolSet` makes it a message.

    Attributes:
        kind: what went wrong.
    """

    def __init__(self, message: str, *, kind: FailureKind = FailureKind.FAILED) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFile:
    """A file that a call made.

    Attributes:
        name: without folders.
        data: the bytes, or None for a file that stays where it is.
        path: where the sandbox sees it (`/mnt/data/plot.png`), if it lies there.
        size: in bytes.
    """

    name: str
    mime_type: str
    size: int
    data: bytes | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A page that was shown to the model under a cursor, which its citations name."""

    cursor: int
    url: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolProgress:
    """Output of a call that still runs: a piece of its text."""

    tool: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a call may know of its surroundings.

    Attributes:
        conversation: names the conversation, for logs.
        report: takes progress while the call runs; None if nobody listens.
    """

    conversation: str = ""
    report: Callable[[ToolProgress], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a call gave.

    Attributes:
        messages: tool messages, in the order to append them.
        files: made by the call, images too.
        sources: pages shown, for citations.
        failure: None for a call that went well. A program's own exception is no failure of the python tool.
        notes: what happened to the tool itself, as "kernel restarted"; each is told to the model as well.
    """

    messages: tuple[Message, ...]
    files: tuple[ToolFile, ...] = ()
    sources: tuple[Source, ...] = ()
    failure: FailureKind | None = None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The texts of the messages, joined by line ends."""
        return "\n".join(message.text for message in self.messages)


@runtime_checkable
class Tool(Protocol):
    """One tool, or several under one namespace, for one conversation at a time.

    Attributes:
        name: the namespace: `python`, `browser`, `functions`, ...
        is_builtin: declared in the system message, as the models were trained; else in the developer message.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_builtin(self) -> bool: ...

    def declaration(self) -> ToolNamespace:
        """What the prompt says of the tool."""
        ...

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        """Answers one call. Calls of one tool may overlap; the tool orders them where it must."""
        ...

    async def close(self) -> None:
        """Ends processes and connections. A closed tool is not called again; closing twice does nothing."""
        ...


ToolFactory = Callable[..., Tool]
ApprovalHook = Callable[[str, dict[str, object]], Awaitable[bool]]
"""Asked with the full name of a tool and its arguments before a call leaves; False denies it."""


def reply(call: Message, text: str, *, name: str | None = None) -> Message:
    """A tool's message that answers `call` on its channel, as the models were trained to see it.

    The text stays text: the renderer encodes look-alikes of control tokens as plain characters.
    """
    return Message(
        Role.TOOL,
        content=text,
        name=name or call.recipient or "tool",
        recipient="assistant",
        channel=call.channel or "commentary",
    )


def failure(call: Message, text: str, *, kind: FailureKind, name: str | None = None) -> ToolResult:
    """A result that tells the model what went wrong."""
    return ToolResult(messages=(reply(call, text, name=name),), failure=kind)
