from __future__ import annotations

from pathlib import Path
from typing import Any

from ossia.training.metrics import StepReport, open_metrics


def test_a_run_is_drawn(run: Any, tmp_path: Path) -> None:
    report = StepReport(
        step=1,
        loss=2.0,
        balance=1.0,
        router_z=1.0,
        max_load=1.2,
        grad_norm=0.5,
        lr_scale=1.0,
        skipped=0,
        tokens_per_second=10.0,
        mfu=None,
        seconds=1.0,
        loads=[[1.2, 0.8]],
    )
    with open_metrics(tmp_path, first=0, tensorboard=False) as log:
        log.add(report)
    result = run("train", "plot", str(tmp_path))
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "metrics.png")
    assert (tmp_path / "metrics.png").stat().st_size > 1000


def test_a_folder_that_is_no_run(run: Any, tmp_path: Path) -> None:
    result = run("train", "plot", str(tmp_path))
    assert result.exit_code == 1
    assert "give the folder of a training run" in result.stderr
