from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.training.data.shards.order import MixOrder
from ossia.training.data.shards.reader import ShardedTokens
from ossia.training.data.shards.rows import TokenBatch, TokenRows

FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
SIZES = st.lists(st.integers(0, 30), min_size=3, max_size=30)


def same(one: TokenBatch, other: TokenBatch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@FIXTURES
@given(sizes=SIZES, length=st.integers(1, 12), rows=st.integers(1, 4), seed=st.integers(0, 3))
def test_rows_are_the_documents_laid_end_to_end(
    sizes: list[int], length: int, rows: int, seed: int, write_shards: Any
) -> None:
    """Against the plain way: join the pairs of a pass's documents in order, cut them, drop the rest."""
    texts = ["".join(chr(97 + (i + j) % 26) for j in range(size)) for i, size in enumerate(sizes)]
    shards = ShardedTokens(write_shards({"a": texts}))
    if sum(sizes) < length:
        with pytest.raises(InvalidInputError, match="less than one row"):
            TokenRows(shards, length=length, rows=rows, seed=seed)
        return
    expected: list[list[tuple[int, int]]] = []
    for epoch in range(3):
        pairs = [
            pair
            for ids in shards.documents(MixOrder(shards, seed=seed, epoch=epoch))
            for pair in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True)
        ]
        expected += [pairs[start : start + length] for start in range(0, len(pairs) - length + 1, length)]
    stream = TokenRows(shards, length=length, rows=rows, seed=seed)
    got = [
        list(zip(ids.tolist(), targets.tolist(), strict=True))
        for number in range(len(expected) // rows)
        for ids, targets in zip(*stream.batch(number)[:2], strict=True)
    ]
    assert got == expected[: len(got)]


@FIXTURES
@given(numbers=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_a_batch_needs_no_batch_before_it(numbers: list[int], write_shards: Any) -> None:
    folder = write_shards({"a": [f"text {i}" * (i % 5 + 1) for i in range(20)], "b": ["b" * 9] * 3}, repeats={"b": 1.5})
    going = TokenRows(ShardedTokens(folder), length=16, rows=2, seed=7)
    straight = [going.batch(number) for number in range(max(numbers) + 1)]
    for number in numbers:
        resumed = TokenRows(ShardedTokens(folder), length=16, rows=2, seed=7)
        assert same(resumed.batch(number), straight[number])


def test_pieces_are_numbered_and_placed(write_shards: Any, small_tokenizer: Any) -> None:
    stream = TokenRows(ShardedTokens(write_shards({"a": ["abcdefghij", "klm", "nopq"] * 4})), length=8, rows=3, seed=0)
    for number in range(4):
        batch = stream.batch(number)
        assert batch.documents.dtype == np.int32
        for documents, positions, ids in zip(batch.documents, batch.positions, batch.ids, strict=True):
            assert documents[0] == 0
            assert set(np.diff(documents)) <= {0, 1}
            starts = np.flatnonzero(np.diff(documents, prepend=-1))
            assert (positions[starts] == 0).all()
            assert all(positions[i] == positions[i - 1] + 1 for i in range(1, 8) if i not in starts)
            assert small_tokenizer.endoftext not in ids


def test_each_pass_sees_every_document(write_shards: Any) -> None:
    texts = [chr(97 + number) * 2 for number in range(20)]
    stream = TokenRows(ShardedTokens(write_shards({"a": texts})), length=2, rows=1, seed=3)
    for epoch in range(3):
        batches = [stream.batch(number) for number in range(20 * epoch, 20 * epoch + 20)]
        assert Counter(int(batch.ids[0, 0]) for batch in batches) == Counter(range(97, 117))
        assert {stream.epoch_of(number) for number in range(20 * epoch, 20 * epoch + 20)} == {epoch}


@pytest.mark.parametrize(("length", "rows", "number"), [(0, 1, 0), (1, 0, 0), (2, 1, -1)])
def test_bad_numbers(length: int, rows: int, number: int, write_shards: Any) -> None:
    shards = ShardedTokens(write_shards({"a": ["abcdef"]}))
    with pytest.raises(InvalidInputError):
        TokenRows(shards, length=length, rows=rows, seed=0).batch(number)
