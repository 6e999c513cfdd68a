from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.training.data.conftest import bytes_tokenizer

from ossia.core.errors import DatasetError, InvalidInputError
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.batches.examples import read_corpus
from ossia.training.data.corpus.build import build, shard
from ossia.training.data.corpus.reader import ShardCorpus, TextCorpus, folder_texts, open_folder
from ossia.training.data.shards.reader import ShardedTokens
from ossia.training.data.sources.manifest import parse_manifest

SHARES = {"a": 0.8, "b": 0.2}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Thirty short texts of a, three of b, ten times as long."""
    letters = {"a": [f"a{number:02d}" for number in range(30)], "b": [f"b{number}" * 15 for number in range(3)]}
    for name, texts in letters.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = [
        {"name": name, "path": f"{name}.jsonl", "license": "x", "origin": "y", "share": share, "epochs": 9}
        for name, share in SHARES.items()
    ]
    filters = {"quality": [], "languages": [], "near_duplicates": 0.0, "held_out_problems": 0}
    build(parse_manifest({"filters": filters, "sources": sources}, folder=tmp_path), tmp_path / "out")
    return tmp_path / "out"


def shares_drawn(folder: Path, tokenizer: Tokenizer) -> dict[str, float]:
    drawn = open_folder(folder, tokenizer=tokenizer, longest=1000)
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    for _ in range(4000):
        ids = drawn.draw(rng)
        assert ids[-1] == tokenizer.endoftext
        counts[tokenizer.decode(ids)[0]] += len(ids)
    return {name: counts[name] / counts.total() for name in SHARES}


def test_shares_hold_among_shards(corpus: Path, small_tokenizer: Tokenizer) -> None:
    """4,000 draws, some 100 of b: a share of 0.2 with a standard error under 0.02."""
    shard(corpus, tokenizer=small_tokenizer)
    assert isinstance(open_folder(corpus, tokenizer=small_tokenizer, longest=1000), ShardCorpus)
    assert isinstance(open_folder(corpus / "tokens", tokenizer=small_tokenizer, longest=1000), ShardCorpus)
    assert shares_drawn(corpus, small_tokenizer) == pytest.approx(SHARES, abs=0.06)


def test_text_serves_where_shards_are_absent_or_another_tokenizers(corpus: Path, small_tokenizer: Tokenizer) -> None:
    """Lengths are characters there, so the ends of the many short documents shift the share of tokens a little."""
    assert isinstance(open_folder(corpus, tokenizer=small_tokenizer, longest=1000), TextCorpus)
    assert shares_drawn(corpus, small_tokenizer) == pytest.approx(SHARES, abs=0.1)
    shard(corpus, tokenizer=small_tokenizer)
    other = bytes_tokenizer(first_special=300)
    assert isinstance(open_folder(corpus, tokenizer=other, longest=1000), TextCorpus)
    with pytest.raises(DatasetError, match="another tokenizer"):
        open_folder(corpus / "tokens", tokenizer=other, longest=1000)


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), longest=st.integers(2, 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_pieces_cover_each_target_once(sizes: list[int], longest: int, write_shards: Any) -> None:
    texts = [chr(97 + number) * size for number, size in enumerate(sizes)]
    shards = ShardedTokens(write_shards({"a": texts}))
    drawn = ShardCorpus(shards, longest=longest)
    rng = random.Random(0)
    pieces = {tuple(drawn.draw(rng)) for _ in range(6000)}  # of 240 at most: missing one is below e^-20
    assert all(len(piece) <= longest for piece in pieces)
    distinct = {
        tuple(ids[start : start + longest].tolist())
        for ids in shards.documents()
        for start in range(0, max(1, len(ids) - 1), longest - 1)
    }
    assert pieces == distinct


def test_a_long_text_gives_any_of_its_pieces(small_tokenizer: Tokenizer) -> None:
    corpus = TextCorpus([["abcdef"]], weights=[1.0], tokenizer=small_tokenizer, longest=4)
    rng = random.Random(0)
    end = small_tokenizer.endoftext
    assert {tuple(corpus.draw(rng)) for _ in range(100)} == {
        (97, 98, 99, 100),
        (98, 99, 100, 101),
        (99, 100, 101, 102),
        (100, 101, 102, end),
    }


def test_texts(corpus: Path) -> None:
    assert len(list(folder_texts(corpus))) == 33


def test_no_corpus(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match="without a text"):
        read_corpus(tmp_path)
    with pytest.raises(DatasetError, match="ossia data build"):
        open_folder(tmp_path, tokenizer=small_tokenizer, longest=1000)
