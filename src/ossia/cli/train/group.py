"""`ossia train`: a command a stage of training."""

from __future__ import annotations

import typer

from ossia.cli.options import examples
from ossia.cli.train import check, plot, pretrain, rl, sft, ship, vocabulary

app = typer.Typer(
    help="Teach a model by a recipe: a TOML file of recipes/. A run that was stopped goes on when begun again.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=examples("ossia train pretrain --recipe tiny --out runs/tiny"),
)
for name, module in {
    "vocabulary": vocabulary,
    "pretrain": pretrain,
    "sft": sft,
    "rl": rl,
    "check": check,
    "plot": plot,
    "ship": ship,
}.items():
    app.command(name, epilog=module.EXAMPLES)(module.command)
