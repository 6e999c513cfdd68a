from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import CONTROL_TOKEN_IDS, Vocabulary
from ossia.training.data.shards.writer import ShardWriter


def bytes_tokenizer(*, first_special: int = 256) -> Tokenizer:
    """One token a byte; the control tokens from `first_special` on."""
    specials = {token.value: first_special + place for place, token in enumerate(CONTROL_TOKEN_IDS)}
    ranks = {bytes([byte]): byte for byte in range(256)}
    return Tokenizer(Vocabulary(ranks=ranks, specials=specials, size=first_special + len(specials)))


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    return bytes_tokenizer()


WriteShards = Callable[..., Path]


@pytest.fixture
def write_shards(tmp_path: Path, small_tokenizer: Tokenizer) -> WriteShards:
    """Writes texts by source into a folder of shards."""

    def write(
        texts: dict[str, Sequence[str]], *, repeats: dict[str, float] | None = None, shard_tokens: int = 64
    ) -> Path:
        folder = tmp_path / "shards"
        with ShardWriter(
            folder, tokenizer=small_tokenizer, sources=list(texts), tokenizer_name="bytes", shard_tokens=shard_tokens
        ) as writer:
            for source, documents in texts.items():
                for text in documents:
                    writer.add(text, source=source)
            writer.finish(repeats=repeats)
        return folder

    return write
