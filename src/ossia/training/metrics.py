"""What a run says of itself: a report every so many steps, to JSON lines and to TensorBoard."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from ossia.core.errors import CorruptFileError, MissingExtraError, MissingFileError
from ossia.core.files import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FILE = "metrics.jsonl"
EVENTS = "tensorboard"


class StepReport(NamedTuple):
    """What is logged every so many steps.

    Attributes:
        step: of the run.
        loss: cross-entropy of this step.
        balance, router_z: side losses; balance is 1 where the experts' load is even.
        max_load: the busiest expert's share over the even one, the worst layer counting.
        grad_norm: before clipping.
        lr_scale: of the peak learning rates.
        skipped: steps that the guard has left out so far.
        tokens_per_second: since the last report, over all processes.
        mfu: share of the devices' peak; None where that is not known.
        seconds: trained so far, over all parts of the run.
        loads: by layer and expert, each one's share over the even one.
    """

    step: int
    loss: float
    balance: float
    router_z: float
    max_load: float
    grad_norm: float
    lr_scale: float
    skipped: int
    tokens_per_second: float
    mfu: float | None
    seconds: float
    loads: list[list[float]]


Progress = Callable[[StepReport, float], None]
"""Called at each log with the report and the share of the run that is done."""


def has_tensorboard() -> bool:
    """Whether events can be written here."""
    return find_spec("tensorboard") is not None


class MetricsLog:
    """Appends reports to the files of a run; without a file it keeps nothing."""

    def __init__(self, file: TextIO | None, events: SummaryWriter | None) -> None:
        self._file = file
        self._events = events

    def add(self, report: StepReport) -> None:
        """Write a report; it is on its way to the disk when this returns."""
        if self._file is None:
            return
        self._file.write(json.dumps(report._asdict()) + "\n")
        self._file.flush()
        if self._events is None:
            return
        for name, value in report._asdict().items():
            if isinstance(value, int | float) and name != "step":
                self._events.add_scalar(f"train/{name}", value, report.step)
        for layer, loads in enumerate(report.loads):
            self._events.add_scalar(f"max_load/layer_{layer}", max(loads), report.step)


@contextlib.contextmanager
def open_metrics(
    folder: Path, *, first: int, tensorboard: bool | None = None, is_writing: bool = True
) -> Iterator[MetricsLog]:
    """Open a run's files to go on after step `first`: what a run that was killed had written beyond is dropped.

    Args:
        folder: of the run.
        first: the step that the run stands at.
        tensorboard: whether to write events as well; None means if it is installed.

        is_writing: false in all processes of a run but one.

    Raises:
        MissingExtraError: events were asked for and TensorBoard is not installed.
    """
    if tensorboard and not has_tensorboard():
        raise MissingExtraError("tensorboard", extra="train")
    if not is_writing:
        yield MetricsLog(None, None)
        return
    path = folder / FILE
    rows = [row for row in _rows(path) if row["step"] <= first] if path.is_file() else []
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    events = None
    if tensorboard or (tensorboard is None and has_tensorboard()):
        from torch.utils.tensorboard.writer import SummaryWriter

        events = SummaryWriter(str(folder / EVENTS), purge_step=first + 1 if first else None)
    with path.open("a", encoding="utf-8") as file:
        try:
            yield MetricsLog(file, events)
        finally:
            if events is not None:
                events.close()


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file that are whole: the last one of a run that was killed may be cut off."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def read_metrics(folder: Path) -> list[StepReport]:
    """The reports of a run.

    Raises:
        MissingFileError: the folder has none.
        CorruptFileError: they are of another version.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingFileError(f"{folder} has no {FILE}; give the folder of a training run")
    try:
        reports = [StepReport(**row) for row in _rows(path)]
    except TypeError as error:
        raise CorruptFileError(f"{path} is of another version of Ossia ({error})") from error
    if not reports:
        raise MissingFileError(f"{path} holds no report yet; wait until the run has logged a step")
    return reports
