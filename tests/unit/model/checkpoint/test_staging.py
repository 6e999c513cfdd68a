from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from ossia.core.errors import StorageError
from ossia.model.checkpoint.staging import staged


def is_weight(name: str) -> bool:
    return name.endswith(".safetensors")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "old.safetensors", "README.md"):
        (folder / name).write_text(f"old {name}")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write_new(folder: Path, *, failure: BaseException | None = None) -> None:
    with staged(folder, num_bytes=10, is_stale=is_weight) as new:
        (new / "config.json").write_text("new")
        (new / "new.safetensors").write_text("new")
        if folder.name == "model":
            assert (folder / "config.json").read_text() == "old config.json"
        if failure is not None:
            raise failure


def test_new_files_replace_old_ones_and_others_stay(old: Path) -> None:
    write_new(old)
    assert content(old) == {"config.json": "new", "new.safetensors": "new", "README.md": "old README.md"}


def test_a_full_disk_leaves_everything_as_it_was(old: Path, tmp_path: Path) -> None:
    before = content(old)
    for folder in (old, tmp_path / "a" / "b"):
        with pytest.raises(StorageError, match=r"No space left.*untouched"):
            write_new(folder, failure=OSError(errno.ENOSPC, "No space left on device"))
    assert content(old) == before
    assert not (tmp_path / "a").exists()


def test_other_exceptions_pass_and_leave_nothing(old: Path) -> None:
    before = content(old)
    with pytest.raises(KeyboardInterrupt):
        write_new(old, failure=KeyboardInterrupt())
    assert content(old) == before


def test_space_is_checked_first(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100 << 30, 99 << 30, 1 << 30))
    before = content(old)
    with (
        pytest.raises(StorageError, match=r"needs 2\.0 GiB.* 1\.0 GiB free"),
        staged(old, num_bytes=2 << 30, is_stale=is_weight),
    ):
        pytest.fail("the block must not run")
    assert content(old) == before


@pytest.mark.parametrize("failing", range(4))
def test_renames_are_undone_if_one_fails(old: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    before, replace, calls = content(old), os.replace, []

    def flaky(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing + 1:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", flaky)
    with pytest.raises(StorageError, match="Input/output"):
        write_new(old)
    assert content(old) == before


def test_old_files_that_cannot_be_moved_back_are_kept(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replace, calls = content(old), os.replace, []

    def broken(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) > 2:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(StorageError, match="Input/output"):
        write_new(old)
    kept = {path.name: path.read_text() for path in old.rglob("*") if path.is_file()}
    assert kept == before


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(StorageError, match="model"), staged(tmp_path / "model", num_bytes=1, is_stale=is_weight):
        pytest.fail("the block must not run")
    assert (tmp_path / "model").read_text() == "a file"
