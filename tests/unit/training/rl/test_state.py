from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia.core.errors import CorruptFileError, StorageError
from ossia.training.rl import state as module
from ossia.training.rl.state import BEST, CHECKPOINT, Best, RLState, load_best, load_state, save_best, save_state


def make_state(step: int) -> RLState:
    return RLState({"master.a": torch.full((2, 3), float(step)), "first.a": torch.zeros(2, 3)}, step, 3 * step)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    assert load_best(tmp_path) is None
    save_state(tmp_path / "run", make_state(4))
    save_best(tmp_path / "run", Best({"a": torch.ones(2)}, 0.75, 10))
    state, best = load_state(tmp_path / "run"), load_best(tmp_path / "run")
    assert state is not None
    assert (state.step, state.num_updates, state.tensors.keys()) == (4, 12, make_state(4).tensors.keys())
    assert torch.equal(state.tensors["master.a"], make_state(4).tensors["master.a"])
    assert best is not None
    assert (best.score, best.step, best.weights["a"].tolist()) == (0.75, 10, [1.0, 1.0])


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, make_state(1))

    def fill(tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fill)
    with pytest.raises(StorageError, match="free some space and resume"):
        save_state(tmp_path, make_state(2))
    state = load_state(tmp_path)
    assert state is not None
    assert state.step == 1
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize(("name", "load"), [(CHECKPOINT, load_state), (BEST, load_best)])
def test_a_torn_file_is_told(tmp_path: Path, name: str, load: Callable[[Path], object]) -> None:
    (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(CorruptFileError, match="delete it to start anew"):
        load(tmp_path)
