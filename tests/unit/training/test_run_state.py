from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from ossia.core.errors import CorruptFileError, StorageError
from ossia.training import run_state
from ossia.training.run_state import load_run, save_run


def save(folder: Path, step: int) -> None:
    save_run(folder, tensors={"master.w": torch.full((2, 3), float(step))}, step=step, seconds=step / 2)


def stored_step(folder: Path) -> int:
    """The step of the last good checkpoint, whose tensors must be of the same step."""
    state = load_run(folder)
    assert state is not None
    assert torch.equal(state.tensors["master.w"], torch.full((2, 3), float(state.step)))
    assert state.seconds == state.step / 2
    return state.step


def test_round_trip(tmp_path: Path) -> None:
    assert load_run(tmp_path) is None
    save(tmp_path, 3)
    assert stored_step(tmp_path) == 3
    save(tmp_path, 4)
    assert stored_step(tmp_path) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).view(2, 3)
    save_run(tmp_path, tensors={"x": tensor.mT}, step=1, seconds=0.0)
    state = load_run(tmp_path)
    assert state is not None
    assert torch.equal(state.tensors["x"], tensor.mT)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("write failed")])
def test_a_failed_write_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save(tmp_path, 1)

    def write_half(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(run_state, "save_file", write_half)
        with pytest.raises(StorageError, match="cannot write a checkpoint"):
            save(tmp_path, 2)
    assert stored_step(tmp_path) == 1
    save(tmp_path, 3)
    assert stored_step(tmp_path) == 3


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize("call", range(1, 6))
def test_killed_at_any_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Dying in front of any rename or removal leaves the last or the new checkpoint, and the next save works."""
    save(tmp_path, 1)
    seen = 0
    rename, remove = Path.rename, run_state.shutil.rmtree

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == call:
            raise Killed

    def counted_rename(self: Path, target: Path) -> Path:
        count()
        return rename(self, target)

    def counted_remove(path: Path, **options: Any) -> None:
        count()
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted_rename)
        patch.setattr(run_state.shutil, "rmtree", counted_remove)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert stored_step(tmp_path) == (2 if call == 5 else 1)
    save(tmp_path, 3)
    assert stored_step(tmp_path) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_killed_while_the_old_checkpoint_was_being_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    rest = tmp_path / "checkpoint.old"
    rest.mkdir()
    (rest / "state.safetensors").write_bytes(b"rest")
    assert stored_step(tmp_path) == 1
    save(tmp_path, 2)
    assert stored_step(tmp_path) == 2
    assert not rest.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress.json", "{"),
        ("progress.json", "{}"),
        ("progress.json", "[]"),
        ("progress.json", None),
        ("state.safetensors", "x"),
        ("state.safetensors", None),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    save(tmp_path, 1)
    path = tmp_path / "checkpoint" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CorruptFileError, match="delete it to start anew"):
        load_run(tmp_path)
