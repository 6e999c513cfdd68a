"""What the command line says of tools, for every command that makes some. Each field is an option."""

from __future__ import annotations

from dataclasses import dataclass

from ossia.cli import options


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolOptions:
    """How tools are made.

    Attributes:
        unsafe_python: run Python and shell commands without a sandbox.
        files: the folder behind python's /mnt/data; None for a temporary one.
        root: the folder that apply_patch, container and repo_browser may change; None for the current one.
        search: what the browser searches: `docs`, `folder:PATH`, `searxng`, `brave`, `exa`, `you`.
        search_url, search_key: of a search service.
    """

    unsafe_python: options.UnsafePython = False
    files: options.Files = None
    root: options.Root = None
    search: options.Search = "docs"
    search_url: options.SearchUrl = None
    search_key: options.SearchKey = None
