"""`ossia train`: run a recipe."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.training.trainer import StepReport

EXAMPLES = examples(
    "ossia train --recipe nano --out runs/nano",
    "ossia train --recipe nano --out runs/try --set run.steps=100 --set data.rows=8",
)


def command(
    recipe: Annotated[str, typer.Option(metavar="NAME|PATH", help="A recipe of recipes/, or a path to a TOML file.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where checkpoints and logs go.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Replace a value of the recipe: --set run.steps=100. Repeatable."
        ),
    ] = None,
) -> None:
    """Train a model by a recipe.

    A run that was stopped goes on from its last checkpoint. The finished model is the folder DIR/model.
    """
    values = dict(parse_override(text) for text in overrides or ())

    from rich.console import Console
    from rich.progress import Progress

    from ossia.training.config import load_recipe
    from ossia.training.run import train

    config = load_recipe(recipe, overrides=values)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        item = bar.add_task("training", total=1.0)

        def show(report: StepReport, done: float) -> None:
            bar.update(item, completed=done)
            bar.console.print(
                f"{done:4.0%}  step {report.step:,}  loss {report.loss:.4f}  {report.tokens_per_second:,.0f} tokens/s  "
                f"busiest expert {report.max_load:.2f} x even",
                highlight=False,
            )

        folder = train(config, out, on_log=show)
    typer.echo(f"the model is in {folder}; talk to it with: ossia chat {folder}")


def parse_override(text: str) -> tuple[str, Any]:
    """``run.steps=100`` as key and value. The value is TOML; what is not TOML is taken as a string.

    Raises:
        InvalidInputError: there is no equals sign, or no key before it.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InvalidInputError(f"--set {text!r} is not of the form key=value, as in --set run.steps=100", param="set")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return key.strip(), parsed
