"""`ossia train pretrain`: from random weights, or from a model, on tasks and text."""

from __future__ import annotations

import typer

from ossia.cli.options import examples
from ossia.cli.train.bar import training_bar
from ossia.cli.train.options import Out, Overrides, Recipe, parse_overrides
from ossia.cli.train.stopping import stop_told

EXAMPLES = examples(
    "ossia train pretrain --recipe tiny --out runs/tiny",
    "ossia train pretrain --recipe nano --out runs/try --set run.steps=100 --set data.rows=8",
)


def command(recipe: Recipe, out: Out, overrides: Overrides = None) -> None:
    """Train a model by a recipe on tasks and text.

    A run that was stopped goes on from its last checkpoint. Ctrl-C finishes the step and writes one. The finished model
    is the folder DIR/model.
    """
    values = parse_overrides(overrides)

    from ossia.training.config import load_recipe
    from ossia.training.parallel import is_first_process
    from ossia.training.run import train

    config = load_recipe(recipe, overrides=values)
    with stop_told(), training_bar() as show:
        folder = train(config, out, on_log=show)
    if is_first_process():
        typer.echo(f"the model is in {folder}; talk to it with: ossia chat {folder}")
