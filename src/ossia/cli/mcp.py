"""`ossia mcp`: Ossia's tools for any MCP client."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ossia import __version__
from ossia.cli.extras import extra
from ossia.cli.groups import grouped
from ossia.cli.options import examples
from ossia.cli.tool_options import ToolOptions
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.tools.registry import ToolSet

EXAMPLES = examples(
    "ossia mcp",
    "ossia mcp --tools browser --search folder:docs",
    "ossia mcp --tools python --files data --http --port 8100",
)


@grouped
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
    *,
    tool_options: ToolOptions,
) -> None:
    """Serve tools over the Model Context Protocol. All clients of a process share its kernel and its open pages."""
    import asyncio

    with extra("tools"):
        import mcp.server.lowlevel  # noqa: F401 - told of before anything is started

    from ossia.cli.tools import make_tools

    if http and not allow_open:
        check_host(host)
    made = make_tools(tools, tool_options)
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
