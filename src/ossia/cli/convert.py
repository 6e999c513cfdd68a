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
    "ossia convert nano nano.gguf --format gguf --dense q8_0",
)


class Format(StrEnum):
    """The three layouts in which gpt-oss models are found, and llama.cpp's."""

    HF_MXFP4 = "hf-mxfp4"
    HF_BF16 = "hf-bf16"
    ORIGINAL = "original"
    GGUF = "gguf"


class Dense(StrEnum):
    """How a GGUF holds what is not an expert."""

    BF16 = "bf16"
    F16 = "f16"
    Q8_0 = "q8_0"


def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help='"nano", a pulled model, or a model folder.')],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write, or the file NAME.gguf.")],
    target_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="hf-mxfp4: as on the hub, experts in 4 bits. hf-bf16: what fine-tuning tools write. "
            "original: OpenAI's own layout. gguf: one file for llama.cpp, experts in MXFP4.",
        ),
    ],
    dense: Annotated[
        Dense | None,
        typer.Option(
            help="For gguf: attention, embeddings and lm_head as bf16 (exact; the default), f16, or q8_0 (8 bits).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a model in another checkpoint format.

    It goes tensor by tensor, so memory stays small; DST appears once everything is written.
    """
    if dense is not None and target_format is not Format.GGUF:
        raise typer.BadParameter(f"--dense is for --format gguf, not {target_format.value}", param_hint="--dense")
    from rich.console import Console
    from rich.progress import Progress

    from ossia.model.checkpoint.convert import convert
    from ossia.model.checkpoint.gguf import write_gguf
    from ossia.model.checkpoint.load import resolve_model

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        item = bar.add_task("converting", total=None)
        folder = resolve_model(source)

        def show(done: int, total: int) -> None:
            bar.update(item, completed=done, total=total)

        if target_format is Format.GGUF:
            write_gguf(folder, target, dense=(dense or Dense.BF16).value, progress=show)
        else:
            convert(folder, target, format=target_format.value, progress=show)
    typer.echo(f"wrote {target} ({target_format.value})")
