"""The group of commands."""

from __future__ import annotations

import typer

from ossia.cli.data import build, hazard
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
app.command("build", epilog=build.BUILD_EXAMPLES)(build.build)
app.command("shard", epilog=build.SHARD_EXAMPLES)(build.shard)
app.command("inspect", epilog=build.INSPECT_EXAMPLES)(build.inspect)
app.command("card", epilog=build.CARD_EXAMPLES)(build.card)
app.command("hazard-train", epilog=hazard.TRAIN_EXAMPLES)(hazard.train)
app.command("hazard-report", epilog=hazard.REPORT_EXAMPLES)(hazard.report)
