from __future__ import annotations

import json
from pathlib import Path

import pytest

from ossia.core.errors import CorruptFileError, MissingExtraError, MissingFileError
from ossia.training import metrics as module
from ossia.training import plot
from ossia.training.metrics import StepReport, open_metrics, read_metrics
from ossia.training.plot import plot_run


def report(step: int) -> StepReport:
    return StepReport(
        step=step,
        loss=5.0 / step,
        balance=1.0,
        router_z=2.0,
        max_load=1.5,
        grad_norm=0.5,
        lr_scale=1.0,
        skipped=0,
        tokens_per_second=100.0,
        mfu=None,
        seconds=step / 10,
        loads=[[1.5, 0.5], [1.0, 1.0]],
    )


def write(folder: Path, steps: range, *, first: int = 0, **options: bool | None) -> None:
    with open_metrics(folder, first=first, **options) as log:
        for step in steps:
            log.add(report(step))


def test_reports_come_back(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    assert read_metrics(tmp_path) == [report(1), report(2), report(3)]


def test_what_a_killed_run_wrote_beyond_its_checkpoint_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "loss": 0.')  # cut off in mid-row
    write(tmp_path, range(4, 6), first=3)
    assert [row.step for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3]
    assert [event.value for event in losses] == pytest.approx([5.0, 2.5, 5 / 3])
    assert [e.value for e in events.Scalars("max_load/layer_0")] == [1.5] * 3
    assert "train/mfu" not in events.Tags()["scalars"]


def test_tensorboard_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_tensorboard", lambda: False)
    write(tmp_path, range(1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    with pytest.raises(MissingExtraError, match=r"ossia\[train\]"):
        write(tmp_path, range(1, 2), tensorboard=True)


def test_another_process_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3), is_writing=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_reports", [1, 5])
def test_a_run_is_drawn(tmp_path: Path, num_reports: int) -> None:
    write(tmp_path, range(1, num_reports + 1), tensorboard=False)
    path = plot_run(tmp_path)
    assert path == tmp_path / "metrics.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFileError, match=r"has no metrics\.jsonl"):
        plot_run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    with pytest.raises(MissingFileError, match="no report yet"):
        plot_run(tmp_path)
    path.write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(CorruptFileError, match="another version"):
        plot_run(tmp_path)
    write(tmp_path, range(1, 2))
    monkeypatch.setattr(plot, "has_matplotlib", lambda: False)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        plot_run(tmp_path)
