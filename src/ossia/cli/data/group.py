"""The group of commands."""

from __future__ import annotations

import typer

from ossia.cli.data import hazard
from ossia.cli.options import examples

app = typer.Typer(
    help="Prepare text for training: filters, a data card, token shards.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=examples(
        "ossia data build corpus.toml --out data/corpus",
        "ossia data shard data/corpus --tokenizer nano",
        "ossia data inspect data/corpus",
        "ossia data hazard-report",
    ),
)
app.command("hazard-train", epilog=hazard.TRAIN_EXAMPLES)(hazard.train)
app.command("hazard-report", epilog=hazard.REPORT_EXAMPLES)(hazard.report)
