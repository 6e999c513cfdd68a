from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ossia.core.errors import InvalidInputError
from ossia.training.data.sources.document import Document, Unreadable
from ossia.training.data.sources.files import _zstd, read_sources
from ossia.training.data.sources.manifest import Manifest, Source

PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": _zstd().compress,
}


def manifest(folder: Path, **changes: Any) -> Manifest:
    source = {"name": "a", "path": "*", "license": "MIT", "origin": "x"} | changes
    return Manifest(name="m", folder=folder, sources=(Source(**source),))


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text, "by": f"author of {text}"}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_rows(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](rows("one", "", "zwei ü")))
    assert list(read_sources(manifest(tmp_path, credit="by"))) == [
        Document("a", f"{path}, line 1", "one", "author of one"),
        Document("a", f"{path}, line 3", "zwei ü", "author of zwei ü"),
    ]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_a_packed_file_that_breaks_off(suffix: str, tmp_path: Path) -> None:
    packed = PACKERS[suffix](rows(*(f"text {number * 7919}" for number in range(2000))))
    (tmp_path / f"rows.jsonl{suffix}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InvalidInputError, match=r"--on-error skip"):
        list(read_sources(manifest(tmp_path)))


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"q": ["one", "two"], "a": ["1", "2"], "other": [None, None]})
    pq.write_table(table, tmp_path / "rows.parquet")
    documents = list(read_sources(manifest(tmp_path, text=("q", "a"))))
    assert [item.text for item in documents if isinstance(item, Document)] == ["one\n1", "two\n2"]
    with pytest.raises(InvalidInputError, match="no column text"):
        list(read_sources(manifest(tmp_path)))


def test_whole_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain", encoding="utf-8-sig")
    (tmp_path / "b.html").write_bytes("<p>caf\xe9 and a few more words</p>".encode("latin-1"))
    (tmp_path / "c.md.gz").write_bytes(gzip.compress(b"# marked"))
    texts = [item.text for item in read_sources(manifest(tmp_path)) if isinstance(item, Document)]
    assert texts[0] == "plain"
    assert "caf\xe9" in texts[1]
    assert texts[2] == "# marked"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: is no JSON"),
        ("[1]", "line 2: should be an object"),
        ("{}", "line 2: its field 'text' should be a string"),
        ('{"text": 5}', "line 2: its field 'text' should be a string, but is 5"),
        ("[" * 100_000, "line 2: is no JSON"),
    ],
)
def test_a_bad_row_stops_or_is_skipped(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "good"}}\n{line}\n{{"text": "good too"}}\n')
    with pytest.raises(InvalidInputError, match=reason):
        list(read_sources(manifest(tmp_path)))
    kept = list(read_sources(manifest(tmp_path), skip_bad=True))
    assert [type(item) for item in kept] == [Document, Unreadable, Document]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        list(read_sources(manifest(tmp_path)))


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        list(read_sources(manifest(tmp_path)))


def test_sources_without_anything(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no file matches"):
        list(read_sources(manifest(tmp_path)))
    (tmp_path / "rows.jsonl").write_text("\n\n")
    with pytest.raises(InvalidInputError, match="source a is empty"):
        list(read_sources(manifest(tmp_path)))
    (tmp_path / "rows.jsonl").rename(tmp_path / "rows")
    with pytest.raises(InvalidInputError, match="set format"):
        list(read_sources(manifest(tmp_path)))


def test_only_so_many(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(rows("one", "two", "three"))
    assert len(list(read_sources(manifest(tmp_path, max_documents=2)))) == 2


def test_half_characters(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    (document,) = read_sources(manifest(tmp_path))
    assert isinstance(document, Document)
    assert document.text == "a?b \U0001f600"
