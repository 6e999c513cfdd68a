"""Pages of mapped files in this process: which memory they are, and giving them back."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SMAPS = Path("/proc/self/smaps")
_MADV_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)


class Mapping(NamedTuple):
    """A stretch of this process's addresses, [begin, end).

    Attributes:
        is_file: it shows a file.
        own_bytes: of it, what lies in memory that no file backs: pages that this process has written to.
    """

    begin: int
    end: int
    is_file: bool
    own_bytes: int


def drop_file_pages(ranges: Sequence[tuple[int, int]]) -> int:
    """Give pages of files back, so that they do not count as this process's memory; touched again, they are read again.

    Left alone is all that would be lost: memory that shows no file, and mappings into which this process has written.

    Args:
        ranges: of (address, bytes); only whole pages within them are given back.

    Returns:
        Bytes of addresses given back; 0 where the system cannot do it.
    """
    madvise = _madvise()
    if madvise is None or not ranges:
        return 0
    dropped = 0
    for mapping in read_mappings():
        if not mapping.is_file or mapping.own_bytes:
            continue
        for address, size in ranges:
            begin = -(-max(address, mapping.begin) // mmap.PAGESIZE) * mmap.PAGESIZE
            end = min(address + size, mapping.end) // mmap.PAGESIZE * mmap.PAGESIZE
            if begin < end and madvise(begin, end - begin, _MADV_DONTNEED) == 0:
                dropped += end - begin
    return dropped


def read_mappings() -> Iterator[Mapping]:
    """This process's mappings; none where the system does not tell."""
    try:
        lines = SMAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    span: tuple[int, int, bool] | None = None
    for line in lines:
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):  # "begin-end rw-p offset device inode path"
            begin, end = (int(number, 16) for number in words[0].split("-"))
            span = (begin, end, words[4] != "0")
        elif words[0] == "Anonymous:" and span is not None:
            yield Mapping(*span, own_bytes=int(words[1]) << 10)
            span = None


def _madvise() -> ctypes._FuncPointer | None:  # pyright: ignore[reportPrivateUsage]
    if _MADV_DONTNEED is None or not SMAPS.exists():
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    function.restype, function.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
