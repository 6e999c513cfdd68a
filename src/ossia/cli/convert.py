"""`ossia convert`: write a model in another checkpoint format."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ossia.cli.options import examples

EXAMPLES = examples(
    "ossia convert openai/gpt-oss-20b gpt-oss-20b-bf16 --format hf-bf16",
    "ossia convert nano nano-original --format original",
)


class Format(StrEnum):
    """The three layouts in which gpt-oss models are found."""

    HF_MXFP4 = "hf-mxfp4"
    HF_BF16 = "hf-bf16"
    ORIGINAL = "original"


def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help='"nano", a pulled model, or a model folder.')],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    target_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="hf-mxfp4: as on the hub, experts in 4 bits. hf-bf16: what fine-tuning tools write. "
            "original: OpenAI's own layout.",
        ),
    ],
) -> None:
    """Write a model in another checkpoint format.

    It goes tensor by tensor, so memory stays small; DST appears once everything is written.
    """
    from rich.console import Console
    from rich.progress import Progress

    from ossia.model.checkpoint.convert import convert
    from ossia.model.checkpoint.load import resolve_model

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        item = bar.add_task("converting", total=None)
        convert(
            resolve_model(source),
            target,
            format=target_format.value,
            progress=lambda done, total: bar.update(item, completed=done, total=total),
        )
    typer.echo(f"wrote {target} ({target_format.value})")
