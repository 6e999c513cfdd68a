"""A patch on a folder: all of it or nothing, and never outside of the folder.

Every new text is worked out before anything is written. Then the new files are written aside, what they replace is
kept aside, and a failure on the way puts everything back.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ossia.tools.confined import PathEscapeError, open_folder, read_bytes, split_path
from ossia.tools.workspace.patch import (
    AddFile,
    DeleteFile,
    Operation,
    PatchError,
    UpdateFile,
    apply_hunks,
    parse_patch,
)

MAX_FILE_BYTES = 10 << 20


@dataclass(frozen=True, slots=True)
class _Change:
    """A path's new bytes, or None to remove it, and its permissions."""

    path: str
    data: bytes | None
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class _Step:
    """What undoes one write: the folder's descriptor, the name, and where the old file was kept, if there was one."""

    folder: int
    name: str
    kept: str | None


def apply_patch(text: str, root: Path) -> str:
    """Applies a patch to the files below a root; gives a list of what was done, a line a file (`M src/app.py`).

    Raises:
        PatchError: it cannot be read, does not fit, or leads outside of the root; nothing was changed.
    """
    root = root.resolve()
    operations = parse_patch(text)
    try:
        changes, report = _plan(operations, root)
        _write(changes, root)
    except PatchError:
        raise
    except PathEscapeError as error:
        raise PatchError(f"The patch was not applied: {error}.") from error
    except OSError as error:
        raise PatchError(f"The patch was not applied: {error.strerror or error}.") from error
    return "\n".join(["Done. The patch was applied:", *report])


def _plan(operations: Sequence[Operation], root: Path) -> tuple[list[_Change], list[str]]:
    """Each path's last state. A path may be touched once only, as it would be unclear which comes first."""
    changes: dict[str, _Change] = {}
    report: list[str] = []

    def set_change(path: str, data: bytes | None, mode: int = 0o644) -> None:
        name = "/".join(split_path(root, path))
        if not name:
            raise PatchError(f"{path!r} names the working folder itself.")
        if name in changes:
            raise PatchError(f"{name}: the patch touches this file twice; put its changes into one section.")
        changes[name] = _Change(name, data, mode)

    for operation in operations:
        if isinstance(operation, AddFile):
            if _exists(root, operation.path):
                raise PatchError(f"{operation.path}: the file is there already; use '*** Update File'.")
            set_change(operation.path, operation.text.encode())
            report.append(f"A {operation.path}")
        elif isinstance(operation, DeleteFile):
            _read(root, operation.path)
            set_change(operation.path, None)
            report.append(f"D {operation.path}")
        else:
            report.append(_plan_update(operation, root, set_change))
    return list(changes.values()), report


def _plan_update(operation: UpdateFile, root: Path, set_change: object) -> str:
    assert callable(set_change)
    before, mode = _read(root, operation.path)
    try:
        text = before.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PatchError(f"{operation.path}: the file is not UTF-8 text.") from error
    after = apply_hunks(text, operation.hunks, path=operation.path).encode("utf-8")
    target = operation.move_to or operation.path
    if split_path(root, target) == split_path(root, operation.path):
        set_change(operation.path, after, mode)
        return f"M {operation.path}"
    if _exists(root, target):
        raise PatchError(f"{target}: cannot move {operation.path} there, a file is there already.")
    set_change(operation.path, None)
    set_change(target, after, mode)
    return f"R {operation.path} -> {target}"


def _read(root: Path, path: str) -> tuple[bytes, int]:
    try:
        data = read_bytes(root, path, max_bytes=MAX_FILE_BYTES)
        parts = split_path(root, path)
        folder = open_folder(root, parts[:-1])
        try:
            return data, stat.S_IMODE(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode) & 0o777
        finally:
            os.close(folder)
    except FileNotFoundError as error:
        raise PatchError(f"{path}: there is no such file.") from error
    except PathEscapeError:
        raise
    except OSError as error:
        raise PatchError(f"{path}: {error.strerror or error}.") from error


def _exists(root: Path, path: str) -> bool:
    parts = split_path(root, path)
    if not parts:
        return True
    try:
        folder = open_folder(root, parts[:-1])
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        return True
    except FileNotFoundError:
        return False
    finally:
        os.close(folder)


def _write(changes: Sequence[_Change], root: Path) -> None:
    """Does all changes, or puts back what was done and raises.

    Deletions come last, so that a move never leaves the text nowhere.
    """
    steps: list[_Step] = []
    made: list[tuple[str, ...]] = []
    try:
        for change in sorted(changes, key=lambda change: change.data is None):
            parts = split_path(root, change.path)
            made += _missing_folders(root, parts[:-1])
            folder = open_folder(root, parts[:-1], is_made=change.data is not None)
            steps.append(_do(change, folder, parts[-1]))
    except BaseException:
        for step in reversed(steps):
            _undo(step)
        for parts in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(root.joinpath(*parts))
        raise
    finally:
        for step in steps:
            if step.kept is not None:
                with contextlib.suppress(OSError):
                    os.unlink(step.kept, dir_fd=step.folder)
            os.close(step.folder)


def _do(change: _Change, folder: int, name: str) -> _Step:
    try:
        kept = f".{name[:100]}.{secrets.token_hex(6)}.old"
        try:
            os.link(name, kept, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            kept = None
        try:
            if change.data is None:
                os.unlink(name, dir_fd=folder)
            else:
                _replace(change.data, folder, name, mode=change.mode)
        except BaseException:
            if kept is not None:
                os.unlink(kept, dir_fd=folder)
            raise
        return _Step(folder, name, kept)
    except BaseException:
        os.close(folder)
        raise


def _replace(data: bytes, folder: int, name: str, *, mode: int) -> None:
    aside = f".{name[:100]}.{secrets.token_hex(6)}.new"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            if os.geteuid() == 0:  # root writes on behalf of the folder's owner
                owner = os.fstat(folder)
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside, dir_fd=folder)
        raise


def _undo(step: _Step) -> None:
    with contextlib.suppress(OSError):
        if step.kept is None:
            os.unlink(step.name, dir_fd=step.folder)
        else:
            os.rename(step.kept, step.name, src_dir_fd=step.folder, dst_dir_fd=step.folder)


def _missing_folders(root: Path, parts: Sequence[str]) -> list[tuple[str, ...]]:
    folders = [tuple(parts[: i + 1]) for i in range(len(parts))]
    return [folder for folder in folders if not root.joinpath(*folder).exists()]
