"""A control group round a sandbox, where the machine lets us make one.

It limits memory, processes and processor time of all processes together, in the kernel, where the watch over them
(`watch.py`) only samples. Version 2 and version 1 are both handled. Making one needs rights on the hierarchy (root, or
a delegated slice); without them there is none, and the other limits hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ossia.tools.sandbox.limits import SandboxLimits

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One group in version 2, or one a controller in version 1."""

    folders: tuple[Path, ...]

    @property
    def procs_files(self) -> tuple[Path, ...]:
        """A process joins by writing its number into each."""
        return tuple(folder / "cgroup.procs" for folder in self.folders)

    def count_oom_kills(self) -> int:
        """How many processes the kernel has ended for the group's memory limit."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    for line in (folder / name).read_text().splitlines():
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
        return 0

    async def remove(self) -> None:
        """Removes the group once its last process is gone; that can take a moment after a kill."""
        for folder in self.folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    await asyncio.sleep(0.02)


def make_cgroup(limits: SandboxLimits, *, root: Path = _ROOT) -> Cgroup | None:
    """Makes a group with these limits, or None where that cannot be done."""
    name = f"ossia-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        if (root / "cgroup.controllers").exists():
            return _make_v2(limits, name=name, root=root)
        return _make_v1(limits, name=name, root=root)
    except OSError:
        return None


def _make_v2(limits: SandboxLimits, *, name: str, root: Path) -> Cgroup | None:
    own = root / _own_path("").lstrip("/")
    for parent in dict.fromkeys((own, own.parent, root)):
        if root not in (parent, *parent.parents):
            continue
        controllers = _read(parent / "cgroup.subtree_control").split()
        if "memory" not in controllers or "pids" not in controllers:
            continue
        folder = parent / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / "memory.max").write_text(str(limits.memory_bytes))
            (folder / "pids.max").write_text(str(limits.num_processes + 8))
            _write_if_there(folder / "memory.swap.max", "0")
            _write_if_there(folder / "cpu.max", f"{limits.num_cpus * _PERIOD_US} {_PERIOD_US}")
            return Cgroup((folder,))
        except OSError:
            folder.rmdir()
    return None


def _make_v1(limits: SandboxLimits, *, name: str, root: Path) -> Cgroup | None:
    settings = {
        "memory": {"memory.limit_in_bytes": limits.memory_bytes},
        "pids": {"pids.max": limits.num_processes + 8},
        "cpu": {"cpu.cfs_period_us": _PERIOD_US, "cpu.cfs_quota_us": limits.num_cpus * _PERIOD_US},
    }
    made: list[Path] = []
    for controller, values in settings.items():
        folder = root / controller / _own_path(controller).lstrip("/") / name
        try:
            folder.mkdir()
        except OSError:
            continue
        made.append(folder)
        for file, value in values.items():
            _write_if_there(folder / file, str(value))
    return Cgroup(tuple(made)) if made else None


def _own_path(controller: str) -> str:
    """This process's group in a hierarchy, from its root; version 2 has one without a controller's name."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and ".." not in path:
            return path
    return "/"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write_if_there(path: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        path.write_text(text)
