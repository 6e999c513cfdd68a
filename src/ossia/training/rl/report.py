"""What a run tells: a report a step, one a validation, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from ossia.core.errors import StorageError
from ossia.training.rl.advantage import has_signal
from ossia.training.rl.learner import LearnReport
from ossia.training.rl.trajectory import Group, Trajectory

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

METRICS, EVENTS = "metrics.jsonl", "tensorboard"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One step.

    Attributes:
        step: counted from 1.
        reward: mean over episodes.
        pass_rate: share of right answers.
        clean: share of answers that were ended by the model and parsed without repair.
        pass_by_effort, tokens_by_effort: the same, and mean tokens written, by effort.
        groups, used_groups: how many there were, and how many of them had rewards that differ.
        lr_scale: learning rates over their peaks.
        learned: what the update was like; None if nothing was to be learned.
    """

    step: int
    reward: float
    pass_rate: float
    clean: float
    pass_by_effort: Mapping[str, float]
    tokens_by_effort: Mapping[str, float]
    groups: int
    used_groups: int
    lr_scale: float
    learned: LearnReport | None

    def scalars(self) -> dict[str, float]:
        """All of it as numbers by name."""
        named: dict[str, float] = {
            "reward": self.reward,
            "pass_rate": self.pass_rate,
            "clean": self.clean,
            **{f"pass_rate/{effort}": value for effort, value in self.pass_by_effort.items()},
            **{f"tokens/{effort}": value for effort, value in self.tokens_by_effort.items()},
            "groups": self.groups,
            "used_groups": self.used_groups,
            "lr_scale": self.lr_scale,
        }
        if self.learned is not None:
            named |= {f"gate/{name}": value for name, value in self.learned.difference._asdict().items()}
            named |= {name: value for name, value in self.learned._asdict().items() if name != "difference"}
        return named


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ValidationReport:
    """Greedy answers to held-out problems.

    Attributes:
        step: after how many steps.
        score: mean pass rate over tasks and efforts, by which the best weights are chosen.
        pass_rates: by "task/effort".
        tokens: mean tokens written, likewise.
        clean: share of answers that were ended by the model and parsed without repair.
    """

    step: int
    score: float
    pass_rates: Mapping[str, float]
    tokens: Mapping[str, float]
    clean: float

    def scalars(self) -> dict[str, float]:
        """All of it as numbers by name."""
        return {
            "validation/score": self.score,
            "validation/clean": self.clean,
            **{f"validation/{cell}": value for cell, value in self.pass_rates.items()},
            **{f"validation/tokens/{cell}": value for cell, value in self.tokens.items()},
        }


def summarize_step(groups: Sequence[Group], *, step: int, lr_scale: float, learned: LearnReport | None) -> StepReport:
    """Count a step's episodes."""
    episodes = [trajectory for group in groups for trajectory in group.trajectories]
    by_effort: dict[str, list[Trajectory]] = {}
    for episode in episodes:
        by_effort.setdefault(episode.effort.value, []).append(episode)
    return StepReport(
        step=step,
        reward=_mean([episode.reward for episode in episodes]),
        pass_rate=_mean([episode.is_right for episode in episodes]),
        clean=_mean([episode.is_clean for episode in episodes]),
        pass_by_effort={effort: _mean([e.is_right for e in own]) for effort, own in by_effort.items()},
        tokens_by_effort={effort: _mean([e.num_tokens for e in own]) for effort, own in by_effort.items()},
        groups=len(groups),
        used_groups=sum(has_signal(group.rewards) for group in groups),
        lr_scale=lr_scale,
        learned=learned,
    )


def summarize_validation(episodes: Sequence[Trajectory], *, step: int) -> ValidationReport:
    """Count answers, a cell for each task and effort."""
    cells: dict[str, list[Trajectory]] = {}
    for episode in episodes:
        cells.setdefault(f"{episode.problem.task}/{episode.effort.value}", []).append(episode)
    pass_rates = {cell: _mean([episode.is_right for episode in own]) for cell, own in cells.items()}
    return ValidationReport(
        step=step,
        score=_mean(list(pass_rates.values())),
        pass_rates=pass_rates,
        tokens={cell: _mean([episode.num_tokens for episode in own]) for cell, own in cells.items()},
        clean=_mean([episode.is_clean for episode in episodes]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class MetricsLog:
    """metrics.jsonl of a run, a row a report, and TensorBoard's events. What a resumed run will do again is taken out.

    Args:
        folder: the run's.
        step: steps done; later rows go.
        tensorboard: write events, if TensorBoard is installed.

    Raises:
        StorageError: it cannot be written.
    """

    def __init__(self, folder: Path, *, step: int, tensorboard: bool) -> None:
        self._path = folder / METRICS
        self._file: IO[str] | None = None
        self._events: SummaryWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                rows = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
                self._path.write_text("".join(row for row in rows if _step_of(row) <= step), encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8")
            if tensorboard and find_spec("tensorboard") is not None:
                from torch.utils.tensorboard.writer import SummaryWriter

                self._events = SummaryWriter(str(folder / EVENTS), purge_step=step + 1 if step else None)
        except OSError as error:
            raise StorageError(f"cannot write {self._path} ({error}); free some space and resume") from error

    def write(self, report: StepReport | ValidationReport) -> None:
        """Add a row."""
        assert self._file is not None
        self._file.write(json.dumps({"step": report.step, **report.scalars()}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in report.scalars().items():
                self._events.add_scalar(name, value, report.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _step_of(row: str) -> float:
    """The step of a row; one that was cut off when a run was killed has none and goes."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
