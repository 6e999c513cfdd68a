"""A picture of what reasoning buys: accuracy against tokens, a panel a task, a point an effort (extra `train`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ossia.core.errors import MissingExtraError
from ossia.evals.results import Cell, EvalResults
from ossia.harmony.message import Effort

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 5
"""Panels a row, at most."""
MARKERS = {Effort.LOW: "o", Effort.MEDIUM: "s", Effort.HIGH: "^"}
MARKER_NAMES = {Effort.LOW: "circle", Effort.MEDIUM: "square", Effort.HIGH: "triangle"}


def has_matplotlib() -> bool:
    """Whether `plot_results` can work here."""
    return find_spec("matplotlib") is not None


def plot_results(results: EvalResults, path: Path) -> None:
    """Draw accuracy (with 95 % intervals) against mean generated tokens, and save it as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if not has_matplotlib():
        raise MissingExtraError("matplotlib", extra="train")
    # The object interface draws without a display and leaves a caller's pyplot state alone.
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(results.tasks))
    rows = math.ceil(len(results.tasks) / columns)
    size = (max(1.9 * columns, 4.0), 1.6 * rows + 0.9)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels: list[Axes] = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes, task in zip(panels, results.tasks, strict=False):
        _draw_task(axes, [cell for cell in results.cells if cell.task == task])
        axes.set_title(task.replace("_", " "), fontsize="small")
    for axes in panels[len(results.tasks) :]:
        axes.set_visible(False)
    efforts = ", ".join(f"{MARKER_NAMES[effort]} {effort.value}" for effort in results.efforts)
    figure.supxlabel(f"mean generated tokens ({efforts} effort)", fontsize="medium")
    figure.supylabel("accuracy on held-out problems", fontsize="medium")
    figure.suptitle(f"{results.model}: accuracy against tokens, by effort")
    figure.savefig(path, format="png")


def _draw_task(axes: Axes, cells: Sequence[Cell]) -> None:
    """One task's panel: a line through its efforts."""
    bars = [
        [max(0.0, cell.accuracy - cell.interval.low) for cell in cells],
        [max(0.0, cell.interval.high - cell.accuracy) for cell in cells],
    ]
    tokens, shares = [cell.mean_tokens for cell in cells], [cell.accuracy for cell in cells]
    drawn = axes.errorbar(tokens, shares, yerr=bars, capsize=2, linewidth=1)
    for cell in cells:
        colour = drawn.lines[0].get_color()
        axes.plot(cell.mean_tokens, cell.accuracy, marker=MARKERS[cell.effort], color=colour, linestyle="none", ms=4)
    axes.set_ylim(-0.04, 1.06)
    axes.grid(visible=True, alpha=0.3)
