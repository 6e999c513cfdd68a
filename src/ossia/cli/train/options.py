"""Options that the commands of `ossia train` share."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from ossia.core.errors import InvalidInputError

Recipe = Annotated[
    str, typer.Option("--recipe", metavar="NAME|PATH", help="A recipe of recipes/, or a path to a TOML file.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where checkpoints, logs and the model go.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the recipe: --set run.steps=100. Repeatable."),
]


def parse_overrides(texts: list[str] | None) -> dict[str, Any]:
    """All that `--set` gave, by dotted key. Raises as `parse_override`."""
    return dict(parse_override(text) for text in texts or ())


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
