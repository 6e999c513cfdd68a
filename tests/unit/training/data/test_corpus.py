from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from tests.unit.training.data.conftest import bytes_tokenizer

from ossia.core.errors import DatasetError, InvalidInputError
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.build import build, shard
from ossia.training.data.corpus import ShardCorpus, TextCorpus, folder_texts, open_folder
from ossia.training.data.examples import read_corpus
from ossia.training.data.manifest import parse_manifest

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
    drawn = open_folder(folder, tokenizer=tokenizer)
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
    assert isinstance(open_folder(corpus, tokenizer=small_tokenizer), ShardCorpus)
    assert isinstance(open_folder(corpus / "tokens", tokenizer=small_tokenizer), ShardCorpus)
    assert shares_drawn(corpus, small_tokenizer) == pytest.approx(SHARES, abs=0.06)


def test_text_serves_where_shards_are_absent_or_another_tokenizers(corpus: Path, small_tokenizer: Tokenizer) -> None:
    """Lengths are characters there, so the ends of the many short documents shift the share of tokens a little."""
    assert isinstance(open_folder(corpus, tokenizer=small_tokenizer), TextCorpus)
    assert shares_drawn(corpus, small_tokenizer) == pytest.approx(SHARES, abs=0.1)
    shard(corpus, tokenizer=small_tokenizer)
    other = bytes_tokenizer(first_special=300)
    assert isinstance(open_folder(corpus, tokenizer=other), TextCorpus)
    with pytest.raises(DatasetError, match="another tokenizer"):
        open_folder(corpus / "tokens", tokenizer=other)


def test_texts(corpus: Path) -> None:
    assert len(list(folder_texts(corpus))) == 33


def test_no_corpus(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match="without a text"):
        read_corpus(tmp_path)
    with pytest.raises(DatasetError, match="ossia data build"):
        open_folder(tmp_path, tokenizer=small_tokenizer)
