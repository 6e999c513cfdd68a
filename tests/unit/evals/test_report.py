from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ossia.core.errors import InvalidInputError, StorageError
from ossia.evals import report
from ossia.evals.results import Cell, EvalResults, read_results
from ossia.harmony.message import Effort


def make_cell(task: str, effort: Effort, correct: int, *, problems: int = 500) -> Cell:
    return Cell(
        task=task,
        effort=effort,
        num_problems=problems,
        num_correct=correct,
        num_clean=problems,
        num_capped=0,
        mean_tokens=40.0,
    )


@pytest.fixture
def results() -> EvalResults:
    return EvalResults(
        model="nano",
        weights_sha256="c0ffee",
        seed=0,
        max_tokens=512,
        dtype="float32",
        seconds=61.0,
        environment={"hardware": "some processor, 2 cores", "python": "3.11.9", "torch": "2.13.0"},
        cells=(
            make_cell("count_letters", Effort.LOW, 325),
            make_cell("greet", Effort.LOW, 18, problems=20),
            make_cell("count_letters", Effort.HIGH, 486),
        ),
    )


def test_accuracy_table_has_tasks_in_rows_and_efforts_in_columns(results: EvalResults) -> None:
    lines = report.render_accuracy(results).splitlines()
    assert lines[0] == "| task | problems | low effort | high effort |"
    assert lines[2] == "| count letters | 500 | 65.0 % (60.7 to 69.1) | 97.2 % (95.4 to 98.3) |"
    assert lines[3] == "| greet | 20 | 90.0 % (69.9 to 97.2) |  |"
    assert lines[4] == "| mean tokens |  | 40 | 40 |"


def test_page_tells_how_to_repeat_the_measurement(results: EvalResults) -> None:
    page = report.render_page(results, command="ossia eval nano")
    assert "Command: `ossia eval nano`" in page
    assert "some processor, 2 cores" in page
    assert "c0ffee" in page
    assert "1,020 answers in 61 s" in page
    assert "\n\n- Command" in page
    assert "![" not in page


def test_write_results_can_be_read_again(results: EvalResults, tmp_path: Path) -> None:
    written = report.write_results(results, tmp_path / "made", command="ossia eval nano")
    assert read_results(tmp_path / "made" / "nano-accuracy.json") == results
    assert {path.suffix for path in written} >= {".json", ".md"}
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(path.name for path in written)


def test_write_text_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ossia.core.files.os.replace", fail)
    with pytest.raises(StorageError, match=r"page\.md"):
        report.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_update_readme_replaces_only_what_stands_between_the_markers(results: EvalResults, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{report.README_START}\nold table\n{report.README_END}\n\nEnd.\n")
    report.update_readme(results, path)
    text = path.read_text()
    assert text.startswith(f"# Title\n\n{report.README_START}\n| task |")
    assert text.endswith(f"|\n{report.README_END}\n\nEnd.\n")
    assert "old table" not in text
    report.update_readme(results, path)
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", report.README_START, f"{report.README_END}\n{report.README_START}"])
def test_update_readme_wants_both_markers(results: EvalResults, tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match="nano-results:start"):
        report.update_readme(results, path)
    assert path.read_text() == text


def test_terminal_table_names_what_did_not_parse_cleanly(results: EvalResults) -> None:
    unclean = replace(results.cells[0], num_clean=490)
    console = Console(file=io.StringIO(), width=160)
    console.print(report.accuracy_table(replace(results, cells=(unclean, *results.cells[1:]))))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "97.2 (95.4-98.3) 40 tok" in text
    assert "10 unclean" in text


def test_markdown_cells_cannot_break_the_table() -> None:
    assert report.markdown_table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"
