"""What token shards hold, in numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ossia.training.data.shards.order import MixOrder
from ossia.training.data.shards.reader import ShardedTokens


def describe(shards: ShardedTokens) -> dict[str, Any]:
    """Counts, lengths and sources of shards, as JSON types. Reads the ends of documents, not their tokens."""
    lengths = shards.lengths()
    index = shards.index
    return {
        "folder": str(shards.folder),
        "documents": len(shards),
        "tokens": shards.num_tokens,
        "shards": len(index.shards),
        "bytes": sum(entry.bytes for entry in index.shards),
        "dtype": index.dtype,
        "tokenizer": index.tokenizer.name,
        "tokenizer_sha256": index.tokenizer.sha256,
        "vocab_size": index.tokenizer.vocab_size,
        "shortest_document": int(lengths.min()),
        "median_document": int(np.median(lengths)),
        "longest_document": int(lengths.max()),
        "documents_a_pass": len(MixOrder(shards, seed=0, epoch=0)),
        "sources": [dataclasses.asdict(source) for source in index.sources],
    }
