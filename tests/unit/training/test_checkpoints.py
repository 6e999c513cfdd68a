from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ossia.core.errors import CorruptFileError, StorageError, TensorMismatchError
from ossia.training import checkpoints as module
from ossia.training.checkpoints import Checkpoints


def state(step: int) -> dict[str, Tensor]:
    return {"master.w": torch.full((40, 30), float(step)), "guard.counts": torch.tensor([step, 2, 3])}


def save(folder: Path, step: int) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(state(step), step=step, facts={"seconds": step / 2})
    checkpoints.finish()


def stored_step(folder: Path) -> int:
    """The step of the last good checkpoint, whose tensors and facts must be of the same step."""
    held = state(0)
    facts = Checkpoints(folder).load(held)
    assert facts is not None
    step = int(facts["step"])
    assert all(torch.equal(held[name], tensor) for name, tensor in state(step).items())
    assert facts["seconds"] == step / 2
    return step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_round_trip(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).load(state(0)) is None
    save(tmp_path, 3)
    assert stored_step(tmp_path) == 3
    save(tmp_path, 20)
    assert stored_step(tmp_path) == 20
    assert names(tmp_path) == ["step-20"]


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path) -> None:
    checkpoints, tensors = Checkpoints(tmp_path), state(1)
    checkpoints.save(tensors, step=1, facts={"seconds": 0.5})
    for tensor in tensors.values():
        tensor.zero_()
    checkpoints.finish()
    assert stored_step(tmp_path) == 1


def test_a_checkpoint_takes_its_place_once_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(2), step=2, facts={"seconds": 1.0})
    pending = checkpoints._pending  # pyright: ignore[reportPrivateUsage]
    assert pending is not None
    pending.done.result()
    assert stored_step(tmp_path) == 1
    checkpoints.poll()
    assert stored_step(tmp_path) == 2
    assert checkpoints.latest_step() == 2


@pytest.fixture
def full_disk() -> Iterator[Any]:
    """A way to forbid this process files of more than 4 kB: the kernel's answer to a write is then an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda is_full: resource.setrlimit(resource.RLIMIT_FSIZE, (4000 if is_full else before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, old)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, full_disk: Any) -> None:
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    full_disk(True)
    checkpoints.save(state(2), step=2, facts={"seconds": 1.0})
    with pytest.raises(StorageError, match=r"checkpoint of step 2 .*File too large.*step-1 is kept; free some space"):
        checkpoints.finish()
    full_disk(False)
    assert names(tmp_path) == ["step-1"]
    assert stored_step(tmp_path) == 1
    checkpoints.save(state(3), step=3, facts={"seconds": 1.5})
    checkpoints.finish()
    assert stored_step(tmp_path) == 3


def test_a_disk_that_is_full_at_the_first_file(tmp_path: Path, full_disk: Any) -> None:
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    full_disk(True)
    with pytest.raises(StorageError, match=r"checkpoint of step 2 .*File too large.*step-1 is kept; free some space"):
        checkpoints.save(state(2), step=2, facts={"text": "x" * 5000})
    full_disk(False)
    assert names(tmp_path) == ["step-1"]
    assert stored_step(tmp_path) == 1


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize("call", range(1, 5))
def test_killed_at_any_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Dying in front of any rename or removal leaves the last or the new checkpoint, and the next save works."""
    save(tmp_path, 1)
    seen = 0
    rename, remove = Path.rename, module.shutil.rmtree

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
        patch.setattr(module.shutil, "rmtree", counted_remove)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert stored_step(tmp_path) == (2 if call == 4 else 1)
    save(tmp_path, 3)
    assert stored_step(tmp_path) == 3
    assert names(tmp_path) == ["step-3"]


def test_a_checkpoint_of_another_shape(tmp_path: Path) -> None:
    save(tmp_path, 1)
    wanted = {"master.w": torch.ones(40, 31)}
    with pytest.raises(TensorMismatchError, match=r"has \(40, 30\) for master\.w, but this run wants \(40, 31\)"):
        Checkpoints(tmp_path).load(wanted)
    assert torch.equal(wanted["master.w"], torch.ones(40, 31))
    with pytest.raises(TensorMismatchError, match=r"no such tensor for average\.w"):
        Checkpoints(tmp_path).load({"average.w": torch.ones(2)})


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"step": "x"}', None])
def test_damaged_facts_are_named(tmp_path: Path, content: str | None) -> None:
    save(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step-1" / "facts.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CorruptFileError, match="delete it to start anew"):
        Checkpoints(tmp_path).load(state(0))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, share: float) -> None:
    save(tmp_path, 1)
    path = next((tmp_path / "checkpoints" / "step-1").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CorruptFileError, match="delete it to start anew"):
        Checkpoints(tmp_path).load(state(0))


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    """Files are JSON and safetensors, which begin with the size of their JSON header."""
    save(tmp_path, 1)
    files = sorted((tmp_path / "checkpoints" / "step-1").iterdir())
    assert [path.suffix for path in files] == [".json", ".safetensors"]
    raw = files[1].read_bytes()
    assert raw[8:9] == b"{"
    assert int.from_bytes(raw[:8], "little") < len(raw)
