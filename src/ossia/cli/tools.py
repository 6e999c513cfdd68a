"""The tools that --tools names, made as the other options say."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ossia.cli.options import split_names
from ossia.cli.tool_options import ToolOptions
from ossia.core.errors import InvalidInputError
from ossia.tools.base import Tool
from ossia.tools.mcp.config import McpSandbox, McpServer
from ossia.tools.registry import ToolSet, make_tool

WORKSPACE = {"workspace": ("apply_patch", "container", "repo_browser")}
"""One name for all that models expect to find where there is code to work on."""


def make_tools(names: str | None, options: ToolOptions) -> ToolSet:
    """The tools of a comma-separated list; none for an empty one.

    Raises:
        InvalidInputError: an unknown tool or search, or one that lacks an option.
        MissingExtraError: a tool needs a package that is not installed.
        SandboxError: no sandbox works here.
    """
    wanted = [single for name in split_names(names) for single in WORKSPACE.get(name, (name,))]
    return ToolSet(make_one(name, options) for name in dict.fromkeys(wanted))


def make_one(name: str, options: ToolOptions) -> Tool:
    """One tool; raises as `make_tools`."""
    return make_tool(name, **_options_of(name, options))


def read_servers(texts: Sequence[str], *, is_confined: bool = False) -> list[McpServer]:
    """MCP servers as `LABEL=COMMAND` or `LABEL=URL`. The loop asks for approval, so they need not.

    Args:
        is_confined: commands run in a sandbox.

    Raises:
        InvalidInputError: no label, or one that cannot be used.
    """
    servers: list[McpServer] = []
    for text in texts:
        label, sign, value = text.partition("=")
        if not sign or not value.strip():
            raise InvalidInputError(
                f"--mcp {text!r} is not of the form LABEL=COMMAND or LABEL=URL, as in --mcp files='npx -y some-server'",
                param="mcp",
            )
        is_url = value.startswith(("http://", "https://"))
        servers.append(
            McpServer(
                label=label.strip(),
                command=() if is_url else tuple(shlex.split(value)),
                url=value if is_url else None,
                sandbox=McpSandbox() if is_confined and not is_url else None,
                approval="never",
            )
        )
    return servers


def _options_of(name: str, options: ToolOptions) -> dict[str, Any]:
    match name:
        case "python":
            if options.files is not None:
                options.files.mkdir(parents=True, exist_ok=True)
            return {"data_dir": options.files, "is_unsafe_allowed": options.unsafe_python}
        case "browser":
            return _search_of(options)
        case "container":
            return {"root": _folder(options.root), "is_unsafe_allowed": options.unsafe_python}
        case "apply_patch" | "repo_browser":
            return {"root": _folder(options.root)}
        case _:
            return {}  # a plugin's own affair


def _search_of(options: ToolOptions) -> dict[str, Any]:
    kind, _, path = options.search.partition(":")
    found: dict[str, Any] = {"backend": kind}
    if path:
        found["folder"] = _folder(Path(path))
    if options.search_url is not None:
        found["base_url"] = options.search_url
    if options.search_key is not None:
        found["api_key"] = options.search_key
    return found


def _folder(path: Path | None) -> Path:
    path = path or Path()
    if not path.is_dir():
        raise InvalidInputError(f"{path} is no folder; make it, or name another", param="root")
    return path
