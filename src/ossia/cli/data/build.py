"""`ossia data build`, `shard`, `inspect` and `card`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.options import examples
from ossia.cli.terminal import strip_controls
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.training.data.corpus.build import OnProgress, Progress

BUILD_EXAMPLES = examples(
    "ossia data build corpus.toml --out data/corpus",
    "ossia data build corpus.toml --out data/corpus --tokenizer runs/nano/tokenizer --workers 8",
    "ossia data build corpus.toml --out data/corpus --engine ray --on-error skip",
)
SHARD_EXAMPLES = examples(
    "ossia data shard data/corpus --tokenizer runs/nano/tokenizer",
    "ossia data shard data/corpus --tokenizer o200k_harmony --out data/shards",
)
INSPECT_EXAMPLES = examples(
    "ossia data inspect data/corpus",
    "ossia data inspect data/corpus --verify --json",
    "ossia data inspect data/corpus --show 3 --tokenizer nano",
)
CARD_EXAMPLES = examples("ossia data card data/corpus", "ossia data card data/corpus > CARD.md")

Corpus = Annotated[Path, typer.Argument(metavar="DIR", help="What `ossia data build` made.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def progress_bar(what: str) -> Iterator[OnProgress]:
    """A bar on a terminal that says how far a build is; nothing where there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        item = bar.add_task(what, total=1.0)

        def show(done: Progress) -> None:
            tokens = f", {done.tokens:,} tokens" if done.tokens else ""
            text = f"{done.source}: {done.kept:,} of {done.read:,} documents{tokens}"
            bar.update(item, description=text, completed=done.done)

        yield show


def build(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="TOML or JSON: sources and filters.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The corpus; one that is there is replaced at the end.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR", help="For token shards: o200k_harmony, nano, or a folder. Default: the manifest's."
        ),
    ] = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="local, or ray for a cluster.")] = "local",
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes that filter.")] = 1,
    on_error: Annotated[
        str, typer.Option(metavar="stop|skip", help="What to do with rows that cannot be read.")
    ] = "stop",
    as_json: AsJson = False,
) -> None:
    """Read, filter and deduplicate text, and write it with a report, a data card and token shards."""
    if on_error not in ("stop", "skip"):
        raise InvalidInputError(f"--on-error is stop or skip, got {on_error!r}", param="on_error")
    import dataclasses

    from ossia.training.data.corpus.build import build as build_corpus
    from ossia.training.data.corpus.build import load_named_tokenizer
    from ossia.training.data.sources.manifest import load_manifest

    read = load_manifest(manifest)
    if tokenizer is not None:
        read = dataclasses.replace(read, tokenizer=tokenizer)
    place = None if tokenizer is not None else read.folder
    loaded = load_named_tokenizer(read.tokenizer, folder=place) if read.tokenizer else None
    with progress_bar("reading") as show:
        record = build_corpus(
            read,
            out,
            tokenizer=loaded,
            engine=engine,
            workers=workers,
            skip_bad=on_error == "skip",
            on_progress=show,
        )
    if as_json:
        typer.echo(json.dumps(record))
        return
    print_steps(record)
    typer.echo(f"the corpus is in {out}; its card is {out / 'README.md'}")


def print_steps(record: dict[str, Any]) -> None:
    """Documents in and out of each step, as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "in", "out", "dropped because")
    for found in record["steps"]:
        reasons = "\n".join(f"{reason}: {count:,}" for reason, count in list(found["reasons"].items())[:5])
        table.add_row(found["step"], f"{found['in']:,}", f"{found['out']:,}", strip_controls(reasons))
    Console().print(table)
    if bad := sum(source["unreadable"] for source in record["sources"].values()):
        typer.echo(f"{bad:,} rows could not be read and were skipped")


def shard(
    corpus: Corpus,
    tokenizer: Annotated[str, typer.Option(metavar="NAME|DIR", help="o200k_harmony, nano, or a folder.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: DIR/tokens of the corpus.", show_default=False)
    ] = None,
) -> None:
    """Make token shards of a corpus for another tokenizer."""
    from ossia.training.data.corpus.build import load_named_tokenizer
    from ossia.training.data.corpus.build import shard as make_shards

    loaded = load_named_tokenizer(tokenizer)
    with progress_bar("encoding") as show:
        count = make_shards(corpus, out, tokenizer=loaded, tokenizer_name=tokenizer, on_progress=show)
    typer.echo(f"{count:,} tokens are in {out or corpus / 'tokens'}")


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus, or a folder of token shards.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read all of it and compare checksums.")] = False,
    show: Annotated[int, typer.Option(metavar="N", help="Print the first N documents of the shuffled order.")] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="To print text, and to check against.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what token shards hold: sources, counts, lengths; and documents as they will be seen."""
    from ossia.training.data.corpus.build import load_named_tokenizer
    from ossia.training.data.shards.inspect import describe
    from ossia.training.data.shards.order import MixOrder
    from ossia.training.data.shards.reader import ShardedTokens

    loaded = None if tokenizer is None else load_named_tokenizer(tokenizer)
    shards = ShardedTokens(folder, tokenizer=loaded, verify=verify)
    record = describe(shards)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        for name, value in record.items():
            if name != "sources":
                typer.echo(f"{name.replace('_', ' ')}: {f'{value:,}' if isinstance(value, int) else value}")
        for source in record["sources"]:
            typer.echo(
                f"  {source['name']}: {source['documents']:,} documents, {source['tokens']:,} tokens, "
                f"{source['repeats']:.3g} times a pass"
            )
    order = MixOrder(shards, seed=seed, epoch=0)
    for place in range(min(show, len(order))):
        number = order[place]
        ids = shards.document(number).tolist()
        text = " ".join(map(str, ids[:60])) if loaded is None else strip_controls(loaded.decode(ids))
        typer.echo(f"\n--- document {number} of {shards.source(number)}, {len(ids)} tokens\n{text}")


def card(corpus: Corpus) -> None:
    """Print the data card of a corpus."""
    from ossia.training.data.corpus.card import to_card

    typer.echo(to_card(corpus), nl=False)
