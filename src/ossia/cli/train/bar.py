"""What a run shows while it goes on: a bar, and a line for each report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ossia.training.metrics import StepReport


@contextmanager
def training_bar() -> Iterator[Callable[[StepReport, float], None]]:
    """Open a bar on stderr; gives what `Trainer.train` takes as `on_log`."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        item = bar.add_task("training", total=1.0)

        def show(report: StepReport, done: float) -> None:
            bar.update(item, completed=done)
            bar.console.print(describe(report, done), highlight=False)

        yield show


def describe(report: StepReport, done: float) -> str:
    """A report as one line."""
    speed = f"{report.tokens_per_second:,.0f} tokens/s"
    if report.mfu is not None:
        speed += f" ({report.mfu:.1%} MFU)"
    skipped = f"  {report.skipped} steps left out" if report.skipped else ""
    return (
        f"{done:4.0%}  step {report.step:,}  loss {report.loss:.4f}  {speed}  "
        f"busiest expert {report.max_load:.2f} x even{skipped}"
    )
