"""How much main memory this process may still take: what the system has, and what its containers leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60
"""cgroup v1 says "none" by a number near 2^63."""


def free_memory() -> int | None:
    """Bytes that may still be taken; None where the system does not tell.

    The cache of files counts as free: the system gives it up when memory is wanted.
    """
    found = [_available(), *(_left(folder) for folder in _cgroup_folders())]
    return min((size for size in found if size is not None), default=None)


def resident_memory() -> int | None:
    """Bytes of this process that are in memory now, mapped files included; None where the system does not tell."""
    return _field(PROC / "self" / "status", "VmRSS")


class ResidentParts(NamedTuple):
    """Resident bytes: of files, which processes share and the system can drop and read again, and the process's own."""

    files: int
    own: int


def resident_parts() -> ResidentParts | None:
    """What `resident_memory` is made of; None where the system does not tell."""
    path = PROC / "self" / "status"
    files, own, shared = (_field(path, name) for name in ("RssFile", "RssAnon", "RssShmem"))
    return None if files is None or own is None else ResidentParts(files, own + (shared or 0))


def _available() -> int | None:
    return _field(PROC / "meminfo", "MemAvailable")


def _field(path: Path, name: str) -> int | None:
    """A line such as "MemAvailable:   500 kB", in bytes."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) << 10
    return None


def _cgroup_folders() -> Iterator[Path]:
    """The folders that limit this process, its own and those above; a container may see its own as the root."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            root = CGROUPS
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
        else:
            continue
        own = root / path.lstrip("/")
        while own != root:
            yield own
            own = own.parent
        yield root


def _left(folder: Path) -> int | None:
    """What a cgroup's limit leaves, its cache of files counted as free; None without a limit."""
    for limit_name, used_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is None or used is None or limit >= _NO_LIMIT:
            continue
        stat = dict(line.split(None, 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
        cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        return max(0, limit - max(0, used - cache))
    return None


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
