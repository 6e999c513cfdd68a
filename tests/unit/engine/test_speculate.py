from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.engine.plan import ScheduledSequence
from ossia.engine.request import Request, SamplingParams
from ossia.engine.sampler import Sampler, make_rows
from ossia.engine.sequence import Sequence
from ossia.engine.speculate import LookupConfig, PromptLookup, accept_drafts

arrivals = itertools.count()


def sequence_of(tokens: list[int], *, num_prompt: int | None = None, **params: Any) -> Sequence:
    num_prompt = len(tokens) if num_prompt is None else num_prompt
    return Sequence(
        request=Request(id="a", prompt_ids=tuple(tokens[:num_prompt]), params=SamplingParams(**params)),
        index=0,
        seed=5,
        arrival=next(arrivals),
        max_length=10_000,
        token_ids=list(tokens),
        num_prompt=num_prompt,
    )


def drafts_in_python(tokens: list[int], *, config: LookupConfig, count: int) -> tuple[int, ...]:
    """Longest agreement first, of equals the latest, by looking everywhere."""
    for n in range(config.max_ngram, config.min_ngram - 1, -1):
        for place in range(len(tokens) - 1, n - 1, -1):
            if tokens[place - n : place] == tokens[len(tokens) - n :]:
                text = list(tokens)
                for _ in range(count):
                    text.append(text[place + len(text) - len(tokens)])
                return tuple(text[len(tokens) :])
    return ()


configs = st.builds(
    lambda low, more, batch: LookupConfig(
        min_ngram=low, max_ngram=low + more, max_places=1000, index_batch=batch, first_drafts=5
    ),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([1, 7, 4096]),
)


@settings(max_examples=300, deadline=None)
@given(
    config=configs,
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    pieces=st.lists(st.integers(1, 4), max_size=12),
    count=st.integers(1, 6),
)
def test_drafts_are_what_followed_the_longest_agreement(
    config: LookupConfig, tokens: list[int], pieces: list[int], count: int
) -> None:
    lookup = PromptLookup(config)
    lengths = [*itertools.accumulate(pieces), len(tokens)]
    sequence = sequence_of(tokens[:1])
    for length in lengths:
        sequence.token_ids = tokens[:length] or tokens[:1]
        drafts = lookup.propose(sequence, count)
        for _ in range(40):  # a small index_batch takes several calls
            drafts = lookup.propose(sequence, count)
        assert drafts == drafts_in_python(sequence.token_ids, config=config, count=min(count, 5))


class Machine:
    """A model of one function that falls into loops: noise by the last token and, seldom, by the length."""

    vocab_size = 6

    def __init__(self, seed: int) -> None:
        self._noise = 3 * torch.randn(200, self.vocab_size, generator=torch.Generator().manual_seed(seed))

    def logits(self, tokens: list[int]) -> torch.Tensor:
        return self._noise[tokens[-1]] + (self._noise[50 + len(tokens) % 100] if len(tokens) % 7 == 0 else 0.0)


sampling = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.4, 1.0])},
    optional={
        "top_p": st.sampled_from([0.8]),
        "frequency_penalty": st.sampled_from([0.2]),
        "repetition_penalty": st.sampled_from([1.2]),
        "min_tokens": st.sampled_from([10]),
        "logprobs": st.sampled_from([2]),
    },
)


@settings(max_examples=50, deadline=None)
@given(prompt=st.lists(st.integers(1, 5), min_size=1, max_size=12), params=sampling, seed=st.integers(0, 10**6))
def test_drafts_do_not_change_the_output(prompt: list[int], params: dict[str, Any], seed: int) -> None:
    machine, length = Machine(seed), 50
    stop_ids = (0,)

    def run(lookup: PromptLookup | None) -> tuple[list[int], list[Any], int]:
        sampler = Sampler(vocab_size=machine.vocab_size)
        sequence = sequence_of(prompt, **params)
        logprobs: list[Any] = []
        num_steps = 0
        while sequence.num_output < length and 0 not in sequence.output_ids:
            drafts = lookup.propose(sequence, length - sequence.num_output - 1) if lookup else ()
            tokens = sequence.token_ids
            num = 1 + len(drafts)
            plan = ScheduledSequence(sequence, len(tokens) - 1, num, drafts, False, num, 0)
            logits = [machine.logits([*tokens, *drafts[:place]]) for place in range(num)]
            samples = sampler(torch.stack(logits), make_rows(plan, stop_ids=stop_ids)).take()
            accepted = accept_drafts(drafts, samples.ids)
            if 0 in accepted:
                accepted = accepted[: accepted.index(0) + 1]
            if lookup:
                lookup.record(sequence, num_drafts=len(drafts), num_accepted=len(accepted) - 1)
            sequence.token_ids += accepted
            logprobs += (samples.logprobs or [])[: len(accepted)]
            num_steps += 1
        return sequence.output_ids, logprobs, num_steps

    plain_ids, plain_logprobs, plain_steps = run(None)
    ids, logprobs, num_steps = run(PromptLookup(LookupConfig(min_ngram=1)))
    assert ids == plain_ids
    assert logprobs == plain_logprobs
    assert num_steps <= plain_steps == len(plain_ids)


