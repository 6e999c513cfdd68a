"""`ossia train plot`: pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ossia.cli.options import examples

EXAMPLES = examples("ossia train plot runs/tiny")


def command(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]) -> None:
    """Draw loss, learning rate, gradient norm and expert loads of a run, also of one that goes on."""
    from ossia.training.plot import plot_run

    typer.echo(plot_run(folder))
