"""Two processes under torchrun, over gloo on the CPU, learn what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.conftest import RECIPE, SHRUNK

from ossia.harmony.hf_tokenizer import write_tokenizer_folder
from ossia.harmony.tokenizer import Tokenizer

# Three experts and three layers cannot be dealt evenly to two processes.
ODD = {"model.num_local_experts": 3, "model.num_hidden_layers": 3, "run.steps": 6, "run.tensorboard": "false"}
RUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def pretrain(folder: Path, *, processes: int, **overrides: Any) -> list[dict[str, Any]]:
    """Run `ossia train pretrain` and return its metrics."""
    values = {**SHRUNK, **ODD, **{key.replace("__", "."): value for key, value in overrides.items()}}
    sets = [item for key, value in values.items() for item in ("--set", f"{key}={value}")]
    start = [*RUN, str(processes), "-m"] if processes > 1 else [sys.executable, "-m"]
    command = [*start, "ossia.cli.main", "train", "pretrain", "--recipe", str(RECIPE), "--out", str(folder), *sets]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("one", "two", "moved")}
    for folder in folders.values():
        write_tokenizer_folder(tokenizer, folder / "tokenizer")
    one = pretrain(folders["one"], processes=1)
    two = pretrain(folders["two"], processes=2)
    # Sums are taken in another order, and Muon's iteration makes differences of small singular values larger.
    assert losses(two) == pytest.approx(losses(one), rel=2e-4)
    for key, tolerance in (("balance", 1e-3), ("router_z", 1e-3), ("grad_norm", 1e-2)):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=tolerance)
    assert two[0]["loads"][0] == pytest.approx(one[0]["loads"][0])
    shards = sorted(path.name for path in (folders["two"] / "checkpoints" / "step-6").glob("*.safetensors"))
    assert len(shards) == 2
    # A run may go on with another number of processes.
    short = pretrain(folders["moved"], processes=2, run__steps=3, optimizer__decay=0.0, optimizer__warmup=0.0)
    moved = pretrain(folders["moved"], processes=1, optimizer__decay=0.0, optimizer__warmup=0.0)
    assert losses(moved)[:3] == losses(short)
    write_tokenizer_folder(tokenizer, tmp_path / "steady" / "tokenizer")
    steady = pretrain(tmp_path / "steady", processes=1, optimizer__decay=0.0, optimizer__warmup=0.0)
    assert losses(moved) == pytest.approx(losses(steady), rel=2e-4)


@pytest.mark.slow
def test_layers_computed_again_while_dealt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("kept", "again"):
        write_tokenizer_folder(tokenizer, tmp_path / name / "tokenizer")
    kept = pretrain(tmp_path / "kept", processes=2, run__steps=2)
    again = pretrain(tmp_path / "again", processes=2, run__steps=2, run__activation_checkpointing="true")
    assert losses(again) == pytest.approx(losses(kept), rel=1e-6)
