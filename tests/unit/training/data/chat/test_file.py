from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from ossia.core.errors import InvalidInputError
from ossia.training.data.chat.file import BadRowChoice, read_chat_file
from ossia.training.data.chat.rows import read_row

GOOD = {"question": "q", "answer": "a"}
LINE = json.dumps(GOOD)


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_plain_and_packed_files_and_blank_lines(tmp_path: Path) -> None:
    text = f"\ufeff{LINE}\n\n  \n{LINE}".encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(text))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    for name in ("a.jsonl", "a.jsonl.xz", "a.jsonl.gz"):
        found = read_chat_file(tmp_path / name)
        assert [line for line, _ in found.rows] == [1, 4]
        assert {row for _, row in found.rows} == {read_row(GOOD)}
        assert found.skipped == ()


BAD = [
    ("{", r"line 2: no JSON: Expecting"),
    ("[{}]", r"line 2: list in place of an object"),
    ("[{},", r"line 2: no JSON: .*; a file holds one JSON object a line, not one array"),
    ('{"messages": []}', "line 2: messages is no array of messages, or empty"),
    ("[" * 100_000, "line 2: no JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_row_stops_or_is_left_out(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", LINE, line, LINE)
    with pytest.raises(InvalidInputError, match=f"a.jsonl, {reason}") as caught:
        read_chat_file(path)
    assert "--on-error skip" in str(caught.value)
    found = read_chat_file(path, on_error=BadRowChoice.SKIP)
    assert [number for number, _ in found.rows] == [1, 3]
    assert [bad.line for bad in found.skipped] == [2]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE.encode() + b"\n\xff\xfe{\n")
    with pytest.raises(InvalidInputError, match=r"line 2: no JSON: .*utf-8"):
        read_chat_file(path)


def test_files_with_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.jsonl is no file; give a file of JSON lines"):
        read_chat_file(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInputError, match=r"holds no conversation to learn$"):
        read_chat_file(write(tmp_path / "empty.jsonl"))
    path = write(tmp_path / "bad.jsonl", "{", "3")
    with pytest.raises(InvalidInputError, match="no conversation to learn; line 1, the first of 2 left out: no JSON"):
        read_chat_file(path, on_error=BadRowChoice.SKIP)


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_packed_files_that_are_not(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"plain text, not packed")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_chat_file(path)
    packed = lzma.compress(LINE.encode()) if suffix == ".xz" else gzip.compress(LINE.encode())
    path.write_bytes(packed[:-10])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_chat_file(path)
