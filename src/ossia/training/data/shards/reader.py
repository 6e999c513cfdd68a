"""Reading token shards: memory-mapped, any document at once, in an order that needs no pass over the data."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ossia.core.errors import DatasetError, InvalidInputError
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.shards.index import (
    DTYPES,
    INDEX_FILE,
    TOKENS_FOLDER,
    ShardEntry,
    ShardIndex,
    read_index,
    stamp_of,
)
from ossia.training.data.shards.writer import sha256_of

MAX_HEADER = 1 << 20


class _Shard(NamedTuple):
    """Views into one mapped file: tokens [T], where documents end [N], and their sources [N]."""

    tokens: np.ndarray
    ends: np.ndarray
    sources: np.ndarray


class ShardedTokens:
    """The documents of a folder of shards. Nothing is read until it is asked for; safe to use after a fork.

    Args:
        folder: where `index.json` is, or the folder of `ossia data build`, whose shards are in `tokens/`.
        tokenizer: what the trainer uses; shards of another one are refused.
        verify: compare each file with its SHA-256 first, which reads everything once.

    Raises:
        DatasetError: the folder is no such thing, a file is absent or damaged, or the tokenizer is another.
    """

    def __init__(self, folder: str | Path, *, tokenizer: Tokenizer | None = None, verify: bool = False) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX_FILE).is_file() and (self.folder / TOKENS_FOLDER / INDEX_FILE).is_file():
            self.folder = self.folder / TOKENS_FOLDER
        self.index: ShardIndex = read_index(self.folder)
        if tokenizer is not None:
            self._check_tokenizer(tokenizer)
        for entry in self.index.shards:
            self._check_file(entry, verify=verify)
        self._shards = [self._map(entry) for entry in self.index.shards]
        self._starts = np.cumsum([0, *(entry.documents for entry in self.index.shards)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def __reduce__(self) -> tuple[type[ShardedTokens], tuple[Path]]:
        """What a worker that is spawned gets: the folder, which it maps itself."""
        return ShardedTokens, (self.folder,)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, their ends included."""
        return self.index.num_tokens

    def document(self, number: int) -> np.ndarray:
        """The ids of one document, a read-only view [T] of uint16 or uint32 that ends in `<|endoftext|>`.

        Raises:
            InvalidInputError: there is no such document.
            DatasetError: its ids cannot come from the tokenizer, so the file was altered.
        """
        shard, place = self._locate(number)
        ends = self._shards[shard].ends
        ids = self._shards[shard].tokens[int(ends[place - 1]) if place else 0 : int(ends[place])]
        if ids.max() >= self.index.tokenizer.vocab_size:
            raise DatasetError(
                f"document {number} of {self.folder} holds the id {ids.max()}, but its tokenizer has "
                f"{self.index.tokenizer.vocab_size}; the file was altered: make the shards anew"
            )
        return ids

    def documents(self, order: Iterable[int] | None = None) -> Iterator[np.ndarray]:
        """The ids of documents one by one, in the order given (see `order.MixOrder`), or as they are stored."""
        for number in range(len(self)) if order is None else order:
            yield self.document(int(number))

    def source(self, number: int) -> str:
        """The name of the source that a document comes from."""
        shard, place = self._locate(number)
        return self.index.sources[int(self._shards[shard].sources[place])].name

    def lengths(self) -> np.ndarray:
        """Tokens of each document [N] of int64. Reads the ends of documents, not the tokens."""
        return np.concatenate([np.diff(shard.ends, prepend=0) for shard in self._shards])

    def source_numbers(self) -> np.ndarray:
        """The number of each document's source in `index.sources` [N]."""
        return np.concatenate([shard.sources for shard in self._shards])

    def _locate(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise InvalidInputError(
                f"there is no document {number}: {self.folder} has documents 0 to {len(self) - 1}", param="number"
            )
        shard = bisect.bisect_right(self._starts, number) - 1
        return shard, number - self._starts[shard]

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        ours, theirs = stamp_of(tokenizer), self.index.tokenizer
        if ours.sha256 != theirs.sha256:
            raise DatasetError(
                f"{self.folder} was made with another tokenizer ({theirs.name or 'unnamed'}, {theirs.vocab_size} ids, "
                f"SHA-256 {theirs.sha256[:12]}) than this one ({ours.vocab_size} ids, {ours.sha256[:12]}); "
                "make shards for it with `ossia data shard --tokenizer`"
            )

    def _check_file(self, entry: ShardEntry, *, verify: bool) -> None:
        path = self.folder / entry.file
        if not path.is_file():
            raise DatasetError(f"{path} is absent, but the index names it; copy it again or make the shards anew")
        size = path.stat().st_size
        if size != entry.bytes:
            raise DatasetError(
                f"{path} has {size} bytes, but the index says {entry.bytes}: it was cut off or altered; "
                "copy it again or make the shards anew"
            )
        if verify and sha256_of(path) != entry.sha256:
            raise DatasetError(f"{path} does not match its SHA-256 in the index; copy it again or make the shards anew")

    def _map(self, entry: ShardEntry) -> _Shard:
        path = self.folder / entry.file
        expected = {
            "tokens": (DTYPES[self.index.dtype], entry.tokens),
            "ends": ("I64", entry.documents),
            "sources": ("U16", entry.documents),
        }
        try:
            views = _map_tensors(path, expected)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path} is no shard of this index ({error}); make the shards anew") from error
        shard = _Shard(**views)
        if shard.ends[-1] != entry.tokens or np.diff(shard.ends, prepend=0).min() < 1:
            raise DatasetError(f"{path}: the ends of its documents contradict its tokens; make the shards anew")
        if int(shard.sources.max()) >= len(self.index.sources):
            raise DatasetError(f"{path} names a source that the index lacks; make the shards anew")
        return shard


def _map_tensors(path: Path, expected: dict[str, tuple[str, int]]) -> dict[str, np.ndarray]:
    """Map one-dimensional tensors of a safetensors file: 8 bytes of header length, the JSON header, then the data."""
    whole = np.memmap(path, dtype=np.uint8, mode="r")
    length = int(whole[:8].view("<u8")[0])
    if not 0 < length <= min(MAX_HEADER, len(whole) - 8):
        raise ValueError("its header is damaged")
    header = json.loads(bytes(whole[8 : 8 + length]))
    types = {"U16": "<u2", "U32": "<u4", "I64": "<i8"}
    views: dict[str, np.ndarray] = {}
    for name, (dtype, size) in expected.items():
        entry = header[name]
        if entry["dtype"] != dtype or entry["shape"] != [size]:
            raise ValueError(f"{name} is {entry['dtype']} {entry['shape']}, but should be {dtype} [{size}]")
        start, stop = entry["data_offsets"]
        data = whole[8 + length + start : 8 + length + stop]
        if len(data) != size * np.dtype(types[dtype]).itemsize:
            raise ValueError(f"{name} is cut off")
        views[name] = data.view(types[dtype])
    return views
