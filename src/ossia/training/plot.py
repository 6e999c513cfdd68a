"""Pictures of a run: loss, learning rate, gradient norm, and how evenly the experts are used (extra `train`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ossia.core.errors import MissingExtraError
from ossia.training.metrics import StepReport, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "metrics.png"


def has_matplotlib() -> bool:
    """Whether `plot_run` can work here."""
    return find_spec("matplotlib") is not None


def plot_run(folder: Path) -> Path:
    """Draw the metrics of a run to `metrics.png` in its folder.

    Raises:
        MissingExtraError: matplotlib is not installed.
        MissingFileError, CorruptFileError: the folder has no metrics that can be read.
    """
    reports = read_metrics(folder)
    if not has_matplotlib():
        raise MissingExtraError("matplotlib", extra="train")
    # The object interface draws without a display and leaves a caller's pyplot state alone.
    from matplotlib.figure import Figure

    figure: Figure = Figure(figsize=(11, 7), dpi=120, layout="constrained")
    loss, rate, norm, loads = figure.subplots(2, 2).flat
    _draw(loss, reports, [report.loss for report in reports], "loss")
    _draw(rate, reports, [report.lr_scale for report in reports], "learning rate, of its peak")
    _draw(norm, reports, [report.grad_norm for report in reports], "gradient norm")
    norm.set_yscale("log")
    _draw_loads(figure, loads, reports)
    path = folder / FILE
    figure.savefig(path, format="png")
    return path


def _draw(axes: Axes, reports: list[StepReport], values: list[float], title: str) -> None:
    axes.plot([report.step for report in reports], values, linewidth=1, marker="." if len(values) < 3 else "")
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(visible=True, alpha=0.3)


def _draw_loads(figure: Figure, axes: Axes, reports: list[StepReport]) -> None:
    """A row a layer: the busiest expert's load over time; even is 1."""
    busiest = [[max(layer) for layer in report.loads] for report in reports]
    steps = [report.step for report in reports]
    image = axes.imshow(
        list(zip(*busiest, strict=True)),
        aspect="auto",
        origin="lower",
        vmin=1.0,
        vmax=max(2.0, *(max(row) for row in busiest)),
        extent=(steps[0], max(steps[-1], steps[0] + 1), -0.5, len(busiest[0]) - 0.5),
    )
    axes.set_title("busiest expert's load, of an even one")
    axes.set_xlabel("step")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes)
