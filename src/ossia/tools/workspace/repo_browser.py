"""`repo_browser.*`: what the models reach for, unasked, to read and patch a repository."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ossia.harmony.content import FunctionTool, ToolNamespace
from ossia.harmony.message import Message
from ossia.tools.arguments import read_arguments
from ossia.tools.base import FailureKind, ToolContext, ToolError, ToolResult, failure, reply
from ossia.tools.confined import open_folder, read_bytes, split_path, walk_files
from ossia.tools.workspace.patch_tool import run_patch

_MAX_FILE_BYTES = 4 << 20
_MAX_TREE_LINES = 500
_MAX_LINES = 400
_MAX_LINE_CHARS = 500
_SEARCH_SECONDS = 10.0
_SKIPPED = frozenset({".git", ".hg", ".svn", "node_modules", "__pycache__", ".venv", ".mypy_cache", ".ruff_cache"})


def _tool(name: str, description: str, properties: Mapping[str, Any], required: tuple[str, ...] = ()) -> FunctionTool:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return FunctionTool(name, description=description, parameters=schema)


_TOOLS = (
    _tool(
        "print_tree",
        "Prints the folders and files below `path`, `depth` levels deep.",
        {"path": {"type": "string", "default": ""}, "depth": {"type": "integer", "default": 2}},
    ),
    _tool(
        "search",
        "Searches the files below `path` for `query`, a regular expression or plain text.",
        {
            "query": {"type": "string"},
            "path": {"type": "string", "default": ""},
            "max_results": {"type": "integer", "default": 50},
            "file_glob": {"type": "string"},
        },
        ("query",),
    ),
    _tool(
        "open_file",
        "Shows lines `line_start` to `line_end` of a file, numbered.",
        {
            "path": {"type": "string"},
            "line_start": {"type": "integer", "default": 1},
            "line_end": {"type": "integer"},
        },
        ("path",),
    ),
    _tool("apply_patch", "Applies a patch in the V4A format.", {"patch": {"type": "string"}}, ("patch",)),
)


class RepoBrowserTool:
    """Reads and patches files below a root; links are not followed.

    Args:
        root: the only folder that is seen.
        is_writable: whether `apply_patch` is offered.
    """

    name = "repo_browser"
    is_builtin = False

    def __init__(self, *, root: Path, is_writable: bool = True) -> None:
        self._root = root.resolve()
        self._tools = {tool.name: tool for tool in _TOOLS if is_writable or tool.name != "apply_patch"}

    def declaration(self) -> ToolNamespace:
        return ToolNamespace(self.name, tools=tuple(self._tools.values()))

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        name = (message.recipient or "").rpartition(".")[2]
        tool = self._tools.get(name)
        if tool is None:
            text = f"There is no tool {message.recipient!r}; these exist: {', '.join(self._tools)}."
            return failure(message, text, kind=FailureKind.NO_SUCH_TOOL)
        if name == "apply_patch":
            return await run_patch(message, self._root)
        try:
            assert isinstance(tool.parameters, Mapping)
            arguments = read_arguments(message, tool.parameters)
            return ToolResult(messages=(reply(message, await asyncio.to_thread(_RUNS[name], self._root, **arguments)),))
        except ToolError as error:
            return failure(message, str(error), kind=error.kind)
        except OSError as error:
            return failure(message, f"{name} failed: {error.strerror or error}.", kind=FailureKind.FAILED)

    async def close(self) -> None:
        return


def print_tree(root: Path, *, path: str = "", depth: int = 2) -> str:
    """Folders and files, two blanks a level, folders with a slash."""
    lines: list[str] = []

    def visit(folder: int, level: int) -> None:
        entries = sorted(os.listdir(folder))
        for name in entries:
            if len(lines) >= _MAX_TREE_LINES:
                return
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            is_folder = stat.S_ISDIR(info.st_mode)
            mark = "/" if is_folder else "@" if stat.S_ISLNK(info.st_mode) else ""
            lines.append(f"{'  ' * level}{name}{mark}")
            if is_folder and name not in _SKIPPED and level + 1 < depth:
                with contextlib.suppress(OSError):
                    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                    try:
                        visit(below, level + 1)
                    finally:
                        os.close(below)

    folder = open_folder(root, split_path(root, path))
    try:
        visit(folder, 0)
    finally:
        os.close(folder)
    if len(lines) >= _MAX_TREE_LINES:
        lines.append(f"[more than {_MAX_TREE_LINES} entries; name a folder or a smaller depth]")
    return "\n".join(lines) or "[empty]"


def open_file(root: Path, *, path: str, line_start: int = 1, line_end: int | None = None) -> str:
    """Numbered lines, from 1 on, both ends included."""
    text = read_bytes(root, path, max_bytes=_MAX_FILE_BYTES).decode("utf-8", "replace")
    lines = text.splitlines()
    first = max(line_start, 1)
    last = min(line_end if line_end is not None and line_end > 0 else len(lines), len(lines), first + _MAX_LINES - 1)
    if first > max(len(lines), 1):
        raise ToolError(f"{path} has {len(lines)} lines.", kind=FailureKind.INVALID_ARGUMENTS)
    shown = [f"{i}: {_cut(lines[i - 1])}" for i in range(first, last + 1)]
    return "\n".join([f"{path}, lines {first}-{last} of {len(lines)}", *shown])


def search_files(root: Path, *, query: str, path: str = "", max_results: int = 50, file_glob: str | None = None) -> str:
    """Lines that match, as `path:line: text`. A query that is no regular expression is searched as plain text."""
    # A model's expression can take exponential time on a long line, so only plain words and simple forms run as one.
    pattern = re.compile(query) if _is_simple(query) else re.compile(re.escape(query))
    results: list[str] = []
    limit = min(max(max_results, 1), 200)
    end = time.monotonic() + _SEARCH_SECONDS
    for name, _ in walk_files(root, path):
        parts = name.split("/")
        if _SKIPPED.intersection(parts) or (file_glob and not _matches_glob(name, file_glob)):
            continue
        with contextlib.suppress(OSError):
            data = read_bytes(root, name, max_bytes=_MAX_FILE_BYTES)
            if b"\0" in data[:4096]:
                continue
            for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
                if pattern.search(line[:2000]):
                    results.append(f"{name}:{number}: {_cut(line.strip())}")
                    if len(results) >= limit:
                        return "\n".join([*results, f"[the first {limit} matches]"])
        if time.monotonic() > end:
            results.append(f"[stopped after {_SEARCH_SECONDS:g} s]")
            break
    return "\n".join(results) or f"No match for {query!r}."


def _matches_glob(name: str, glob: str) -> bool:
    return fnmatch.fnmatch(name, glob) or fnmatch.fnmatch(name.rpartition("/")[2], glob)


def _is_simple(query: str) -> bool:
    """Whether an expression cannot blow up: no group is repeated, no back-reference, few open-ended repeats."""
    try:
        re.compile(query)
    except re.error:
        return False
    plain = re.sub(r"\\[^0-9]", "", query)
    return not re.search(r"\)[*+?{]|\\[0-9]|\(\?P=", plain) and len(re.findall(r"[*+]|\{\d*,\d*\}", plain)) <= 2


def _cut(line: str) -> str:
    return line if len(line) <= _MAX_LINE_CHARS else f"{line[:_MAX_LINE_CHARS]}[...]"


_RUNS: Mapping[str, Callable[..., str]] = MappingProxyType(
    {"print_tree": print_tree, "search": search_files, "open_file": open_file}
)
