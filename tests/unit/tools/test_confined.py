"""Paths below a root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.tools.confined import PathEscapeError, open_beneath, read_bytes, split_path, walk_files


@given(st.text(alphabet="ab./\\\0 ", max_size=20))
def test_parts_never_lead_up(path: str) -> None:
    try:
        parts = split_path(Path("/r/a"), path)
    except PathEscapeError:
        return
    assert all(part not in ("", ".", "..") and "/" not in part for part in parts)


def test_a_sibling_with_the_same_beginning_is_outside() -> None:
    with pytest.raises(PathEscapeError):
        split_path(Path("/r/a"), "/r/ab/x")


def test_links_are_refused_on_the_way_and_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_text("x")
    (tmp_path / "way").symlink_to("real")
    (tmp_path / "end").symlink_to("real/f")
    assert read_bytes(tmp_path, "real/f", max_bytes=10) == b"x"
    for path in ("way/f", "end"):
        with pytest.raises(PathEscapeError, match="link"):
            open_beneath(tmp_path, path, os.O_RDONLY)


def test_pipes_and_large_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 11)
    for name in ("pipe", "large"):
        with pytest.raises(OSError, match=r"regular|more than"):
            read_bytes(tmp_path, name, max_bytes=10)


def test_walking_gives_sorted_regular_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2", "b/1", "a"):
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to("a")
    assert [name for name, _ in walk_files(tmp_path)] == ["a", "b/1", "b/2"]
    assert [name for name, _ in walk_files(tmp_path, "b")] == ["b/1", "b/2"]
