from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ossia.cli.options import split_names
from ossia.evals.ordinary import OrdinaryAnswer
from ossia.evals.results import Cell, EvalResults
from ossia.harmony.message import Effort
from ossia.tasks.registry import TASKS


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Evaluations get four of five right at once; what was asked for is kept."""
    asked = SimpleNamespace(model=None, kwargs={})

    def load_evaluated(name: str, **_: Any) -> str:
        asked.model = name
        return name

    def run_eval(evaluated: str, **kwargs: Any) -> EvalResults:
        asked.kwargs = kwargs
        kwargs["progress"](1, 1)
        cells = tuple(
            Cell(task=task, effort=effort, num_problems=5, num_correct=4, num_clean=5, num_capped=0, mean_tokens=12.0)
            for effort in kwargs["efforts"]
            for task in kwargs["tasks"]
        )
        return EvalResults(
            model=evaluated,
            weights_sha256="",
            seed=kwargs["seed"],
            max_tokens=kwargs["max_tokens"],
            dtype="float32",
            seconds=1.0,
            environment={},
            cells=cells,
        )

    monkeypatch.setattr("ossia.evals.run.load_evaluated", load_evaluated)
    monkeypatch.setattr("ossia.evals.run.run_eval", run_eval)
    return asked


def test_all_tasks_and_efforts_unless_told_otherwise(run: Any, asked: SimpleNamespace) -> None:
    result = run("eval")
    assert result.exit_code == 0, result.output
    assert asked.model == "nano"
    assert list(asked.kwargs["tasks"]) == list(TASKS)
    assert asked.kwargs["efforts"] == list(Effort)
    assert asked.kwargs["num_problems"] == 500
    assert "80.0" in result.stdout


def test_a_choice_as_json(run: Any, asked: SimpleNamespace) -> None:
    task = next(iter(TASKS))
    result = run("eval", "nano", "--tasks", task, "--effort", "low, high", "--limit", "5", "--seed", "3", "--json")
    record = json.loads(result.stdout)
    assert [(cell["task"], cell["effort"]) for cell in record["cells"]] == [(task, "low"), (task, "high")]
    assert (asked.kwargs["num_problems"], asked.kwargs["seed"]) == (5, 3)


def test_results_are_written_with_the_command_that_makes_them(
    run: Any, asked: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/ossia", "eval", "nano", "--tasks", "a b"])
    result = run("eval", "--out", str(tmp_path))
    assert (result.exit_code, {path.suffix for path in tmp_path.iterdir()} >= {".json", ".md"}) == (0, True)
    assert json.loads((tmp_path / "nano-accuracy.json").read_text())["command"] == "ossia eval nano --tasks 'a b'"


def test_the_table_goes_between_the_marker_lines_of_a_readme(run: Any, asked: SimpleNamespace, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- nano-results:start -->\nold\n<!-- nano-results:end -->\nafter\n")
    assert run("eval", "--readme", str(readme)).exit_code == 0
    text = readme.read_text()
    assert "80.0 %" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--tasks", "juggling"], "no task is named juggling"),
        (["--effort", "low,max"], "'medium'"),
        (["--suite", "circus"], "ordinary, lengths, generators"),
        (["--suite", "lengths", "--tasks", "add"], "add_by_length"),
    ],
)
def test_unknown_names_are_told_before_the_model_is_loaded(
    run: Any, asked: SimpleNamespace, args: list[str], part: str
) -> None:
    result = run("eval", *args)
    assert result.exit_code == 1
    assert part in result.stderr
    assert asked.model is None


def test_lengths_without_grammar(run: Any, asked: SimpleNamespace, tmp_path: Path) -> None:
    result = run("eval", "--suite", "lengths", "--no-grammar", "--effort", "high", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert asked.kwargs["grammar"] is False
    assert set(asked.kwargs["tasks"]) >= {"add_by_length", "count_letters_by_length"}
    assert (tmp_path / "nano-lengths.json").is_file()


def test_results_side_by_side_need_no_model(run: Any, asked: SimpleNamespace, tmp_path: Path) -> None:
    run("eval", "--tasks", "add", "--out", str(tmp_path))
    asked.model = None
    path = str(tmp_path / "nano-accuracy.json")
    result = run("eval", "--table", path, "--table", path, "--effort", "low")
    assert result.stdout.splitlines()[0] == "| task, low effort | nano-accuracy |"
    assert "80.0 %" in result.stdout
    assert asked.model is None


def test_ordinary_questions_are_written_for_a_reader(
    run: Any, asked: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = OrdinaryAnswer(
        question="Who?",
        kind="talk",
        effort="medium",
        final="nano",
        num_tokens=3,
        ends_itself=True,
        loops=False,
        fits=True,
    )
    monkeypatch.setattr("ossia.evals.ordinary.ask_ordinary", lambda *_, **__: [answer])
    monkeypatch.setattr("ossia.evals.ordinary.to_record", lambda *_: {"num_good": 1})
    monkeypatch.setattr(
        "ossia.evals.run.load_evaluated", lambda *_, **__: SimpleNamespace(loaded=SimpleNamespace(name="nano"))
    )
    assert run("eval", "--suite", "ordinary", "--out", str(tmp_path)).exit_code == 0
    assert "| Who? | nano | talk |" in (tmp_path / "nano-ordinary.md").read_text()
    assert json.loads((tmp_path / "nano-ordinary.json").read_text())["num_good"] == 1
    assert json.loads(run("eval", "--suite", "ordinary", "--json").stdout) == {"num_good": 1}


def test_split_names() -> None:
    assert split_names(" add, subtract,,") == ["add", "subtract"]
