"""What an evaluation measures and how it is kept: a table of cells, one a task and effort, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ossia.core.errors import CorruptFileError, InvalidInputError
from ossia.harmony.message import Effort

FORMAT = 2
"""Version of the JSON form. 1 had neither parts nor validity; it is still read."""
BENIGN = "benign"
"""How the parts of a task begin that are benign twins of something to refuse: to refuse them is over-refusal."""
Z_95 = 1.959963984540054
"""The normal distribution's quantile for a two-sided 95 % interval."""


class Interval(NamedTuple):
    """A confidence interval of a share."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int, *, z: float = Z_95) -> Interval:
    """The Wilson score interval of a share, which stays inside [0, 1] and is right near its ends (Wilson, 1927)."""
    if trials == 0:
        return Interval(0.0, 1.0)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At the ends the bound is exact; rounding must not move it to the other side of the share.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One wrong answer, kept to be read.

    Attributes:
        prompt: what the user asked.
        expected: the right answer.
        final: the final message, or None when there was none.
        completion: all that was generated, control tokens included.
        repairs: kinds of the repairs that the parser made.
        is_capped: whether generation stopped only because the token budget was spent.
    """

    prompt: str
    expected: str
    final: str | None
    completion: str
    repairs: tuple[str, ...]
    is_capped: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PartCount:
    """The problems of one part of a task (`Problem.part`): numbers of six digits, benign twins."""

    name: str
    num_problems: int
    num_correct: int

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.num_correct / self.num_problems

    @property
    def interval(self) -> Interval:
        """The 95 % Wilson interval of the accuracy."""
        return wilson_interval(self.num_correct, self.num_problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One task at one effort.

    Attributes:
        num_problems: how many distinct held-out problems were asked; a task with few of them has all of them here.
        num_correct: how many final messages the task graded as right.
        num_clean: how many completions parsed without any repair.
        num_capped: how many completions spent the whole token budget.
        mean_tokens: generated tokens a problem, reasoning and control tokens included.
        failures: the first few wrong answers.
        parts: the problems by part, for tasks that tell them apart.
        num_valid: answers that are valid by the response format's schema; None where none is given.
    """

    task: str
    effort: Effort
    num_problems: int
    num_correct: int
    num_clean: int
    num_capped: int
    mean_tokens: float
    failures: tuple[Failure, ...] = ()
    parts: tuple[PartCount, ...] = ()
    num_valid: int | None = None

    @property
    def over_refusal(self) -> PartCount | None:
        """The benign twins together, as wrong answers among them; None for a task without any."""
        benign = [part for part in self.parts if part.name.startswith(BENIGN)]
        if not benign:
            return None
        total = sum(part.num_problems for part in benign)
        return PartCount(name=BENIGN, num_problems=total, num_correct=total - sum(part.num_correct for part in benign))

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.num_correct / self.num_problems

    @property
    def interval(self) -> Interval:
        """The 95 % Wilson interval of the accuracy."""
        return wilson_interval(self.num_correct, self.num_problems)

    @property
    def clean_share(self) -> float:
        """The share of completions parsed without repair."""
        return self.num_clean / self.num_problems

    @property
    def capped_share(self) -> float:
        """The share of completions that spent the token budget."""
        return self.num_capped / self.num_problems


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResults:
    """A whole evaluation, with all that is needed to repeat it.

    Attributes:
        model: the name under which the model was loaded.
        weights_sha256: hash of the model folder's safetensors files; empty for a model that is not on disk.
        seed: seeds the drawing of problems, which is the only randomness: generation is greedy.
        max_tokens: the token budget of one answer.
        dtype: of the activations.
        grammar: whether calls and structured answers were held to their schemas while they were written.
        seconds: wall time of generation and grading.
        environment: hardware and versions, see `environment.describe`.
    """

    model: str
    weights_sha256: str
    seed: int
    max_tokens: int
    dtype: str
    seconds: float
    environment: Mapping[str, str]
    cells: tuple[Cell, ...]
    grammar: bool = True

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were measured."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def efforts(self) -> tuple[Effort, ...]:
        """The efforts, in the order in which they were measured."""
        return tuple(dict.fromkeys(cell.effort for cell in self.cells))

    def cell(self, task: str, effort: Effort) -> Cell | None:
        """The cell of a task and effort, None if it was not measured."""
        return next((cell for cell in self.cells if cell.task == task and cell.effort == effort), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types. Derived figures are written too, for readers that have no Wilson interval at hand."""
        record = {"format": FORMAT, **asdict(self)}
        record["environment"] = dict(self.environment)
        for entry, cell in zip(record["cells"], self.cells, strict=True):
            entry["effort"] = cell.effort.value
            entry["accuracy"] = round(cell.accuracy, 4)
            entry["interval_95"] = [round(bound, 4) for bound in cell.interval]
            entry["clean_share"] = round(cell.clean_share, 4)
            entry["capped_share"] = round(cell.capped_share, 4)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> EvalResults:
        """Read what `to_dict` wrote; derived figures are computed anew.

        Raises:
            CorruptFileError: a field is missing or has a wrong type.
        """
        if not isinstance(record, Mapping):
            raise CorruptFileError("these are not evaluation results: no JSON object; run `ossia eval` again")
        version = record.get("format", 1)
        if version not in (1, FORMAT):
            raise CorruptFileError(
                f"these results are of format {version!r}; this version of Ossia reads 1 to {FORMAT}: use a newer one"
            )
        try:
            cells = tuple(
                Cell(
                    task=entry["task"],
                    effort=Effort.parse(entry["effort"]),
                    num_problems=int(entry["num_problems"]),
                    num_correct=int(entry["num_correct"]),
                    num_clean=int(entry["num_clean"]),
                    num_capped=int(entry["num_capped"]),
                    mean_tokens=float(entry["mean_tokens"]),
                    failures=tuple(
                        Failure(**{**failure, "repairs": tuple(failure["repairs"])}) for failure in entry["failures"]
                    ),
                    parts=tuple(
                        PartCount(
                            name=part["name"],
                            num_problems=int(part["num_problems"]),
                            num_correct=int(part["num_correct"]),
                        )
                        for part in entry.get("parts", ())
                    ),
                    num_valid=None if entry.get("num_valid") is None else int(entry["num_valid"]),
                )
                for entry in record["cells"]
            )
            return cls(
                model=record["model"],
                weights_sha256=record["weights_sha256"],
                seed=int(record["seed"]),
                max_tokens=int(record["max_tokens"]),
                dtype=record["dtype"],
                grammar=bool(record.get("grammar", True)),
                seconds=float(record["seconds"]),
                environment=dict(record["environment"]),
                cells=cells,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"these are not evaluation results of this version ({error!r}); run `ossia eval` again"
            ) from error


def read_results(path: Path) -> EvalResults:
    """Read a results file written by `report.write_results`.

    Raises:
        InvalidInputError: the file cannot be read.
        CorruptFileError: it is not JSON or holds something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read ({error}); give the JSON that `ossia eval --out` wrote", param="table"
        ) from error
    except ValueError as error:
        raise CorruptFileError(f"{path} is not JSON ({error}); run `ossia eval` again") from error
    return EvalResults.from_dict(record)
