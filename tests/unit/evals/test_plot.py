from __future__ import annotations

from pathlib import Path

import pytest

from ossia.core.errors import MissingExtraError
from ossia.evals import plot
from ossia.evals.results import Cell, EvalResults
from ossia.harmony.message import Effort


@pytest.fixture
def results() -> EvalResults:
    cells = tuple(
        Cell(
            task=task,
            effort=effort,
            num_problems=20,
            num_correct=correct,
            num_clean=20,
            num_capped=0,
            mean_tokens=10.0 * correct,
        )
        for task in ("add", "spell")
        for effort, correct in zip(Effort, (0, 15, 20), strict=True)
    )
    return EvalResults(
        model="tiny",
        weights_sha256="",
        seed=0,
        max_tokens=64,
        dtype="float32",
        seconds=1.0,
        environment={},
        cells=cells,
    )


def test_plot_is_a_png(results: EvalResults, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    plot.plot_results(results, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_without_matplotlib_the_extra_is_named(
    results: EvalResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"ossia\[train\]"):
        plot.plot_results(results, tmp_path / "plot.png")
