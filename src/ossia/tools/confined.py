"""Paths that cannot leave a root: no `..`, no absolute path elsewhere, no link on the way.

Names are opened one folder at a time, each relative to the folder before and without following links, so a link that
is laid between a check and its use leads nowhere.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ossia.core.errors import OssiaError


class PathEscapeError(OssiaError, PermissionError):
    """A path that leads out of its root. `strerror` says how."""

    def __init__(self, message: str) -> None:
        super().__init__(1, message)
        self.strerror = message

    def __str__(self) -> str:
        return str(self.strerror)


def split_path(root: Path, path: str) -> tuple[str, ...]:
    """The parts of a path below a root.

    An absolute path is taken if it lies below the root as written.

    Raises:
        PathEscapeError: it leads elsewhere, or holds a null character.
    """
    if "\0" in path or "\\" in path or len(path) > 4096:
        raise PathEscapeError(f"{path[:80]!r} is no path that can be used here")
    if path.startswith("/"):
        prefix = str(root)
        if path != prefix and not path.startswith(prefix.rstrip("/") + "/"):
            raise PathEscapeError(f"{path!r} lies outside of the working folder; use a path relative to it")
        path = path[len(prefix) :]
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise PathEscapeError(f"{path!r} has '..' in it; use a path that goes straight down")
    return parts


def open_folder(root: Path, parts: tuple[str, ...], *, is_made: bool = False) -> int:
    """A descriptor of a folder below the root; `is_made` makes the folders that are missing.

    Raises:
        PathEscapeError: a part is a link.
        OSError: a part is missing or no folder.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            if is_made:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=fd)
                    if os.geteuid() == 0:  # root writes on behalf of the folder's owner
                        owner = os.fstat(fd)
                        os.chown(part, owner.st_uid, owner.st_gid, dir_fd=fd, follow_symlinks=False)
            below = _open_one(fd, part, os.O_RDONLY | os.O_DIRECTORY)
            os.close(fd)
            fd = below
        return fd
    except BaseException:
        os.close(fd)
        raise


def open_beneath(root: Path, path: str, flags: int, *, mode: int = 0o644) -> int:
    """A descriptor of a file below the root.

    Raises:
        PathEscapeError: the path leaves the root or goes through a link.
        OSError: as `os.open`.
    """
    parts = split_path(root, path)
    if not parts:
        raise IsADirectoryError(21, "Is a directory", path)
    folder = open_folder(root, parts[:-1])
    try:
        return _open_one(folder, parts[-1], flags, mode=mode)
    finally:
        os.close(folder)


def read_bytes(root: Path, path: str, *, max_bytes: int) -> bytes:
    """A regular file's bytes.

    Raises:
        OSError: missing, a link, no regular file, or larger than `max_bytes`.
    """
    fd = open_beneath(root, path, os.O_RDONLY | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(22, "not a regular file", path)
        if found.st_size > max_bytes:
            raise OSError(27, f"has {found.st_size} bytes, more than the {max_bytes} that can be read", path)
        return file.read(max_bytes)


def walk_files(root: Path, path: str = "", *, max_entries: int = 100_000) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files below a folder of the root, in order of their names, with their stat; links are left out."""
    parts = split_path(root, path)
    num_seen = 0
    fd = open_folder(root, parts)
    try:
        for folder, names, files, folder_fd in os.fwalk(".", dir_fd=fd, follow_symlinks=False):
            names.sort()
            below = [part for part in folder.split("/") if part != "."]
            for name in sorted(files):
                num_seen += 1
                if num_seen > max_entries:
                    return
                with contextlib.suppress(OSError):
                    info = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode):
                        yield "/".join((*parts, *below, name)), info
    finally:
        os.close(fd)


def _open_one(folder: int, name: str, flags: int, *, mode: int = 0o644) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)
    except OSError as error:
        if _is_link(folder, name):
            raise PathEscapeError(f"{name!r} is a link; links are not followed here") from error
        raise


def _is_link(folder: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
