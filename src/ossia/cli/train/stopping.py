"""What Ctrl-C does to a training: it ends, and says how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

INTERRUPTED = 130
"""What a shell reports of a program that died of SIGINT (128 + 2)."""


@contextmanager
def stop_told() -> Iterator[None]:
    """Say how a run that Ctrl-C ended goes on, and exit with 130, so that no script takes it for done."""
    try:
        yield
    except KeyboardInterrupt:
        from ossia.training.parallel import is_first_process

        if is_first_process():
            typer.echo("stopped before its end; the same line again goes on from the last checkpoint", err=True)
        raise typer.Exit(INTERRUPTED) from None
