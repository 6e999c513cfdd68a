"""The cleaned text of a corpus on disk: `text/part-00000.jsonl.gz`, rows of source, text and credit."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ossia.core.errors import DatasetError, StorageError
from ossia.training.data.sources.document import Document

TEXT_FOLDER = "text"
PART_CHARACTERS = 100_000_000


class TextWriter:
    """Writes documents into parts. The same documents give the same bytes.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: Path, *, part_characters: int = PART_CHARACTERS) -> None:
        self._folder = folder
        self._part_characters = part_characters
        self._num_parts = 0
        self._num_characters = 0
        self._file: BinaryIO | None = None
        self._packed: gzip.GzipFile | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {folder}: {error}") from error

    def __enter__(self) -> TextWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StorageError:
            if error is None:
                raise

    def add(self, document: Document) -> None:
        """Write a document.

        Raises:
            StorageError: no room or no right to write.
        """
        row = {"source": document.source, "text": document.text}
        if document.credit:
            row["credit"] = document.credit
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            if self._packed is None:
                self._open()
            assert self._packed is not None
            self._packed.write(line)
            self._num_characters += len(document.text)
            if self._num_characters >= self._part_characters:
                self.close()
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Finish the part at hand.

        Raises:
            StorageError: it cannot be written to its end.
        """
        packed, file, self._packed, self._file, self._num_characters = self._packed, self._file, None, None, 0
        try:
            if packed is not None and file is not None:
                try:
                    packed.close()
                    file.flush()
                    os.fsync(file.fileno())
                finally:
                    file.close()
        except OSError as error:
            raise self._error(error) from error

    def _open(self) -> None:
        path = self._folder / f"part-{self._num_parts:05d}.jsonl.gz"
        self._file = path.open("wb")
        self._packed = gzip.GzipFile(filename="", mode="wb", fileobj=self._file, compresslevel=6, mtime=0)
        self._num_parts += 1

    def _error(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write text to {self._folder}: {error}; free space and run it again")


def is_corpus(folder: Path) -> bool:
    """Whether a folder holds the text of `ossia data build`."""
    return (folder / TEXT_FOLDER).is_dir()


def read_documents(folder: Path) -> Iterator[Document]:
    """The documents of a corpus, in their order.

    Raises:
        DatasetError: the folder has none, or a part is damaged (with its line).
    """
    parts = sorted((folder / TEXT_FOLDER).glob("part-*.jsonl.gz"))
    if not parts:
        raise DatasetError(f"{folder} holds no text; make it with `ossia data build`")
    for part in parts:
        number = 0
        try:
            with gzip.open(part, "rb") as packed, io.BufferedReader(packed) as lines:  # pyright: ignore[reportArgumentType]
                for number, line in enumerate(lines, start=1):
                    row = json.loads(line)
                    yield Document(row["source"], f"{part}, line {number}", row["text"], row.get("credit", ""))
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{part} is damaged after line {number} ({error}); build the corpus anew") from error
