"""apply_patch as a tool of its own: `functions.apply_patch`, or `apply_patch` with the patch as the raw body."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ossia.harmony.content import ToolNamespace
from ossia.harmony.message import Message
from ossia.tools.arguments import parse_object
from ossia.tools.base import FailureKind, ToolContext, ToolError, ToolResult, failure, reply
from ossia.tools.workspace.apply_patch import apply_patch

_DESCRIPTION = (
    "Edits files below the working folder. Send one patch, as raw text:\n"
    "*** Begin Patch\n"
    "*** Add File: <path>      (every line of the new file begins with +)\n"
    "*** Update File: <path>   (*** Move to: <path> may follow; then hunks that begin with @@, whose lines begin with\n"
    "                           a space for context, - for removed, + for added; *** End of File may close one)\n"
    "*** Delete File: <path>\n"
    "*** End Patch\n"
    "Paths are relative. All of a patch is applied, or nothing."
)


def read_patch(message: Message) -> str:
    """The patch in a call: the raw body, or an object with `patch` or `input`.

    Raises:
        ToolError: an object without either.
    """
    text = message.text
    if not text.lstrip().startswith("{"):
        return text
    arguments = parse_object(message)
    for key in ("patch", "input"):
        if isinstance(arguments.get(key), str):
            return arguments[key]
    raise ToolError("Send the patch as text, or as the argument 'patch'.", kind=FailureKind.INVALID_ARGUMENTS)


async def run_patch(message: Message, root: Path) -> ToolResult:
    """Applies the patch of a call."""
    try:
        return ToolResult(messages=(reply(message, await asyncio.to_thread(apply_patch, read_patch(message), root)),))
    except ToolError as error:
        return failure(message, str(error), kind=error.kind)


class ApplyPatchTool:
    """Patches files below a root.

    Args:
        root: the only folder that a patch can touch.
    """

    name = "apply_patch"
    is_builtin = False

    def __init__(self, *, root: Path) -> None:
        self._root = root.resolve()

    def declaration(self) -> ToolNamespace:
        return ToolNamespace(self.name, description=_DESCRIPTION)

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        return await run_patch(message, self._root)

    async def close(self) -> None:
        return
