"""A progress bar for whoever shows one; the functions themselves only call back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ossia.model.checkpoint.stream import Progress


@contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """Shows a bar on standard error while the block runs, and yields what moves it; nothing if that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
