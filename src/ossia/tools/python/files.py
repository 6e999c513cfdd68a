"""The folder behind /mnt/data, from the host's side.

A program in the sandbox may put anything there: links to the host's files, pipes that block a reader, devices. So
nothing here follows a link, and only regular files are read.
"""

from __future__ import annotations

import contextlib
import mimetypes
import os
import stat
from pathlib import Path
from typing import NamedTuple

from ossia.core.errors import InvalidInputError
from ossia.tools.base import ToolFile
from ossia.tools.confined import open_beneath

INSIDE = "/mnt/data"
MAX_LISTED = 1000


class _Stamp(NamedTuple):
    size: int
    time_ns: int
    inode: int


class DataFolder:
    """One conversation's files.

    Args:
        path: the folder on the host; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.resolve()

    def put(self, name: str, data: bytes) -> ToolFile:
        """Lays a file there, as for an upload, and gives it to the folder's owner.

        Raises:
            InvalidInputError: a name with a folder in it, or one that is taken by something else than a file.
        """
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise InvalidInputError(f"{name!r} cannot name a file; use a name without folders", param="name")
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            # Never through a link that a program has laid; a fresh file, which nothing else has open.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)
            with open(fd, "wb") as file:
                file.write(data)
                if os.geteuid() == 0:
                    owner = os.fstat(folder)
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        except IsADirectoryError as error:
            raise InvalidInputError(f"{name!r} is a folder in {INSIDE}; use another name", param="name") from error
        finally:
            os.close(folder)
        return _describe(name, len(data))

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """A file's bytes.

        Args:
            path: as the sandbox sees it, or relative to the folder.

        Raises:
            InvalidInputError: no such regular file inside the folder, or a larger one.
        """
        relative = path.removeprefix(f"{INSIDE}/")
        try:
            fd = open_beneath(self.path, relative, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidInputError(f"there is no file {path!r} in {INSIDE}: {error.strerror}", param="path") from error
        with open(fd, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InvalidInputError(f"{path!r} is no regular file", param="path")
            if found.st_size > max_bytes:
                raise InvalidInputError(
                    f"{path!r} has {found.st_size} bytes; at most {max_bytes} can be read", param="path"
                )
            return file.read(max_bytes)

    def snapshot(self) -> dict[str, _Stamp]:
        """Regular files now, by path below the folder; at most MAX_LISTED."""
        found: dict[str, _Stamp] = {}
        for folder, names, files, fd in os.fwalk(self.path, follow_symlinks=False):
            names[:] = [name for name in sorted(names) if not name.startswith(".")]
            for name in sorted(files):
                with contextlib.suppress(OSError):
                    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode):
                        relative = os.path.relpath(os.path.join(folder, name), self.path)
                        found[relative] = _Stamp(info.st_size, info.st_mtime_ns, info.st_ino)
                if len(found) >= MAX_LISTED:
                    return found
        return found

    def changed_since(self, before: dict[str, _Stamp]) -> tuple[ToolFile, ...]:
        """Files that are new or different from a snapshot."""
        return tuple(
            _describe(path, stamp.size) for path, stamp in self.snapshot().items() if before.get(path) != stamp
        )


def _describe(path: str, size: int) -> ToolFile:
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return ToolFile(name=path.rpartition("/")[2], mime_type=kind, size=size, path=f"{INSIDE}/{path}")
