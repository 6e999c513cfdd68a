"""Several evaluations side by side: what each change of the procedure cost or brought."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ossia.core.errors import InvalidInputError
from ossia.evals.report import format_accuracy, markdown_table, task_title
from ossia.evals.results import Cell, EvalResults, PartCount, read_results
from ossia.harmony.message import Effort


def compare(paths: Sequence[Path], *, effort: Effort = Effort.HIGH) -> str:
    """A Markdown table: a row a task, a column a file, named by it. The others are held against the first.

    A difference is marked where the intervals do not meet: `+` above the first, `-` below it.

    Raises:
        InvalidInputError: there is no file, or they share no task at this effort.
        CorruptFileError: a file holds no results.
    """
    if not paths:
        raise InvalidInputError("give at least one file of results to compare", param="table")
    return render_comparison({path.stem: read_results(path) for path in paths}, effort=effort)


def render_comparison(results: dict[str, EvalResults], *, effort: Effort = Effort.HIGH) -> str:
    """The table of `compare`, of results by name."""
    first = next(iter(results.values()))
    tasks = [task for task in first.tasks if first.cell(task, effort) is not None]
    if not tasks:
        raise InvalidInputError(f"the first file has no results at {effort.value} effort", param="effort")
    rows = [
        [
            task_title(task),
            *(format_compared(one.cell(task, effort), first.cell(task, effort)) for one in results.values()),
        ]
        for task in tasks
    ]
    means = [_mean([one.cell(task, effort) for task in tasks]) for one in results.values()]
    cleans = [_clean([one.cell(task, effort) for task in tasks]) for one in results.values()]
    return markdown_table(
        [f"task, {effort.value} effort", *results], [*rows, ["mean of tasks", *means], ["parsed clean", *cleans]]
    )


def format_compared(counted: Cell | PartCount | None, reference: Cell | PartCount | None) -> str:
    """An accuracy with its interval, and the mark of `compare`; empty where nothing was asked."""
    if counted is None:
        return ""
    mark = ""
    if reference is not None and counted.interval.low > reference.interval.high:
        mark = " +"
    elif reference is not None and counted.interval.high < reference.interval.low:
        mark = " -"
    return format_accuracy(counted) + mark


def _mean(cells: Sequence[Cell | None]) -> str:
    found = [cell for cell in cells if cell is not None]
    return f"{100 * sum(cell.accuracy for cell in found) / len(found):.1f} %" if len(found) == len(cells) else ""


def _clean(cells: Sequence[Cell | None]) -> str:
    found = [cell for cell in cells if cell is not None]
    total = sum(cell.num_problems for cell in found)
    return f"{100 * sum(cell.num_clean for cell in found) / total:.2f} %" if total else ""
