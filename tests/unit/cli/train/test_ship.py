from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ossia.core.paths import PACKAGE_ROOT
from ossia.evals.results import Cell, EvalResults
from ossia.evals.run import hash_weights
from ossia.harmony.message import Effort

NANO = PACKAGE_ROOT / "nano"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    cell = Cell(
        task="add", effort=Effort.LOW, num_problems=2, num_correct=1, num_clean=2, num_capped=0, mean_tokens=9.0
    )
    measured = EvalResults(
        model="nano",
        weights_sha256=hash_weights(NANO),
        seed=0,
        max_tokens=10,
        dtype="bfloat16",
        seconds=1.0,
        environment={},
        cells=(cell,),
    )
    path = tmp_path / "results.json"
    path.write_text(json.dumps(measured.to_dict()))
    return path


def test_a_model_goes_out_with_its_card(run: Any, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = tmp_path / "data.md"
    data.write_text("All of it is ours.")
    result = run(
        *("train", "ship", str(NANO), "--results", str(results), "--out", str(out)),
        *("--data-card", str(data), "--made-by", "ossia train pretrain"),
    )
    assert result.exit_code == 0, result.output
    size = (NANO / "model.safetensors").stat().st_size
    assert f"{size / (1 << 20):.1f} MiB" in result.stdout
    assert hash_weights(out) == hash_weights(NANO)
    card = (out / "README.md").read_text()
    for part in ("All of it is ours.", "ossia train pretrain", "50.0 %", hash_weights(NANO)):
        assert part in card


def test_results_of_other_weights_are_refused(run: Any, results: Path, tmp_path: Path) -> None:
    record = json.loads(results.read_text())
    record["weights_sha256"] = "0" * 64
    results.write_text(json.dumps(record))
    result = run("train", "ship", str(NANO), "--results", str(results), "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "other weights" in result.output
    assert not (tmp_path / "out").exists()


def test_what_is_too_large_or_in_the_way_is_refused(run: Any, results: Path, tmp_path: Path) -> None:
    given = ("train", "ship", str(NANO), "--results", str(results), "--out", str(tmp_path))
    assert "allowed: 5 " in run(*given, "--max-mib", "5").output
    assert "is not empty" in run(*given).output
    results.write_text("{")
    assert "not the JSON of ossia eval" in run(*given).output
