"""A picture of what reasoning buys: accuracy against tokens, a line a task, a point an effort (extra `train`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ossia.core.errors import MissingExtraError
from ossia.evals.results import EvalResults
from ossia.harmony.message import Effort

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes: Axes = figure.subplots()
    for task in results.tasks:
        cells = [cell for cell in results.cells if cell.task == task]
        tokens = [cell.mean_tokens for cell in cells]
        shares = [cell.accuracy for cell in cells]
        bars = [
            [max(0.0, cell.accuracy - cell.interval.low) for cell in cells],
            [max(0.0, cell.interval.high - cell.accuracy) for cell in cells],
        ]
        drawn = axes.errorbar(tokens, shares, yerr=bars, capsize=2, linewidth=1, label=task.replace("_", " "))
        for cell in cells:
            colour = drawn.lines[0].get_color()
            axes.plot(cell.mean_tokens, cell.accuracy, marker=MARKERS[cell.effort], color=colour, linestyle="none")
    efforts = ", ".join(f"{MARKER_NAMES[effort]} {effort.value}" for effort in results.efforts)
    axes.set_xlabel(f"mean generated tokens ({efforts} effort)")
    axes.set_ylabel("accuracy on held-out problems")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(f"{results.model}: accuracy against tokens, by effort")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, format="png")
