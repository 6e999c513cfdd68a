"""`ossia train sft`: fine-tune a model on your own conversations."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.options import examples
from ossia.cli.train.options import Out, Overrides, parse_overrides

if TYPE_CHECKING:
    from ossia.training.data.chat_file import BadRow
    from ossia.training.sft import SftData, SftProgress, SftResult

EXAMPLES = examples(
    "ossia train sft --data mine.jsonl --out runs/mine",
    "ossia train sft --data mine.jsonl --out runs/mine --epochs 20 --keep-tasks 0.3",
    "ossia train sft --data mine.jsonl --model openai/gpt-oss-20b --out runs/mine --set data.sequence_length=4096",
    "ossia train check mine.jsonl",
)
_SHOWN = 5
"""So many of the rows left out are shown."""


def command(
    out: Out,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FILE", help="JSON lines, a conversation each; see docs/finetune.md.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="Begin with this model. Default: nano.", show_default=False)
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="A recipe of recipes/, or a path to a TOML file. Default: none is needed.",
            show_default=False,
        ),
    ] = None,
    on_error: Annotated[
        str | None,
        typer.Option(
            metavar="stop|skip", help="What a row that is no conversation does. Default: stop.", show_default=False
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(metavar="N", help="Passes over the file. Default: 3.", show_default=False)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", help="Learning rate of Muon; AdamW's is 0.3 of it. Default: 0.002.", show_default=False
        ),
    ] = None,
    val_share: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of the conversations held out. Default: 0.1.", show_default=False),
    ] = None,
    keep_tasks: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the training that is Ossia's own tasks, so that nano keeps them. Default: 0.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of text.")] = False,
    overrides: Overrides = None,
) -> None:
    """Teach a model your own conversations.

    All weights are trained. A run that was stopped goes on when it is begun again. The finished model is the folder
    DIR/model, its experts in MXFP4.
    """
    from ossia.training.sft_config import ADAMW_SHARE, load_sft_config

    given: dict[str, Any] = {
        "init": model,
        "data.on_error": on_error,
        "data.epochs": epochs,
        "data.val_share": val_share,
        "data.keep_tasks": keep_tasks,
        "optimizer.muon_lr": lr,
        "optimizer.adamw_lr": None if lr is None else lr * ADAMW_SHARE,
    }
    values = {key: value for key, value in given.items() if value is not None} | parse_overrides(overrides)
    config = load_sft_config(recipe=recipe, data=None if data is None else str(data), overrides=values)

    from ossia.training.sft import finetune

    screen = _JsonScreen() if as_json else _Screen()
    with screen:
        result = finetune(config, out, on_data=screen.data, on_log=screen.progress)
    if result.is_first:
        screen.result(result)


class _Screen:
    """Shows a run to a person: a bar and lines on stderr, the outcome on stdout."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._console = Console(stderr=True)
        self._bar = Progress(console=self._console, disable=not sys.stderr.isatty(), transient=True)
        self._item = self._bar.add_task("training", total=1.0)

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def data(self, data: SftData) -> None:
        held_out = f", {data.num_held_out} held out" if data.num_held_out else ""
        self._print(f"{data.num_rows} conversations to learn{held_out}, {data.steps} steps")
        for line in skipped_lines(data.skipped):
            self._print(line)

    def progress(self, news: SftProgress, done: float) -> None:
        from ossia.cli.train.bar import describe

        self._bar.update(self._item, completed=done)
        held_out = "" if news.held_out_loss is None else f"  held-out loss {news.held_out_loss:.4f}"
        self._print(describe(news.report, done) + held_out)

    def result(self, result: SftResult) -> None:
        if not math.isnan(result.before):
            typer.echo(f"held-out loss {result.before:.4f} before, {result.after:.4f} after")
        typer.echo(f"the model is in {result.folder}; talk to it with: ossia chat {result.folder}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _JsonScreen:
    """Tells a run to a program: a JSON object a line on stdout."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def data(self, data: SftData) -> None:
        skipped = [bad._asdict() for bad in data.skipped]
        _write("data", rows=data.num_rows, held_out=data.num_held_out, steps=data.steps, skipped=skipped)

    def progress(self, news: SftProgress, done: float) -> None:
        _write("progress", done=round(done, 4), **news.report._asdict(), held_out_loss=news.held_out_loss)

    def result(self, result: SftResult) -> None:
        losses = {"before": result.before, "after": result.after}
        held_out = {key: None if math.isnan(value) else value for key, value in losses.items()}
        _write("result", model=str(result.folder), held_out_loss=held_out)


def _write(kind: str, **values: Any) -> None:
    typer.echo(json.dumps({"kind": kind, **values}))


def skipped_lines(skipped: tuple[BadRow, ...]) -> list[str]:
    """What to say of the rows that were left out: how many, and the first few."""
    if not skipped:
        return []
    first = [f"  line {line}: {reason}" for line, reason in skipped[:_SHOWN]]
    more = [f"  and {len(skipped) - _SHOWN} more"] if len(skipped) > _SHOWN else []
    return [f"{len(skipped)} rows left out:", *first, *more]
