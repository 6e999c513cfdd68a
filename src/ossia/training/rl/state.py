"""Saving and resuming a run, and its best weights: each written aside and put in place of the last at once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ossia.core.errors import CorruptFileError, StorageError

CHECKPOINT, BEST = "rl-checkpoint.safetensors", "best.safetensors"


class RLState(NamedTuple):
    """Where a run stands.

    Attributes:
        tensors: `MuonAdamW.state`, the float32 master weights among it.
        step: steps done.
        num_updates: steps that the optimizer took, which differ if a step had nothing to learn from, or several.
    """

    tensors: dict[str, Tensor]
    step: int
    num_updates: int


class Best(NamedTuple):
    """The weights that did best on held-out problems, float32 by parameter name, and how well and when."""

    weights: dict[str, Tensor]
    score: float
    step: int


def save_state(folder: Path, state: RLState) -> None:
    """Write a checkpoint in place of the last.

    Raises:
        StorageError: it could not be written; the last one is untouched.
    """
    _save(folder / CHECKPOINT, state.tensors, {"step": state.step, "num_updates": state.num_updates})


def load_state(folder: Path) -> RLState | None:
    """Read the checkpoint of a run, or None if it has none.

    Raises:
        CorruptFileError: it is there but cannot be read.
    """
    found = _load(folder / CHECKPOINT, ("step", "num_updates"))
    return None if found is None else RLState(found[0], int(found[1]["step"]), int(found[1]["num_updates"]))


def save_best(folder: Path, best: Best) -> None:
    """Write the best weights in place of the last best. Raises as `save_state`."""
    _save(folder / BEST, best.weights, {"score": best.score, "step": best.step})


def load_best(folder: Path) -> Best | None:
    """Read the best weights, or None if there are none yet. Raises as `load_state`."""
    found = _load(folder / BEST, ("score", "step"))
    return None if found is None else Best(found[0], float(found[1]["score"]), int(found[1]["step"]))


def _save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
    aside = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata={"run": json.dumps(facts)}
        )
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path} ({error}); free some space and resume") from error


def _load(path: Path, wanted: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, float]] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        return tensors, {name: facts[name] for name in wanted}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CorruptFileError(f"{path} cannot be read ({error}); delete it to start anew") from error
