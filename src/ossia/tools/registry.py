"""Finding tools and calling them: the entry-point group `ossia.tools`, and the set of tools of one conversation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from types import TracebackType
from typing import Any, Self

from ossia.core.errors import InvalidInputError, MissingExtraError
from ossia.harmony.content import FUNCTIONS, ToolNamespace
from ossia.harmony.message import Message
from ossia.tools.base import FailureKind, Tool, ToolContext, ToolError, ToolResult, failure

ENTRY_POINT_GROUP = "ossia.tools"
"""Each entry point is a callable that takes keyword options and makes a `Tool`; its name is what `--tools` takes."""

_BUILT_IN = {
    "python": "ossia.tools.python.tool:PythonTool",
    "browser": "ossia.tools.browser.tool:make_browser",
    "apply_patch": "ossia.tools.workspace.patch_tool:ApplyPatchTool",
    "container": "ossia.tools.workspace.container:ContainerTool",
    "repo_browser": "ossia.tools.workspace.repo_browser:RepoBrowserTool",
}
_log = logging.getLogger(__name__)


def available_tools() -> dict[str, EntryPoint]:
    """Every tool that can be made by name. An installed plugin may not take the name of a built-in one."""
    found = {name: EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in _BUILT_IN.items()}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if found.setdefault(point.name, point).value != point.value:
            _log.warning("the plugin %s = %s is left out: a tool of that name exists", point.name, point.value)
    return dict(sorted(found.items()))


def make_tool(name: str, /, **options: Any) -> Tool:
    """Makes a tool by its name.

    Raises:
        InvalidInputError: no such tool, options that it does not take, or a plugin that cannot be loaded.
        MissingExtraError: it needs a package that is not installed.
    """
    points = available_tools()
    if name not in points:
        raise InvalidInputError(f"there is no tool {name!r}; these exist: {', '.join(points)}", param="tools")
    try:
        factory = points[name].load()
    except MissingExtraError:
        raise
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(
            f"the tool {name!r} ({points[name].value}) cannot be loaded: {error}", param="tools"
        ) from error
    try:
        tool = factory(**options)
    except TypeError as error:
        raise InvalidInputError(f"the tool {name!r} cannot be made: {error}", param="tools") from error
    if not isinstance(tool, Tool):
        raise InvalidInputError(f"the plugin {name!r} made a {type(tool).__name__}, which is no Tool", param="tools")
    return tool


class ToolSet:
    """The tools of one conversation: what the prompt declares, and one door for every call.

    `call` never raises but when it is cancelled: an unknown tool, bad arguments and a tool's own fault each become a
    tool message.

    Raises:
        InvalidInputError: two tools of one name.
    """

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise InvalidInputError(f"two tools are named {tool.name!r}; names must differ", param="tools")
            self._tools[tool.name] = tool

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def system_namespaces(self) -> tuple[ToolNamespace, ...]:
        """For `SystemContent.tools`."""
        return tuple(tool.declaration() for tool in self if tool.is_builtin)

    def developer_namespaces(self) -> tuple[ToolNamespace, ...]:
        """For `DeveloperContent.tools`."""
        return tuple(tool.declaration() for tool in self if not tool.is_builtin)

    def recipients(self) -> tuple[str, ...]:
        """Every name that a call may go to, as `browser.search` or `python`; the parser wants them too."""
        names: list[str] = []
        for tool in self:
            functions = tool.declaration().tools
            names.extend(f"{tool.name}.{function.name}" for function in functions)
            if not functions:
                names.append(tool.name)
        return tuple(names)

    def find(self, recipient: str | None) -> Tool | None:
        """The tool that a recipient names, or None. A namespace that is one tool takes any name below it."""
        if not recipient:
            return None
        space, _, rest = recipient.partition(".")
        tool = self._tools.get(space)
        if tool is not None:
            functions = tool.declaration().tools
            if not functions or recipient in {f"{tool.name}.{function.name}" for function in functions}:
                return tool
        # The parser reads a bare name as a function's, so `functions.apply_patch` may mean the tool `apply_patch`.
        alone = self._tools.get(rest) if space == FUNCTIONS else None
        return alone if alone is not None and not alone.declaration().tools else None

    async def call(self, message: Message, *, context: ToolContext | None = None) -> ToolResult:
        """Answers a call, whatever it is."""
        context = context or ToolContext()
        tool = self.find(message.recipient)
        if tool is None:
            return self._answer_unknown(message)
        try:
            return await tool.call(message, context=context)
        except ToolError as error:
            return failure(message, str(error), kind=error.kind)
        except MissingExtraError as error:
            _log.warning("%s: %s", message.recipient, error)
            return failure(message, f"{message.recipient} is not installed here.", kind=FailureKind.FAILED)
        except Exception as error:  # noqa: BLE001  a tool's fault must not end the conversation
            _log.exception("the tool %s failed", message.recipient)
            text = f"{message.recipient} failed: {type(error).__name__}."
            return failure(message, text, kind=FailureKind.FAILED)

    def _answer_unknown(self, message: Message) -> ToolResult:
        names = self.recipients()
        exist = f"these exist: {', '.join(names)}" if names else "there are no tools in this conversation"
        text = f"There is no tool {message.recipient!r}; {exist}."
        return failure(message, text, kind=FailureKind.NO_SUCH_TOOL, name=_safe_name(message.recipient))

    async def close(self) -> None:
        """Closes every tool, the rest too when one fails."""
        results = await asyncio.gather(*(tool.close() for tool in self), return_exceptions=True)
        for tool, result in zip(self, results, strict=True):
            if isinstance(result, Exception):
                _log.error("closing the tool %s failed: %r", tool.name, result)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _safe_name(recipient: str | None) -> str:
    """A made-up recipient as the name of the message that answers it: one printable word."""
    word = "".join(char for char in recipient or "" if char.isprintable() and not char.isspace())
    return word[:80] or "tool"
