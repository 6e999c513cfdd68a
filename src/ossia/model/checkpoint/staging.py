"""Puts a set of files into a folder all at once: written aside first, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ossia.core.errors import StorageError

Removable = Callable[[str], bool]


@contextmanager
def staged(folder: Path, *, num_bytes: int, is_stale: Removable) -> Iterator[Path]:
    """Yields an empty folder to write into; when the block ends, its files take their places in `folder`.

    Until then `folder` is not changed. Files in it that the new set does not replace stay, except those that
    `is_stale` names (weights of the old model). If anything fails, renames are undone and what was written is removed.

    Args:
        folder: the destination; made if it does not exist.
        num_bytes: about what will be written: checked against the free space before the first byte.
        is_stale: whether a file of that name belongs to the old model only.

    Raises:
        StorageError: no space, no permission, or another failure of the disk.
    """
    made: list[Path] = []
    aside: Path | None = None
    is_done = False
    try:
        made = _make_folders(folder)
        free = shutil.disk_usage(folder).free
        if free < num_bytes:
            raise StorageError(
                f"{folder} needs {_human(num_bytes)}, but its disk has {_human(free)} free; nothing was written. "
                "Free some space or choose another folder"
            )
        aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        new, old = aside / "new", aside / "old"
        new.mkdir()
        old.mkdir()
        yield new
        _swap(folder, new=new, old=old, is_stale=is_stale)
        is_done, made = True, []
    except OSError as error:
        raise StorageError(
            f"cannot write {folder}: {error.strerror or error}; what was there is untouched. "
            "Free some space, check the permissions, or choose another folder"
        ) from error
    finally:
        if aside is not None:
            _clean(aside, is_done=is_done)
        for path in reversed(made):
            shutil.rmtree(path, ignore_errors=True)


def _make_folders(folder: Path) -> list[Path]:
    """Makes the folder and its parents; returns those that were new, outermost first."""
    new = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return new


def _swap(folder: Path, *, new: Path, old: Path, is_stale: Removable) -> None:
    """Moves the old files aside and the new ones in; undoes it all if one step fails."""
    arriving = sorted(path.name for path in new.iterdir())
    leaving = sorted(
        path.name for path in folder.iterdir() if path.is_file() and (path.name in arriving or is_stale(path.name))
    )
    for name in arriving:
        _sync(new / name)
    done: list[tuple[Path, Path]] = []
    try:
        for source, target, names in ((folder, old, leaving), (new, folder, arriving)):
            for name in names:
                os.replace(source / name, target / name)
                done.append((source / name, target / name))
    except BaseException:  # also Ctrl-C
        for source, target in reversed(done):
            os.replace(target, source)
        raise


def _clean(aside: Path, *, is_done: bool) -> None:
    """Removes what lies aside, but never old files that could not be moved back."""
    shutil.rmtree(aside / "new", ignore_errors=True)
    if is_done:
        shutil.rmtree(aside / "old", ignore_errors=True)
    for path in (aside / "old", aside):
        with suppress(OSError):
            path.rmdir()


def _sync(path: Path) -> None:
    """Waits until a file is on the disk: some file systems report a full disk only then."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _human(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.1f} GiB" if num_bytes >= 1 << 30 else f"{num_bytes / (1 << 20):.1f} MiB"
