from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import CorruptFileError, InvalidInputError
from ossia.evals.results import Cell, EvalResults, Failure, read_results, wilson_interval
from ossia.harmony.message import Effort


def make_results() -> EvalResults:
    failure = Failure(
        prompt="2 + 2", expected="4", final="5", completion="<|channel|>final", repairs=("x",), is_capped=False
    )
    return EvalResults(
        model="tiny",
        weights_sha256="ab" * 32,
        seed=3,
        max_tokens=64,
        dtype="float32",
        seconds=1.5,
        environment={"hardware": "a machine", "python": "3.11"},
        cells=(
            Cell(
                task="add",
                effort=Effort.LOW,
                num_problems=10,
                num_correct=8,
                num_clean=9,
                num_capped=1,
                mean_tokens=5.5,
                failures=(failure,),
            ),
            Cell(
                task="add",
                effort=Effort.HIGH,
                num_problems=10,
                num_correct=10,
                num_clean=10,
                num_capped=0,
                mean_tokens=80,
            ),
        ),
    )


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Published values of the score interval (Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_stays_a_share(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert high > low


def test_wilson_interval_of_nothing_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0, 1)


def test_results_survive_json() -> None:
    results = make_results()
    assert EvalResults.from_dict(json.loads(json.dumps(results.to_dict()))) == results


def test_json_carries_derived_figures() -> None:
    cell = make_results().to_dict()["cells"][0]
    assert cell["accuracy"] == 0.8
    assert cell["interval_95"] == [0.4902, 0.9433]
    assert cell["capped_share"] == 0.1
    assert cell["clean_share"] == 0.9


def test_tasks_and_efforts_keep_their_order() -> None:
    results = make_results()
    assert results.tasks == ("add",)
    assert results.efforts == (Effort.LOW, Effort.HIGH)
    assert results.cell("add", Effort.MEDIUM) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": 3}', '{"cells": [{"task": "add"}]}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match="ossia eval"):
        read_results(path)


def test_results_of_the_first_format_are_read_and_those_of_a_later_one_are_not() -> None:
    record = make_results().to_dict()
    assert record.pop("format") == 2
    for cell in record["cells"]:
        del cell["parts"], cell["num_valid"]
    del record["grammar"]
    assert EvalResults.from_dict(record) == make_results()
    with pytest.raises(CorruptFileError, match="format 3"):
        EvalResults.from_dict({**record, "format": 3})


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"absent\.json cannot be read .* `ossia eval --out` wrote"):
        read_results(tmp_path / "absent.json")
