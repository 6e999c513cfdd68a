"""A run that is killed without warning and begun again gives, to the bit, the losses of one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.unit.training.conftest import RECIPE, SHRUNK

from ossia.harmony.hf_tokenizer import write_tokenizer_folder
from ossia.harmony.tokenizer import Tokenizer

STEPS = 24
CHECKPOINT_EVERY = 5


def command(folder: Path, *, workers: int) -> list[str]:
    values = {**SHRUNK, "run.steps": STEPS, "run.checkpoint_every": CHECKPOINT_EVERY, "data.num_workers": workers}
    sets = [item for key, value in values.items() for item in ("--set", f"{key}={value}")]
    ossia = [sys.executable, "-m", "ossia.cli.main"]
    return [*ossia, "train", "pretrain", "--recipe", str(RECIPE), "--out", str(folder), *sets]


def losses(folder: Path) -> dict[int, float]:
    """By step; every step must be there once."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return {row["step"]: row["loss"] for row in rows}


def run(folder: Path, *, workers: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(folder, workers=workers), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_and_kill(folder: Path, *, workers: int, after: int) -> None:
    """Kill the run, and whatever processes it made, once it has reported so many steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(folder, workers=workers),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while len(losses(folder)) < after:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_been(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        write_tokenizer_folder(tokenizer, tmp_path / name / "tokenizer")
    run(tmp_path / "whole", workers=0)
    for after in (CHECKPOINT_EVERY + 2, 3 * CHECKPOINT_EVERY + 1):
        run_and_kill(tmp_path / "killed", workers=1, after=after)
    seen = losses(tmp_path / "killed")
    assert 3 * CHECKPOINT_EVERY < len(seen) < STEPS
    run(tmp_path / "killed", workers=1)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == STEPS
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert models[0] == models[1]
