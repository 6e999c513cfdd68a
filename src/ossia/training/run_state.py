"""Saving and resuming a run: optimizer state as safetensors, progress as JSON, the last good one kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ossia.core.errors import CorruptFileError, StorageError

FOLDER = "checkpoint"


class RunState(NamedTuple):
    """Where a run stands.

    Attributes:
        tensors: `MuonAdamW.state`, the float32 master weights among it.
        step: optimizer steps taken.
        seconds: time trained over all parts.
    """

    tensors: dict[str, Tensor]
    step: int
    seconds: float


def save_run(folder: Path, *, tensors: Mapping[str, Tensor], step: int, seconds: float) -> None:
    """Write a checkpoint aside, then put it in the place of the last one.

    Raises:
        StorageError: it could not be written; the last checkpoint is untouched.
    """
    target, aside, old = folder / FOLDER, folder / f"{FOLDER}.new", folder / f"{FOLDER}.old"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / "state.safetensors")
        (aside / "progress.json").write_text(json.dumps({"step": step, "seconds": seconds}))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)  # left half deleted by a run that was killed here
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write a checkpoint to {target}: {error}; free space and resume") from error


def load_run(folder: Path) -> RunState | None:
    """Read the last checkpoint of a run, or None if it has none.

    Raises:
        CorruptFileError: a checkpoint is there but cannot be read.
    """
    target = next((path for path in (folder / FOLDER, folder / f"{FOLDER}.old") if path.is_dir()), None)
    if target is None:
        return None
    try:
        progress = json.loads((target / "progress.json").read_text())
        tensors = load_file(target / "state.safetensors")
        return RunState(tensors, int(progress["step"]), float(progress["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CorruptFileError(f"the checkpoint {target} cannot be read ({error}); delete it to start anew") from error
