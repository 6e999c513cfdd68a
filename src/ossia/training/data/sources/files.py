"""Reading the files of a source, row by row, without holding more than one."""

from __future__ import annotations

import bz2
import glob
import gzip
import importlib
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

from ossia.core.errors import InvalidInputError
from ossia.training.data.sources.document import Document, Unreadable
from ossia.training.data.sources.extras import need
from ossia.training.data.sources.manifest import Manifest, Source

PACKED = {".gz", ".xz", ".bz2", ".zst"}
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
}


def find_files(source: Source, *, folder: Path) -> list[Path]:
    """The files of a source, by name.

    Raises:
        InvalidInputError: there is none.
    """
    pattern = str(folder / source.path)
    files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if not files:
        raise InvalidInputError(
            f"source {source.name}: no file matches {pattern}; paths are relative to the manifest", param="sources.path"
        )
    return files


def format_of(path: Path, source: Source) -> str:
    """How a file is to be read.

    Raises:
        InvalidInputError: its name does not say, and neither does the manifest.
    """
    if source.format != "auto":
        return source.format
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in PACKED]
    found = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if found is None:
        raise InvalidInputError(
            f"source {source.name}: the name of {path} does not say its format; set format to jsonl, parquet, text or "
            "html",
            param="sources.format",
        )
    return found


def open_unpacked(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, unpacking what its suffix says."""
    match path.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        case ".xz":
            return lzma.open(path, "rb")
        case ".bz2":
            return bz2.open(path, "rb")
        case ".zst":
            return cast("IO[bytes]", _zstd().open(path, "rb"))
        case _:
            return path.open("rb")


def _zstd() -> ModuleType:
    """The standard library's module, or before Python 3.14 its backport."""
    if sys.version_info >= (3, 14):
        return importlib.import_module("compression.zstd")
    return need("backports.zstd", package="backports.zstd")


def read_sources(manifest: Manifest, *, skip_bad: bool = False) -> Iterator[Document | Unreadable]:
    """All documents of a manifest, source by source. Looks for all files before it reads the first.

    Args:
        manifest: whose sources.
        skip_bad: give what cannot be read as Unreadable, instead of stopping.

    Raises:
        InvalidInputError: a source has no files, or none with a text, or a row cannot be read (file, line, reason).
    """
    files = {source.name: find_files(source, folder=manifest.folder) for source in manifest.sources}
    for source in manifest.sources:
        kinds = {path: format_of(path, source) for path in files[source.name]}
        yield from _read_source(source, kinds, skip_bad=skip_bad)


def _read_source(source: Source, kinds: dict[Path, str], *, skip_bad: bool) -> Iterator[Document | Unreadable]:
    count = 0
    for path, kind in kinds.items():
        for item in read_file(source, path, kind=kind):
            if isinstance(item, Unreadable) and not skip_bad:
                raise unreadable_error(item)
            if isinstance(item, Document):
                if not item.text.strip():
                    continue
                count += 1
            yield item
            if count == source.max_documents:
                return
    if not count:
        raise empty_error(source.name)


def unreadable_error(item: Unreadable) -> InvalidInputError:
    """What stops a run that does not skip what it cannot read."""
    return InvalidInputError(
        f"{item.place}: {item.reason}; mend it, or skip such rows with --on-error skip", param="sources.path"
    )


def empty_error(name: str) -> InvalidInputError:
    """What stops a run when a source has nothing."""
    return InvalidInputError(f"source {name} is empty: not one of its rows has a text", param="sources.path")


def read_file(source: Source, path: Path, *, kind: str) -> Iterator[Document | Unreadable]:
    """The rows of one file of a source, `kind` being one of FORMATS; some may have an empty text."""
    readers = {"jsonl": _read_jsonl, "parquet": _read_parquet, "text": _read_text, "html": _read_text}
    try:
        yield from readers[kind](source, path)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:  # a file that breaks off, or is none of its kind
        yield Unreadable(source.name, str(path), f"cannot be read to its end ({error})")
    except Exception as error:
        if not type(error).__module__.startswith(("backports.zstd", "compression.zstd", "_zstd", "pyarrow")):
            raise
        yield Unreadable(source.name, str(path), f"cannot be read to its end ({error})")


def _read_jsonl(source: Source, path: Path) -> Iterator[Document | Unreadable]:
    with open_unpacked(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield Unreadable(source.name, place, f"is no JSON ({error})")
                    continue
                yield _from_row(source, place, row)


def _read_parquet(source: Source, path: Path) -> Iterator[Document | Unreadable]:
    parquet = need("pyarrow.parquet", package="pyarrow")
    with parquet.ParquetFile(path) as file:
        wanted = [*source.text, *([source.credit] if source.credit else [])]
        missing = [name for name in source.text if name not in file.schema_arrow.names]
        if missing:
            yield Unreadable(source.name, str(path), f"has no column {', '.join(missing)}")
            return
        columns = [name for name in wanted if name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield _from_row(source, f"{path}, row {number}", row)


def _read_text(source: Source, path: Path) -> Iterator[Document | Unreadable]:
    with open_unpacked(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if format_of(path, source) == "text":
            yield Unreadable(source.name, str(path), f"is not UTF-8 ({error})")
            return
        text = str(need("trafilatura.utils", package="trafilatura").decode_file(data))  # pages say or show their own
    yield Document(source.name, str(path), text)


def _from_row(source: Source, place: str, row: Any) -> Document | Unreadable:
    if not isinstance(row, dict):
        return Unreadable(source.name, place, f"should be an object with {', '.join(source.text)}, but is {row!r:.40}")
    values = [row.get(name) for name in source.text]
    for name, value in zip(source.text, values, strict=True):
        if not isinstance(value, str):
            return Unreadable(source.name, place, f"its field {name!r} should be a string, but is {value!r:.40}")
    text = "\n".join(str(value) for value in values)
    credit = row.get(source.credit) if source.credit else None
    return Document(source.name, place, _without_surrogates(text), _without_surrogates(str(credit or "")))


def _without_surrogates(text: str) -> str:
    """Half characters, which JSON can escape but UTF-8 cannot write, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
