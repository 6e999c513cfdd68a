"""Writing token shards: a folder aside, then one rename, so that what was there stays until the new one is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ossia.core.errors import InvalidInputError, StorageError
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.shards.index import INDEX_FILE, ShardEntry, ShardIndex, SourceCount, stamp_of

SHARD_TOKENS = 50_000_000
"""A shard is closed once it holds so many tokens: 100 MB of uint16."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_replaceable(folder: Path, *, marker: str) -> None:
    """Refuse to replace a folder that holds something else than what it would be replaced by.

    Raises:
        InvalidInputError: it is no folder, or is not empty and has no file of that name.
    """
    if folder.exists() and not (folder / marker).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInputError(
            f"{folder} is there already and was not made by `ossia data` (it has no {marker}); choose another place",
            param="out",
        )


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in the place of another: two renames, and the old one goes last."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


class ShardWriter:
    """Collects documents into shards. As a context manager it finishes, or on an error leaves the target as it was.

    Args:
        folder: where the shards will be. What is there is replaced at the end.
        tokenizer: encodes the documents; each ends in its `<|endoftext|>`.
        sources: names that documents may come from, in the order of their numbers.
        tokenizer_name: for people.
        shard_tokens: when to close a shard; a document is never split.

    Raises:
        InvalidInputError: the folder holds something else.
        StorageError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer: Tokenizer,
        sources: Sequence[str],
        tokenizer_name: str = "",
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        folder = folder.absolute()
        check_replaceable(folder, marker=INDEX_FILE)
        self._target = folder
        self._aside = folder.with_name(f"{folder.name}.new")
        self._tokenizer = tokenizer
        self._stamp = stamp_of(tokenizer, name=tokenizer_name)
        self._dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self._numbers = {name: number for number, name in enumerate(sources)}
        self._shard_tokens = shard_tokens
        self._shards: list[ShardEntry] = []
        self._counts = {name: [0, 0] for name in sources}
        self._clear()
        try:
            shutil.rmtree(self._aside, ignore_errors=True)
            self._aside.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"cannot make {self._aside}: {error}") from error

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, text: str, *, source: str) -> int:
        """Encode a document and add it.

        Returns:
            How many tokens it has, its end included.

        Raises:
            StorageError: a full shard cannot be written.
        """
        ids = self._tokenizer.encode(text)
        ids.append(self._tokenizer.endoftext)
        self._tokens.append(np.asarray(ids, dtype=self._dtype))
        self._num_tokens += len(ids)
        self._ends.append(self._num_tokens)
        self._document_sources.append(self._numbers[source])
        self._counts[source][0] += 1
        self._counts[source][1] += len(ids)
        if self._num_tokens >= self._shard_tokens:
            self._write_shard()
        return len(ids)

    def tokens_by_source(self) -> dict[str, int]:
        """Tokens added so far."""
        return {name: tokens for name, (_, tokens) in self._counts.items()}

    def finish(self, *, repeats: Mapping[str, float] | None = None) -> ShardIndex:
        """Write what is left and the index, and put the folder in its place.

        Args:
            repeats: how often a source's documents come in one pass (default: once).

        Raises:
            InvalidInputError: not one document was added.
            StorageError: it cannot be written; what was there before is untouched.
        """
        if self._tokens:
            self._write_shard()
        if not self._shards:
            raise InvalidInputError("no document was left to write; see the report for the step that dropped them")
        index = ShardIndex(
            tokenizer=self._stamp,
            dtype=self._dtype,
            sources=tuple(
                SourceCount(name=name, documents=documents, tokens=tokens, repeats=(repeats or {}).get(name, 1.0))
                for name, (documents, tokens) in self._counts.items()
            ),
            shards=tuple(self._shards),
        )
        try:
            (self._aside / INDEX_FILE).write_text(index.to_json(), encoding="utf-8")
            sync_folder(self._aside)
            replace_folder(self._aside, self._target)
        except OSError as error:
            raise self._storage_error(error) from error
        return index

    def _clear(self) -> None:
        self._tokens: list[np.ndarray] = []
        self._ends: list[int] = []
        self._document_sources: list[int] = []
        self._num_tokens = 0

    def _write_shard(self) -> None:
        path = self._aside / f"shard-{len(self._shards):05d}.safetensors"
        try:
            save_file(
                {
                    "tokens": np.concatenate(self._tokens),
                    "ends": np.asarray(self._ends, dtype=np.int64),
                    "sources": np.asarray(self._document_sources, dtype=np.uint16),
                },
                path,
            )
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            entry = ShardEntry(
                file=path.name,
                documents=len(self._ends),
                tokens=self._num_tokens,
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        except (OSError, SafetensorError) as error:
            raise self._storage_error(error) from error
        self._shards.append(entry)
        self._clear()

    def _storage_error(self, error: Exception) -> StorageError:
        return StorageError(
            f"cannot write token shards to {self._target}: {error}; what was there is untouched; free space and "
            "run it again"
        )
