from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tests.unit.training.data.conftest import bytes_tokenizer

from ossia.core.errors import DatasetError, InvalidInputError, StorageError
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.shards import writer as shard_writer
from ossia.training.data.shards.index import read_index
from ossia.training.data.shards.reader import ShardedTokens
from ossia.training.data.shards.writer import ShardWriter

TEXTS = {"prose": [f"document {number} of the prose" for number in range(10)], "verse": ["roses", "violets are blue"]}


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "index.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=30),
    shard_tokens=st.integers(1, 200),
)
def test_what_is_written_is_read(
    texts: list[str], shard_tokens: int, write_shards: Any, small_tokenizer: Tokenizer
) -> None:
    shards = ShardedTokens(
        write_shards({"a": texts}, shard_tokens=shard_tokens), tokenizer=small_tokenizer, verify=True
    )
    assert len(shards) == len(texts)
    for ids, text in zip(shards.documents(), texts, strict=True):
        assert ids.dtype == np.uint16
        assert ids.tolist() == [*small_tokenizer.encode(text), small_tokenizer.endoftext]
    assert shards.num_tokens == sum(shards.lengths())


def test_sources_and_several_shards(write_shards: Any) -> None:
    folder = write_shards(TEXTS, repeats={"verse": 2.5})
    shards = ShardedTokens(folder)
    assert len(shards.index.shards) > 2
    assert [shards.source(number) for number in range(12)] == ["prose"] * 10 + ["verse"] * 2
    assert [source.repeats for source in shards.index.sources] == [1.0, 2.5]
    assert [source.documents for source in shards.index.sources] == [10, 2]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_any_safetensors_reader_opens_a_shard(write_shards: Any, small_tokenizer: Tokenizer) -> None:
    tensors = load_file(write_shards({"a": ["ab", "c"]}) / "shard-00000.safetensors")
    assert tensors["tokens"].tolist() == [97, 98, small_tokenizer.endoftext, 99, small_tokenizer.endoftext]
    assert tensors["ends"].tolist() == [3, 5]


def test_wide_ids(tmp_path: Path) -> None:
    wide = bytes_tokenizer(first_special=70_000)
    with ShardWriter(tmp_path / "wide", tokenizer=wide, sources=["a"]) as writer:
        writer.add("x", source="a")
        writer.finish()
    ids = ShardedTokens(tmp_path / "wide", tokenizer=wide).document(0)
    assert ids.dtype == np.uint32
    assert ids.tolist() == [120, wide.endoftext]
    assert ids[-1] >= 70_000


def test_documents_are_read_only(write_shards: Any) -> None:
    with pytest.raises(ValueError, match="read-only"):
        ShardedTokens(write_shards(TEXTS)).document(0)[0] = 1


@pytest.mark.parametrize("number", [-1, 12])
def test_no_such_document(number: int, write_shards: Any) -> None:
    with pytest.raises(InvalidInputError, match="documents 0 to 11"):
        ShardedTokens(write_shards(TEXTS)).document(number)


def test_another_tokenizer(write_shards: Any) -> None:
    with pytest.raises(DatasetError, match=r"another tokenizer.*--tokenizer"):
        ShardedTokens(write_shards(TEXTS), tokenizer=bytes_tokenizer(first_special=300))


def test_a_shard_cut_off(write_shards: Any) -> None:
    folder = write_shards(TEXTS)
    path = folder / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DatasetError, match="cut off"):
        ShardedTokens(folder)


def test_a_shard_absent(write_shards: Any) -> None:
    folder = write_shards(TEXTS)
    (folder / "shard-00001.safetensors").unlink()
    with pytest.raises(DatasetError, match="absent"):
        ShardedTokens(folder)


def test_a_flipped_bit_is_found_by_the_checksum(write_shards: Any) -> None:
    folder = write_shards(TEXTS)
    path = folder / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DatasetError, match="SHA-256"):
        ShardedTokens(folder, verify=True)


@pytest.mark.parametrize("place", range(0, 400, 7))
def test_damage_never_gives_ids_beyond_the_vocabulary(
    place: int, write_shards: Any, small_tokenizer: Tokenizer
) -> None:
    folder = write_shards(TEXTS, shard_tokens=10**6)
    path = folder / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 0xFF
    path.write_bytes(bytes(data))
    try:
        for ids in ShardedTokens(folder).documents():
            assert ids.max() < small_tokenizer.vocab_size
    except DatasetError:
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(version=2), "version 2"),
        (lambda record: record.update(format="other"), "format should be"),
        (lambda record: record.pop("shards"), "damaged"),
        (lambda record: record.update(dtype="float64"), "dtype"),
        (lambda record: record["shards"][0].update(file="../x"), "plain file name"),
        (lambda record: record["shards"][0].update(tokens=3), "no shard of this index"),
        (lambda record: record["shards"][0].update(documents=-3), "positive whole numbers"),
        (lambda record: record["sources"][0].update(repeats="many"), "repeats"),
        (lambda record: record.update(sources=[]), "source that the index lacks"),
    ],
)
def test_a_bad_index(change: Callable[[dict[str, Any]], None], message: str, write_shards: Any) -> None:
    folder = write_shards(TEXTS)
    edit_index(folder, change)
    with pytest.raises(DatasetError, match=message):
        ShardedTokens(folder)


def test_an_index_that_is_no_json(write_shards: Any) -> None:
    folder = write_shards(TEXTS)
    (folder / "index.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        ShardedTokens(folder)


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="ossia data"):
        ShardedTokens(tmp_path)


def test_a_full_disk_keeps_the_last_good_shards(
    write_shards: Any, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(TEXTS)
    before = read_index(folder)
    real, calls = shard_writer.save_file, 0

    def fail_later(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(shard_writer, "save_file", fail_later)
    with ShardWriter(folder, tokenizer=small_tokenizer, sources=["a"], shard_tokens=8) as writer:
        writer.add("other words", source="a")
        writer.add("other words", source="a")
        with pytest.raises(StorageError, match=r"No space left.*untouched"):
            writer.add("other words", source="a")
    assert read_index(folder) == before
    assert len(ShardedTokens(folder, verify=True)) == 12
    assert not list(folder.parent.glob("*.new"))


def test_nothing_to_write_is_an_error_and_keeps_what_was_there(write_shards: Any, small_tokenizer: Tokenizer) -> None:
    folder = write_shards(TEXTS)
    with (
        pytest.raises(InvalidInputError, match="no document was left"),
        ShardWriter(folder, tokenizer=small_tokenizer, sources=["a"]) as writer,
    ):
        writer.finish()
    assert len(ShardedTokens(folder)) == 12


def test_a_worker_gets_the_folder_and_not_the_tokens(write_shards: Any) -> None:
    shards = ShardedTokens(write_shards({"a": ["x" * 1000] * 50}))
    packed = pickle.dumps(shards)
    assert len(packed) < 500
    assert np.array_equal(pickle.loads(packed).document(7), shards.document(7))


def test_shards_may_be_written_into_an_empty_folder_by_its_relative_name(
    tmp_path: Path, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with ShardWriter(Path(), tokenizer=small_tokenizer, sources=["a"]) as writer:
        writer.add("x", source="a")
        writer.finish()
    assert len(ShardedTokens(tmp_path / "here")) == 1
