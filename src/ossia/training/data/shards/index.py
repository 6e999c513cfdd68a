"""The index of a folder of token shards: what is in it, made by which tokenizer, and how to tell that it is whole.

    index.json              format, version, tokenizer, sources, and a line a shard: file, counts, bytes, SHA-256
    shard-00000.safetensors tokens [T] of U16 or U32, ends [N] of I64, sources [N] of U16

`ends[i]` is where document i of the shard stops in `tokens`; it starts where the one before it stopped. The last token
of a document is `<|endoftext|>`. A shard is an ordinary safetensors file, so that any tool can read it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ossia.core.errors import DatasetError
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import tiktoken_sha256

INDEX_FILE = "index.json"
TOKENS_FOLDER = "tokens"
"""Where `ossia data build` puts shards, within the folder of a corpus."""
FORMAT = "ossia-token-shards"
VERSION = 1
DTYPES = {"uint16": "U16", "uint32": "U32"}
"""Names of numpy for the token types, and those of safetensors."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerStamp:
    """Which tokenizer made the ids.

    Attributes:
        name: for people; what was asked for.
        sha256: of its ranks, its special tokens and its pattern: equal stamps encode equally.
        vocab_size: no id reaches it.
    """

    name: str
    sha256: str
    vocab_size: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SourceCount:
    """What one source gave.

    Attributes:
        repeats: how often each of its documents comes in one pass over the mix; a fraction is a random subset.
    """

    name: str
    documents: int
    tokens: int
    repeats: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard: its file name, its counts, its size in bytes and the SHA-256 of the whole file."""

    file: str
    documents: int
    tokens: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """A whole `index.json`."""

    tokenizer: TokenizerStamp
    dtype: str
    sources: tuple[SourceCount, ...]
    shards: tuple[ShardEntry, ...]

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards, the ends of documents included."""
        return sum(shard.tokens for shard in self.shards)

    def to_json(self) -> str:
        """The text of `index.json`."""
        record = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps(record, indent=1) + "\n"


def stamp_of(tokenizer: Tokenizer, *, name: str = "") -> TokenizerStamp:
    """The stamp of a tokenizer."""
    vocabulary = tokenizer.vocabulary
    parts = [tiktoken_sha256(vocabulary.ranks), dict(sorted(vocabulary.specials.items())), vocabulary.pattern]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return TokenizerStamp(name=name, sha256=digest, vocab_size=tokenizer.vocab_size)


def read_index(folder: Path) -> ShardIndex:
    """Read and check `index.json`.

    Raises:
        DatasetError: it is absent, is no such index, or is of another version.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise DatasetError(
            f"{folder} holds no token shards: there is no {INDEX_FILE}; make them with `ossia data build` or "
            "`ossia data shard`"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); make the shards anew with `ossia data shard`") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DatasetError(f"{path} is not the index of token shards: its format should be {FORMAT!r}")
    if record.get("version") != VERSION:
        raise DatasetError(
            f"{path} is of version {record.get('version')!r}, but this ossia reads version {VERSION}; "
            "make the shards anew with `ossia data shard`"
        )
    try:
        return _parse(record)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}); make the shards anew with `ossia data shard`") from error


def _parse(record: dict[str, Any]) -> ShardIndex:
    index = ShardIndex(
        tokenizer=TokenizerStamp(**record["tokenizer"]),
        dtype=record["dtype"],
        sources=tuple(SourceCount(**source) for source in record["sources"]),
        shards=tuple(ShardEntry(**shard) for shard in record["shards"]),
    )
    if index.dtype not in DTYPES:
        raise ValueError(f"dtype is {index.dtype!r}, but must be one of {', '.join(DTYPES)}")
    for shard in index.shards:
        if Path(shard.file).name != shard.file:
            raise ValueError(f"{shard.file!r} is no plain file name")
        counts = (shard.documents, shard.tokens, shard.bytes)
        if not all(isinstance(count, int) and count > 0 for count in counts):
            raise ValueError(f"the counts of {shard.file} must be positive whole numbers")
    for source in index.sources:
        if not (isinstance(source.repeats, int | float) and source.repeats >= 0):
            raise ValueError(f"the repeats of source {source.name!r} must be a number of at least 0")
    return index
