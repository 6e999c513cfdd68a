"""`ossia mcp`: Ossia's tools for any MCP client."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia import __version__
from ossia.cli import options
from ossia.cli.extras import extra
from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.tools.registry import ToolSet

EXAMPLES = examples(
    "ossia mcp",
    "ossia mcp --tools browser --search folder:docs",
    "ossia mcp --tools python --files data --http --port 8100",
)


def command(
    tools: Annotated[
        str, typer.Option(metavar="NAMES", help="Tools, by commas: python, browser, apply_patch, container, ...")
    ] = "python,browser",
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP at /mcp instead of stdin and stdout.")] = False,
    host: Annotated[str, typer.Option(metavar="HOST", help="For --http: a loopback address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="For --http.")] = 8100,
    allow_open: Annotated[
        bool, typer.Option("--allow-open", help="Listen for others, who need no key: whoever gets there has the tools.")
    ] = False,
    unsafe_python: options.UnsafePython = False,
    files: options.Files = None,
    root: options.Root = None,
    search: options.Search = "docs",
    search_url: options.SearchUrl = None,
    search_key: options.SearchKey = None,
) -> None:
    """Serve tools over the Model Context Protocol. All clients of a process share its kernel and its open pages."""
    import asyncio

    with extra("tools"):
        import mcp.server.lowlevel  # noqa: F401 - told of before anything is started

    from ossia.cli.tools import ToolOptions, make_tools

    if http and not allow_open:
        check_host(host)
    choice = ToolOptions(
        unsafe_python=unsafe_python,
        files=files,
        root=root or Path(),
        search=search,
        search_url=search_url,
        search_key=search_key,
    )
    made = make_tools(tools, choice)
    if not len(made):
        raise InvalidInputError("no tools are named; give --tools python,browser", param="tools")
    if http:
        asyncio.run(serve_http(made, host=host, port=port))
    else:
        from ossia.tools.mcp.server import serve_stdio

        asyncio.run(serve_stdio(made, version=__version__))


def check_host(host: str) -> None:
    """Raises:
    InvalidInputError: others than this machine could reach the server.
    """
    from ossia.server.settings import is_loopback

    if not is_loopback(host):
        raise InvalidInputError(
            f"host {host!r} is no loopback address, and whoever reaches the server could run the tools; "
            "say --allow-open if that is what you want",
            param="host",
        )


async def serve_http(tools: ToolSet, *, host: str, port: int) -> None:
    """Serve until a signal says to stop, then close the tools."""
    with extra("server"):
        import uvicorn

    from ossia.tools.mcp.server import make_http_app

    async with tools:
        app = make_http_app(tools, host=host, version=__version__)
        config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, ws="none")
        typer.echo(f"serving MCP at http://{host}:{port}/mcp", err=True)
        sys.stderr.flush()
        await uvicorn.Server(config).serve()