def test_a_text_that_repeats_takes_fewer_steps() -> None:
    text = [*range(30)] * 4
    lookup, sequence, num_steps = PromptLookup(), sequence_of(text[:30]), 0
    while len(sequence.token_ids) < len(text) - 10:
        length = len(sequence.token_ids)
        drafts = lookup.propose(sequence, 8)
        accepted = accept_drafts(drafts, text[length : length + len(drafts) + 1])
        lookup.record(sequence, num_drafts=len(drafts), num_accepted=len(accepted) - 1)
        sequence.token_ids += accepted
        num_steps += 1
    # Two tokens are needed to know the place, then 4 + 1 and from then on 8 + 1 a step.
    assert num_steps == 2 + 1 + 9
    assert sequence.token_ids == text[: len(sequence.token_ids)]


@pytest.mark.parametrize(
    ("drafts", "sampled", "wanted"),
    [
        ((), [4], [4]),
        ((1, 2), [1, 2, 3], [1, 2, 3]),
        ((1, 2), [1, 9, 3], [1, 9]),
        ((1, 2), [9, 2, 3], [9]),
    ],
)
def test_accepted_are_the_tokens_foreseen_and_one_more(
    drafts: tuple[int, ...], sampled: list[int], wanted: list[int]
) -> None:
    assert accept_drafts(drafts, sampled) == wanted


def test_wrong_drafts_become_shorter_and_then_pause() -> None:
    lookup = PromptLookup(LookupConfig(max_drafts=8, first_drafts=4, max_pause=5))
    sequence = sequence_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])

    def lengths(count: int) -> list[int]:
        return [len(lookup.propose(sequence, 100)) for _ in range(count)]

    assert lengths(2) == [4, 4]
    lookup.record(sequence, num_drafts=4, num_accepted=4)
    assert lengths(1) == [8]
    lookup.record(sequence, num_drafts=8, num_accepted=2)
    assert lengths(1) == [3]
    for pause in (1, 3, 5, 5):
        lookup.record(sequence, num_drafts=3, num_accepted=0)
        assert lengths(pause + 1) == [0] * pause + [1]
    lookup.record(sequence, num_drafts=1, num_accepted=1)
    assert lengths(1) == [2]


def test_no_drafts_where_none_are_wanted_or_possible() -> None:
    lookup = PromptLookup()
    tokens = [1, 2, 3, 1, 2]
    assert lookup.propose(sequence_of(tokens), 2) == (3, 1)
    assert lookup.propose(sequence_of(tokens), 0) == ()
    assert lookup.propose(sequence_of(tokens, speculate=False), 2) == ()
    in_flight = sequence_of(tokens)
    in_flight.num_in_flight = 1
    assert lookup.propose(in_flight, 2) == ()
    assert lookup.propose(sequence_of([1]), 2) == ()


def test_memory_is_released() -> None:
    lookup = PromptLookup()
    sequence = sequence_of([1, 2, 1, 2])
    lookup.propose(sequence, 1)
    assert lookup.num_sequences == 1
    lookup.release(sequence)
    lookup.release(sequence)
    lookup.record(sequence, num_drafts=1, num_accepted=1)
    assert lookup.num_sequences == 0


@pytest.mark.parametrize("changes", [{"max_ngram": 1}, {"max_drafts": 0}, {"min_ngram": 0}, {"index_batch": "8"}])
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        LookupConfig(**changes)
