from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ossia.core import mappings
from ossia.core.mappings import drop_file_pages, read_mappings

PAGE = mmap.PAGESIZE
NUM_PAGES = 64

pytestmark = pytest.mark.skipif(not mappings.SMAPS.exists(), reason="the system tells nothing of mappings")


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[mmap.mmap]:
    """A file of 64 pages, each full of its number, all of them read; writable, for this process alone."""
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([number]) * PAGE for number in range(NUM_PAGES)))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as made:
        assert sum(made[::PAGE]) == sum(range(NUM_PAGES))
        yield made


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def resident(memory: mmap.mmap) -> list[bool]:
    """Which pages are in this process's memory, by /proc/self/pagemap."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(address_of(memory) // PAGE * 8)
        entries = file.read(NUM_PAGES * 8)
    return [bool(entries[place + 7] & 0x80) for place in range(0, len(entries), 8)]


def test_only_whole_pages_of_the_range_go(mapped: mmap.mmap) -> None:
    assert all(resident(mapped))
    assert drop_file_pages([(address_of(mapped) + 1, 3 * PAGE)]) == 2 * PAGE
    assert resident(mapped) == [True, False, False] + [True] * (NUM_PAGES - 3)


def test_pages_are_read_again(mapped: mmap.mmap) -> None:
    assert drop_file_pages([(address_of(mapped), NUM_PAGES * PAGE)]) == NUM_PAGES * PAGE
    assert not any(resident(mapped))
    assert list(mapped[::PAGE]) == list(range(NUM_PAGES))


def test_what_was_written_is_kept(mapped: mmap.mmap) -> None:
    mapped[5 * PAGE] = 99
    assert drop_file_pages([(address_of(mapped), NUM_PAGES * PAGE)]) == 0
    assert mapped[5 * PAGE] == 99


def test_memory_of_no_file_is_kept() -> None:
    with mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"x" * len(memory)
        assert drop_file_pages([(address_of(memory), len(memory))]) == 0
        assert bytes(memory) == b"x" * len(memory)


def test_mappings_say_what_they_are(mapped: mmap.mmap) -> None:
    address = address_of(mapped)

    def found() -> mappings.Mapping:
        return next(mapping for mapping in read_mappings() if mapping.begin <= address < mapping.end)

    assert found().is_file
    assert not found().own_bytes
    mapped[0] = 1
    assert found().own_bytes == PAGE


def test_a_system_that_does_not_tell(mapped: mmap.mmap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mappings, "SMAPS", tmp_path / "none")
    assert not list(read_mappings())
    assert drop_file_pages([(address_of(mapped), NUM_PAGES * PAGE)]) == 0
    assert all(resident(mapped))
