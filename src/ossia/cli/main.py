"""The `ossia` command: its subcommands, and what becomes of their errors.

An `OssiaError` ends as one line on stderr and exit code 1, wrong usage as typer's message and code 2, Ctrl-C as 130,
and a reader that closed the pipe as 141 without a word. Tracebacks are for `--debug` (or OSSIA_DEBUG=1).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ossia import __version__
from ossia.cli import bench, convert, generate, harmony, info, keys, mcp, pull, serve
from ossia.cli import eval as evaluate
from ossia.cli.chat import command as chat
from ossia.cli.data import app as data
from ossia.cli.options import examples
from ossia.cli.train.group import app as train
from ossia.core.errors import OssiaError

BROKEN_PIPE = 141
"""What a shell reports of a program that died of SIGPIPE (128 + 13)."""


class OssiaGroup(TyperGroup):
    """Turns the errors of any subcommand into a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except OssiaError as error:
            if ctx.params.get("debug"):
                raise
            raise fail(str(error)) from None
        except BrokenPipeError:
            silence_stdout()
            raise typer.Exit(BROKEN_PIPE) from None
        except (typer.Exit, typer.Abort, EOFError):
            raise
        except OSError as error:  # a file that the user named cannot be read, or the like
            if ctx.params.get("debug"):
                raise
            raise fail(str(error)) from None
        except Exception as error:
            if ctx.params.get("debug") or hasattr(error, "exit_code"):  # the latter are typer's own usage errors
                raise
            text = (
                f"internal error: {type(error).__name__}: {error}\n(`ossia --debug ...` shows where; please report it)"
            )
            raise fail(text) from None
        return result


def fail(message: str) -> typer.Exit:
    """Say what went wrong, and give the exception that ends the program with code 1."""
    typer.echo(f"ossia: {message}", err=True)
    return typer.Exit(1)


def silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush into a closed pipe does not complain."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


app = typer.Typer(
    cls=OssiaGroup,
    name="ossia",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: brackets in examples stay brackets, and rich is not imported for it
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "ossia chat",
        "echo 'What is 17 + 25?' | ossia chat",
        "ossia info openai/gpt-oss-20b",
        "ossia serve --port 8000",
        "ossia COMMAND --help",
    ),
)
for name, module in {
    "chat": chat,
    "generate": generate,
    "serve": serve,
    "mcp": mcp,
    "info": info,
    "pull": pull,
    "convert": convert,
    "eval": evaluate,
    "bench": bench,
}.items():
    app.command(name, epilog=module.EXAMPLES)(module.command)
app.add_typer(train, name="train")
app.add_typer(data, name="data")
app.add_typer(keys.app, name="keys")
app.add_typer(harmony.app, name="harmony")


def print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"ossia {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option(envvar="OSSIA_DEBUG", help="Show tracebacks instead of short errors.")] = False,
) -> None:
    """gpt-oss implemented whole: talk to a model, serve it, look into it, convert it, measure it, teach one."""


def main() -> None:
    """Run the command line; the entry point of the `ossia` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows "?" for it
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
