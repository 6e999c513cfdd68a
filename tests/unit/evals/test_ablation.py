from __future__ import annotations

import json
from pathlib import Path

import pytest

from ossia.core.errors import InvalidInputError
from ossia.evals import report
from ossia.evals.ablation import compare, render_comparison
from ossia.evals.results import Cell, EvalResults, PartCount
from ossia.harmony.message import Effort


def results(correct: int, *, parts: tuple[PartCount, ...] = ()) -> EvalResults:
    cell = Cell(
        task="add", effort=Effort.HIGH, num_problems=500, num_correct=correct, num_clean=499, num_capped=0,
        mean_tokens=30.0, parts=parts,
    )  # fmt: skip
    return EvalResults(
        model="nano",
        weights_sha256="",
        seed=0,
        max_tokens=512,
        dtype="float32",
        seconds=1.0,
        environment={},
        cells=(cell,),
    )


def test_files_stand_side_by_side(tmp_path: Path) -> None:
    paths = []
    for name, correct in (("whole", 490), ("no-rl", 400), ("no-qat", 488)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(results(correct).to_dict()))
        paths.append(path)
    lines = compare(paths).splitlines()
    assert lines[0] == "| task, high effort | whole | no-rl | no-qat |"
    assert lines[2].count(" -") == 1
    assert "80.0 %" in lines[2]
    assert lines[-1] == "| parsed clean | 99.80 % | 99.80 % | 99.80 % |"


def test_there_must_be_something_to_compare() -> None:
    with pytest.raises(InvalidInputError, match="at least one file"):
        compare([])
    with pytest.raises(InvalidInputError, match="low effort"):
        render_comparison({"a": results(1)}, effort=Effort.LOW)


def test_over_refusal_is_told_beside_refusal() -> None:
    parts = (
        PartCount(name="benign", num_problems=100, num_correct=96),
        PartCount(name="benign word", num_problems=100, num_correct=99),
        PartCount(name="harmful", num_problems=300, num_correct=285),
    )
    measured = results(480, parts=parts)
    over = measured.cells[0].over_refusal
    assert over is not None
    assert (over.num_correct, over.num_problems) == (5, 200)
    page = report.render_page(measured, command="ossia eval nano")
    assert "## Refusal and over-refusal" in page
    assert "| add | high | 95.0 % (91.9 to 96.9) | 2.5 % (1.1 to 5.7) | 300 and 200 |" in page
    assert "## By part" in page
    assert EvalResults.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    assert results(1).cells[0].over_refusal is None
