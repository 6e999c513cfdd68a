from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.config import TrainConfig
from ossia.training.data.batches.examples import Example
from ossia.training.data.batches.packing import Batch, pack_row, stack_rows
from ossia.training.data.batches.stream import stream
from ossia.training.loss import IGNORED
from ossia.training.sources import make_source

PADDING = 9_999


def numbered_examples(seed: int, *, longest: int) -> list[Example]:
    """Examples in which every token occurs once, so that a row tells where each came from."""
    rng = random.Random(seed)
    counter = itertools.count()
    examples: list[Example] = []
    for _ in range(40):
        size = rng.randint(2, longest)
        num_prompt = rng.randint(0, size - 1)
        ids = [next(counter) for _ in range(size)]
        examples.append(Example(ids, [place >= num_prompt for place in range(size)]))
    return examples


@given(seed=st.integers(0, 2**32), length=st.integers(1, 40), longest=st.integers(2, 50))
def test_a_row_holds_whole_examples_side_by_side(seed: int, length: int, longest: int) -> None:
    examples = numbered_examples(seed, longest=longest)
    row = pack_row(iter(examples).__next__, length=length, padding=PADDING)
    assert [tuple(tensor.shape) for tensor in row[:4]] == [(length,)] * 4
    assert row.weights is None
    ids, targets, positions, documents = (tensor.tolist() for tensor in row[:4])
    place = 0
    for number in range(max(documents) + 1):
        size = documents.count(number)
        part = slice(place, place + size)
        assert documents[part] == [number] * size
        assert positions[part] == list(range(size))
        if ids[place] == PADDING:
            assert part.stop == length
            assert ids[part] == [PADDING] * size
            assert targets[part] == [IGNORED] * size
        else:
            example = examples[number]
            assert size == len(example.ids) - 1 or (number == 0 and size == length)
            assert ids[part] == example.ids[:size]
            wanted = zip(example.ids[1:], example.is_learned[1:], strict=True)
            assert targets[part] == [token if learned else IGNORED for token, learned in wanted][:size]
        place += size
    assert place == length


def test_a_long_example_is_cut_only_in_an_empty_row() -> None:
    long = Example(list(range(10)), [True] * 10)
    short = Example([50, 51, 52], [False, True, True])
    row = pack_row(iter([long, short]).__next__, length=6, padding=PADDING)
    assert row.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert row.targets.tolist() == [1, 2, 3, 4, 5, 6]
    row = pack_row(iter([short, long]).__next__, length=6, padding=PADDING)
    assert row.ids.tolist() == [50, 51, *[PADDING] * 4]
    assert row.targets.tolist() == [51, 52, *[IGNORED] * 4]
    assert row.documents.tolist() == [0, 0, 1, 1, 1, 1]
    assert row.positions.tolist() == [0, 1, 0, 1, 2, 3]


def test_what_is_learned_may_differ_from_what_is_read_and_count_more_or_less() -> None:
    """An answer within a conversation is read with one end and learned with another."""
    plain = Example([1, 2, 3], [False, True, True])
    weighted = Example([4, 5, 6, 7], [False, True, True, True], targets=[4, 5, 60, 7], weights=[0.0, 0.5, 2.0, 1.0])
    row = pack_row(iter([plain, weighted, None]).__next__, length=7, padding=PADDING)
    assert row.ids.tolist() == [1, 2, 4, 5, 6, PADDING, PADDING]
    assert row.targets.tolist() == [2, 3, 5, 60, 7, IGNORED, IGNORED]
    assert row.weights is not None
    assert row.weights.tolist() == [1, 1, 0.5, 2, 1, 0, 0]
    even = pack_row(iter([plain, None]).__next__, length=7, padding=PADDING)
    assert even.weights is None
    batch = stack_rows([even, row])
    assert batch.weights is not None
    assert torch.equal(batch.weights, torch.stack([torch.ones(7), row.weights]))
    moved = batch.to(torch.device("cpu")).rows(slice(0, 1)).weights
    assert moved is not None
    assert torch.equal(moved, torch.ones(1, 7))


def take(config: TrainConfig, tokenizer: Tokenizer, count: int, *, first: int = 0, **options: int) -> list[Batch]:
    source = make_source(config.data, tokenizer=tokenizer, identity=config.identity)
    return list(itertools.islice(stream(source, first=first, **options), count))


def is_same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    tensors = [(x, y) for a, b in pairs for x, y in zip(a, b, strict=True)]
    return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in tensors)


def test_batches_follow_from_the_seed_and_the_step(config: TrainConfig, tokenizer: Tokenizer) -> None:
    first = take(config, tokenizer, 2)
    assert first[0].ids.shape == (config.data.rows, config.data.sequence_length)
    assert first[0].documents.dtype == torch.int32
    assert is_same(first, take(config, tokenizer, 2))
    assert not is_same(first, take(config, tokenizer, 2, first=2))
    assert not is_same(first[:1], first[1:])


def test_a_stream_may_be_entered_anywhere_and_workers_change_nothing(config: TrainConfig, tokenizer: Tokenizer) -> None:
    whole = take(config, tokenizer, 7)
    assert is_same(whole[3:], take(config, tokenizer, 4, first=3))
    assert is_same(whole[2:], take(config, tokenizer, 5, first=2, num_workers=2))


def test_processes_get_parts_of_the_same_batch(config: TrainConfig, tokenizer: Tokenizer) -> None:
    whole = take(config, tokenizer, 2)
    parts = [take(config, tokenizer, 2, place=place, parts=2) for place in range(2)]
    for number, batch in enumerate(whole):
        assert is_same([batch], [Batch(*map(torch.cat, zip(*(part[number][:4] for part in parts), strict=True)))])


def test_rows_that_cannot_be_dealt_evenly(config: TrainConfig, tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match=r"2 rows .* 3 processes; make data\.rows a multiple"):
        take(config, tokenizer, 1, place=0, parts=3)


@settings(max_examples=5)
@given(first=st.integers(0, 1000))
def test_targets_are_the_next_token_of_the_same_document(config: TrainConfig, tokenizer: Tokenizer, first: int) -> None:
    batch = take(config, tokenizer, 1, first=first)[0]
    learned = batch.targets[:, :-1] != IGNORED
    is_inside = batch.documents[:, 1:] == batch.documents[:, :-1]
    both = learned & is_inside
    assert both.any()
    assert torch.equal(batch.targets[:, :-1][both], batch.ids[:, 1:][both])
    assert int(batch.ids.max()) < tokenizer.vocab_size
    # What is learned across a document's end is its own stop token, never the next document's first one.
    assert set(batch.targets[:, :-1][learned & ~is_inside].tolist()) <= {
        tokenizer.return_,
        tokenizer.call,
        tokenizer.endoftext,
    }
