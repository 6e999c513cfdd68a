"""Which MCP servers, and which of their tools."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ossia.core.errors import InvalidInputError
from ossia.tools.sandbox.limits import MIB, SandboxLimits

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_RESERVED = frozenset(
    {"python", "browser", "container", "repo_browser", "apply_patch", "functions", "assistant", "all"}
)

_LIMITS = SandboxLimits(memory_bytes=4096 * MIB, num_processes=256, cpu_seconds=86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFilter:
    """Some of a server's tools.

    Attributes:
        names: by the server's own names; None leaves names aside.
        is_read_only: those that the server says change nothing, or those of which it does not say so; None leaves
            that aside. It is the server's word: ask this only of servers that you trust.
    """

    names: frozenset[str] | None = None
    is_read_only: bool | None = None

    def takes(self, name: str, *, is_read_only: bool) -> bool:
        """Whether a tool is one of them. A filter that says nothing takes none."""
        if self.names is None and self.is_read_only is None:
            return False
        return (self.names is None or name in self.names) and self.is_read_only in (None, is_read_only)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRules:
    """Calls of `never` need no leave, unless they are of `always` too; all others do."""

    always: ToolFilter = field(default_factory=ToolFilter)
    never: ToolFilter = field(default_factory=ToolFilter)


Approval = Literal["always", "never"] | frozenset[str] | ApprovalRules
"""Which calls need leave: all, none, those of the named tools, or as rules say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpSandbox:
    """What a server's command sees when it runs under bubblewrap: the system's programs, and these. No network.

    Attributes:
        read_only: folders to show, at their own paths: where the program lies, and what it may read.
        writable: folders that it may change, at their own paths; they must belong to one user, who is not root. It
            works in the first; without any, in a temporary one at /mnt/data.
        limits: held for each process by itself; nothing watches the memory of all, or what lies in the folders.
    """

    read_only: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    limits: SandboxLimits = _LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """One server: a command (stdio) or an address (streamable HTTP).

    Attributes:
        label: the namespace of its tools in the prompt.
        command: the program and its arguments; without a `sandbox` it runs as this user, with all their rights.
        sandbox: what the command is confined to; None: nothing.
        environment: for the command, besides a few harmless variables.
        url: http or https.
        headers: sent with each request, as `Authorization`; never shown or logged.
        allowed_tools: by the server's own names, or by a filter; None allows all.
        denied_tools: never offered, whatever is allowed.
        approval: which calls are put to the approval hook. Without a hook those calls are denied.
        timeout_s: for one call, and for connecting.
        is_private_allowed: whether the address may be a private or loopback one. Say no for addresses that a
            client of the server gave.

    Raises:
        InvalidInputError: neither or both of command and address, or a label that cannot name a namespace.
    """

    label: str
    command: tuple[str, ...] = ()
    sandbox: McpSandbox | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    workdir: Path | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    allowed_tools: frozenset[str] | ToolFilter | None = None
    denied_tools: frozenset[str] = frozenset()
    approval: Approval = "always"
    timeout_s: float = 60.0
    is_private_allowed: bool = True

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.label) or self.label in _RESERVED:
            raise InvalidInputError(
                f"{self.label!r} cannot label an MCP server; use letters, digits and _, and none of "
                f"{', '.join(sorted(_RESERVED))}",
                param="server_label",
            )
        if bool(self.command) == bool(self.url):
            raise InvalidInputError("give an MCP server either a command or a url", param="server_url")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise InvalidInputError(f"{self.url!r} is no http or https address", param="server_url")
        if self.sandbox is not None and not self.command:
            raise InvalidInputError("only a command can be confined to a sandbox, no url", param="sandbox")
        if self.timeout_s <= 0:
            raise InvalidInputError(f"timeout_s is {self.timeout_s}; it must be above 0", param="timeout_s")

    def offers(self, tool: str, *, is_read_only: bool = False) -> bool:
        """Whether a tool of the server may be seen and called."""
        allowed = self.allowed_tools
        if tool in self.denied_tools:
            return False
        if isinstance(allowed, ToolFilter):
            return allowed.takes(tool, is_read_only=is_read_only)
        return allowed is None or tool in allowed

    def needs_approval(self, tool: str, *, is_read_only: bool = False) -> bool:
        """Whether a call of a tool is put to the hook."""
        match self.approval:
            case ApprovalRules(always=always, never=never):
                is_free = never.takes(tool, is_read_only=is_read_only)
                return not is_free or always.takes(tool, is_read_only=is_read_only)
            case frozenset() as names:
                return tool in names
            case word:
                return word == "always"
