"""`ossia train vocabulary`: the tokenizer of a new small model, chosen for its recipe's mix."""

from __future__ import annotations

from typing import Annotated

import typer

from ossia.cli.options import examples
from ossia.cli.train.options import Out, Overrides, Recipe, parse_overrides
from ossia.core.errors import InvalidInputError

EXAMPLES = examples(
    "ossia train vocabulary --recipe tiny --out runs/tiny",
    "ossia data shard data/corpus --tokenizer runs/tiny/tokenizer",
    "ossia train pretrain --recipe tiny --out runs/tiny",
)


def command(
    recipe: Recipe,
    out: Out,
    num_examples: Annotated[
        int, typer.Option("--examples", metavar="N", help="Examples of the mix whose tokens are counted.")
    ] = 60_000,
    by: Annotated[
        str, typer.Option(metavar="NAME", help="frequency: the tokens that the mix uses most; rank: o200k's first.")
    ] = "frequency",
    overrides: Overrides = None,
) -> None:
    """Choose a vocabulary for a recipe: the tokens of o200k that its mix uses most.

    The tokenizer is the folder DIR/tokenizer, where `ossia train pretrain` with the same DIR finds it. One that is
    there is kept.
    """
    values = parse_overrides(overrides)

    from rich.console import Console

    from ossia.training.config import load_recipe
    from ossia.training.vocabulary import prepare_tokenizer

    config = load_recipe(recipe, overrides=values)
    if config.init is not None:
        raise InvalidInputError(
            f"the recipe begins with the model {config.init!r} and keeps its tokenizer; only a recipe without init "
            "chooses one",
            param="init",
        )
    with Console(stderr=True).status("counting tokens"):
        tokenizer = prepare_tokenizer(config, out, num_examples=num_examples, by=by)
    typer.echo(f"{tokenizer.vocab_size:,} tokens in {out / 'tokenizer'}")
