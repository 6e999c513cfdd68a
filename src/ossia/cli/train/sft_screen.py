"""What `ossia train sft` shows of a run: to a person, or to a program."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ossia.training.data.chat.file import BadRow
    from ossia.training.sft import SftData, SftProgress, SftResult

_SHOWN = 5
"""So many of the rows left out are shown."""


class Screen:
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


class JsonScreen:
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
