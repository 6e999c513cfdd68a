"""Watches a sandbox from outside: what its processes hold together, and what lies in its folders.

It samples, so a program can be over a limit for a moment; then the whole sandbox is ended. Control groups, where they
can be made, hold memory and processes in the kernel; disk space is held here alone, besides the limit on one file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ossia.tools.sandbox.limits import MIB, SandboxLimits

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MAX_DEPTH = 64
_MAX_COUNTED = 1_000_000


class FolderUse(NamedTuple):
    """What lies in folders: bytes on disk, and entries."""

    num_bytes: int
    num_files: int


class Watch:
    """Checks one sandbox against its limits.

    Args:
        pid: the sandbox's first process, on the host.
        folders: what it may write to, on the host.
        name: what the program calls them, for messages.
        is_growth: the limits on folders count what was added, not what lies there.
    """

    def __init__(
        self,
        *,
        pid: int,
        folders: Sequence[Path],
        limits: SandboxLimits,
        name: str = "/mnt/data",
        is_growth: bool = False,
    ) -> None:
        self._pid = pid
        self._folders = tuple(folders)
        self._limits = limits
        self._name = name
        self._is_growth = is_growth
        self._start = FolderUse(0, 0)

    async def begin(self) -> None:
        """Notes what lies in the folders now: what was over its limit before may stay, not grow."""
        self._start = await asyncio.to_thread(measure_folders, self._folders, _MAX_COUNTED)

    def find_breach(self) -> str | None:
        """Which limit is broken, or None. Reads /proc and the folders, so call it in a thread."""
        limits = self._limits
        pids, memory = measure_processes(self._pid)
        num_processes = len(pids)
        # Forked processes share most of what is resident in each, so the exact sum decides; it takes longer to read.
        if memory > limits.memory_bytes and (memory := measure_shared(pids)) > limits.memory_bytes:
            return f"memory: the processes hold {memory // MIB} MiB, {limits.memory_bytes // MIB} MiB are allowed"
        # The sandbox's own first processes do not count.
        if num_processes > limits.num_processes + 4:
            return f"processes: {num_processes} run, {limits.num_processes} are allowed"
        allowed = self._allowed()
        use = measure_folders(self._folders, allowed.num_files)
        if use.num_bytes > allowed.num_bytes:
            return f"disk: {use.num_bytes // MIB} MiB lie in {self._name}, {allowed.num_bytes // MIB} MiB are allowed"
        if use.num_files > allowed.num_files:
            return f"disk: more than {allowed.num_files} files lie in {self._name}"
        return None

    def _allowed(self) -> FolderUse:
        limits, start = self._limits, self._start
        if self._is_growth:
            return FolderUse(start.num_bytes + limits.disk_bytes, start.num_files + limits.num_files)
        return FolderUse(max(limits.disk_bytes, start.num_bytes), max(limits.num_files, start.num_files))

    async def wait_for_breach(self, *, every_s: float = 0.2) -> str:
        """Samples until a limit is broken; says which. Cancel it when the call is over."""
        while True:
            start = time.monotonic()
            breach = await asyncio.to_thread(self.find_breach)
            if breach is not None:
                return breach
            # A large folder takes long to measure: at most a fifth of the time goes into it.
            await asyncio.sleep(max(every_s, 4 * (time.monotonic() - start)))


def measure_processes(pid: int) -> tuple[list[int], int]:
    """The processes that descend from this one (itself included), and the sum of their resident memory in bytes.

    Pages that several processes share count once for each, except those of files.
    """
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The name in parentheses may hold anything, so read from the last one on.
                parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    pids: list[int] = []
    memory, waiting = 0, [pid]
    while waiting:
        current = waiting.pop()
        pids.append(current)
        waiting += children.get(current, ())
        memory += _private_resident(current)
    return pids, memory


def measure_shared(pids: Sequence[int]) -> int:
    """The resident memory of processes in bytes, where a page that n of them share counts 1/n for each."""
    total = 0
    for pid in pids:
        try:
            lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration, ValueError, IndexError):
            total += _private_resident(pid)
    return total


def _private_resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path("/proc", str(pid), "statm").read_text().split()
        return (int(fields[1]) - int(fields[2])) * _PAGE
    return 0


def measure_folders(folders: Sequence[Path], max_files: int) -> FolderUse:
    """Blocks and entries of folders, following no link; stops counting behind `max_files`."""
    num_bytes = num_files = 0
    waiting = [(str(folder), 0) for folder in folders]
    while waiting and num_files <= max_files:
        folder, depth = waiting.pop()
        try:
            entries = os.scandir(folder)
        except OSError:
            continue
        with entries:
            for entry in entries:
                num_files += 1
                if num_files > max_files:
                    break
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    num_bytes += found.st_blocks * 512
                    if stat.S_ISDIR(found.st_mode) and depth < _MAX_DEPTH:
                        waiting.append((entry.path, depth + 1))
    return FolderUse(num_bytes, num_files)
