from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.engine.plan import ScheduledSequence
from ossia.engine.request import Request, SamplingParams
from ossia.engine.sampler import SampleFailure, Sampler, SamplingRow, make_rows
from ossia.engine.sequence import Sequence
from ossia.kernels.sampling import sample, token_uniform
from ossia.model.attention import KVCache
from ossia.model.config import ModelConfig
from ossia.model.generate import GenerationOptions, generate, next_logits
from ossia.model.transformer import Transformer

V = 45  # no multiple of 32: the last word of a mask is not full
arrivals = itertools.count()


def sequence_of(
    *, prompt: tuple[int, ...] = (1, 2, 3), output: tuple[int, ...] = (), seed: int = 0, **params: Any
) -> Sequence:
    request = Request(id="a", prompt_ids=prompt, params=SamplingParams(**params))
    return Sequence(
        request=request,
        index=0,
        seed=seed,
        arrival=next(arrivals),
        max_length=10_000,
        token_ids=[*prompt, *output],
        num_prompt=len(prompt),
    )


def row_of(sequence: Sequence, **fields: Any) -> SamplingRow:
    return SamplingRow(sequence=sequence, output_index=sequence.num_output + len(fields.get("drafts", ())), **fields)


def random_logits(num_rows: int, seed: int, vocab_size: int = V) -> Tensor:
    return 3 * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))


def mask_of(allowed: set[int]) -> list[int]:
    """A mask's words as llguidance fills them."""
    words = [0] * math.ceil(V / 32)
    for token in allowed:
        words[token // 32] |= 1 << (token % 32)
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


def shaped_in_python(logits: list[float], row: SamplingRow, allowed: set[int] | None) -> list[float]:
    """One row after penalties, bias, mask and bans, by lists."""
    params = row.sequence.request.params
    prompt = row.sequence.request.prompt_ids
    output = [*row.sequence.output_ids, *row.drafts]
    shaped = list(logits)
    for token in range(V):
        x = shaped[token]
        if token in prompt or token in output:
            x = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
        x -= params.presence_penalty * (token in output) + params.frequency_penalty * output.count(token)
        bias = params.logit_bias.get(token, 0.0)
        x = -math.inf if bias <= -100 else x + bias
        if (allowed is not None and token not in allowed) or token in row.banned_ids:
            x = -math.inf
        shaped[token] = x
    return shaped


ids = st.integers(0, V - 1)
params_strategy = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.0, 0.7, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 4, 20]),
        "top_p": st.sampled_from([0.2, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3, 4.0]),
        "presence_penalty": st.sampled_from([-1.0, 0.0, 1.5]),
        "frequency_penalty": st.sampled_from([-0.5, 0.0, 0.75]),
        "logit_bias": st.dictionaries(ids, st.sampled_from([-100.0, -3.0, 2.5, 100.0]), max_size=3),
        "logprobs": st.sampled_from([None, None, 0, 2, 100]),
    },
)
row_strategy = st.fixed_dictionaries(
    {
        "params": params_strategy,
        "output": st.lists(ids, max_size=6).map(tuple),
        "drafts": st.lists(ids, max_size=3).map(tuple),
        "banned_ids": st.lists(ids, max_size=2).map(tuple),
        "allowed": st.none() | st.sets(ids, min_size=6),
        "seed": st.integers(0, 2**40),
    }
)


@settings(max_examples=150, deadline=None)
@given(specs=st.lists(row_strategy, max_size=5), seed=st.integers(0, 10**6))
def test_each_row_is_as_if_alone_and_as_in_python(specs: list[dict[str, Any]], seed: int) -> None:
    logits = random_logits(len(specs), seed)
    kept = logits.clone()
    rows: list[SamplingRow] = []
    masks: list[list[int]] = []
    for spec in specs:
        sequence = sequence_of(output=spec["output"], seed=spec["seed"], **spec["params"])
        mask = None if spec["allowed"] is None else len(masks)
        if spec["allowed"] is not None:
            masks.append(mask_of(spec["allowed"]))
        rows.append(row_of(sequence, drafts=spec["drafts"], banned_ids=spec["banned_ids"], mask=mask))
    words = np.array(masks, dtype=np.int32).reshape(-1, math.ceil(V / 32))
    sampler = Sampler(vocab_size=V)
    output = sampler(logits, rows, masks=words)
    samples = output.take()
    assert torch.equal(logits, kept)
    assert output.ids.tolist() == samples.ids
    assert sampler(logits, rows, masks=words).take() == samples  # a second time, from what it kept
    for place, (row, spec) in enumerate(zip(rows, specs, strict=True)):
        params = row.sequence.request.params
        mask = None if row.mask is None else words[row.mask : row.mask + 1]
        lone_row = row._replace(mask=None if mask is None else 0)
        alone = Sampler(vocab_size=V)(logits[place : place + 1], [lone_row], masks=mask).take()
        assert alone.ids == [samples.ids[place]]
        shaped = shaped_in_python(logits[place].tolist(), row, spec["allowed"])
        assert not samples.failures
        wanted = sample(
            torch.tensor([shaped], dtype=torch.float64),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            uniforms=torch.tensor([token_uniform(spec["seed"], row.output_index)], dtype=torch.float64),
        )
        assert samples.ids[place] == int(wanted)
        entry = samples.logprobs[place] if samples.logprobs is not None else None
        assert (entry is None) == (params.logprobs is None)
        if entry is not None:
            assert alone.logprobs == [entry]
            assert entry.token_id == samples.ids[place]
            assert len(entry.top) == min(params.logprobs or 0, V)


TOY_V = 8
TOY_TABLE = random_logits(TOY_V**2, 11, TOY_V)


def toy_logits(tokens: list[int]) -> Tensor:
    """A model of one function: noise by the last two tokens."""
    return TOY_TABLE[tokens[-2] * TOY_V + tokens[-1]]


toy_params = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 1.0, 1.5]),
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "presence_penalty": st.sampled_from([0.0, 0.8]),
        "frequency_penalty": st.sampled_from([0.0, 0.3]),
    },
)
# Which of the sequences each step has, and how many tokens each of them is given, as drafts that were right give some.
steps_strategy = st.lists(st.lists(st.sampled_from([0, 1, 1, 1, 3]), min_size=3, max_size=3), min_size=4, max_size=10)


@settings(max_examples=60, deadline=None)
@given(params=st.lists(toy_params, min_size=3, max_size=3), steps=steps_strategy)
def test_what_is_kept_from_step_to_step_is_as_if_made_afresh(
    params: list[dict[str, Any]], steps: list[list[int]]
) -> None:
    sampler = Sampler(vocab_size=TOY_V)
    sequences = [sequence_of(seed=place, **p) for place, p in enumerate(params)]
    for step in steps:
        batch = [sequence for sequence, count in zip(sequences, step, strict=True) if count]
        if not batch:
            continue
        logits = torch.stack([toy_logits(sequence.token_ids) for sequence in batch])
        rows = [row_of(sequence, drafts=(sequence.seed, 0)) for sequence in batch]
        ids = sampler(logits, rows).take().ids
        for place in range(len(batch)):
            afresh = Sampler(vocab_size=TOY_V)(logits[place : place + 1], [rows[place]]).take()
            assert afresh.ids == [ids[place]]
        for place, (sequence, count) in enumerate(zip(batch, filter(None, step), strict=True)):
            sequence.token_ids += [*ids[place : place + 1], 5, ids[0]][:count]
    for sequence in sequences:
        sampler.release(sequence)
    assert sampler._penalties.num_slots == 0


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 5, "min_p": 0.05},
        {"temperature": 1.0, "frequency_penalty": 1.0, "logit_bias": {4: 1.5}},
    ],
)
def test_frequencies_are_the_probabilities(params: dict[str, Any]) -> None:
    n = 4000
    logits = random_logits(1, 5)
    sampler = Sampler(vocab_size=V)
    counts: Counter[int] = Counter()
    rows = [row_of(sequence_of(output=(4, 4, 9), seed=seed, **params)) for seed in range(n)]
    counts.update(sampler(logits.expand(n, V), rows).take().ids)
    row = rows[0]
    shaped = torch.tensor(shaped_in_python(logits[0].tolist(), row, None), dtype=torch.float64)
    share = (shaped / params["temperature"]).softmax(-1)
    ranked = share.argsort(descending=True).tolist()[: params.get("top_k") or None]
    if "top_p" in params:
        ranked = [t for i, t in enumerate(ranked) if sum(share[ranked[:i]].tolist()) < params["top_p"]]
    kept = [t for t in ranked if share[t] >= params.get("min_p", 0.0) * share.max()]
    total = float(share[kept].sum())
    assert set(counts) <= set(kept)
    for token in kept:
        p = float(share[token]) / total
        # Five standard deviations of a binomial share, and one draw for the rarest; the seeds are fixed.
        assert abs(counts[token] / n - p) < 5 * math.sqrt(p * (1 - p) / n) + 1 / n


def small_model() -> Transformer:
    config = ModelConfig(
        vocab_size=53,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=6,
        max_position_embeddings=48,
        eos_token_ids=(1,),
        pad_token_id=0,
    )
    model = Transformer(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.4 * noise)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 7, "min_p": 0.02},
    ],
)
def test_tokens_are_those_of_generate(options: dict[str, Any]) -> None:
    model, prompt = small_model(), [7, 3, 50]
    wanted = list(generate(model, prompt, options=GenerationOptions(seed=17, max_tokens=20, **options)))
    sequence = sequence_of(prompt=tuple(prompt), seed=17, **options)
    sampler = Sampler(vocab_size=53)
    cache = KVCache(model.config, capacity=48, dtype=torch.float32, device=torch.device("cpu"))
    logits = next_logits(model, prompt, cache=cache)
    for _ in range(20):
        sequence.token_ids += sampler(logits, [row_of(sequence)]).take().ids
        logits = next_logits(model, sequence.token_ids[-1:], cache=cache)
    assert sequence.output_ids == wanted


def test_a_row_that_cannot_be_sampled_says_why_and_the_others_go_on() -> None:
    logits = random_logits(5, 1)
    logits[1] = math.nan
    logits[3, 8] = math.inf
    rows = [row_of(sequence_of(temperature=float(place % 2), logprobs=1, seed=place)) for place in range(5)]
    rows[2] = rows[2]._replace(mask=0)
    samples = Sampler(vocab_size=V)(logits, rows, masks=np.zeros((1, 2), dtype=np.int32)).take()
    assert samples.failures == {
        1: SampleFailure.NOT_FINITE,
        2: SampleFailure.NOTHING_ALLOWED,
        3: SampleFailure.NOT_FINITE,
    }
    assert [token < 0 for token in samples.ids] == [False, True, True, True, False]
    assert samples.logprobs is not None
    assert [entry is None for entry in samples.logprobs] == [False, True, True, True, False]
    alone = Sampler(vocab_size=V)(logits[4:], rows[4:]).take()
    assert (alone.ids, alone.logprobs) == (samples.ids[4:], samples.logprobs[4:])


def test_nan_behind_a_mask_fails_a_row_that_asks_for_logprobs() -> None:
    logits = random_logits(1, 1)
    logits[0, 7] = math.nan
    masks = np.array([mask_of({1, 2, 3})], dtype=np.int32)
    row = row_of(sequence_of(temperature=0.0, logprobs=0), mask=0)
    samples = Sampler(vocab_size=V)(logits, [row], masks=masks).take()
    assert samples.failures == {0: SampleFailure.NOT_FINITE}


def test_a_bias_of_minus_100_bans() -> None:
    logits = torch.zeros(1, V)
    logits[0, 3] = 1e4
    row = row_of(sequence_of(temperature=0.0, logit_bias={3: -100}))
    assert Sampler(vocab_size=V)(logits, [row]).take().ids == [0]


def scheduled(
    sequence: Sequence, *, drafts: tuple[int, ...] = (), is_last_in_flight: bool = False
) -> ScheduledSequence:
    end = len(sequence.token_ids) + is_last_in_flight + len(drafts)
    num_tokens = 1 + len(drafts)
    return ScheduledSequence(sequence, end - num_tokens, num_tokens, drafts, is_last_in_flight, 1 + len(drafts), 0)


def test_rows_of_a_scheduled_sequence() -> None:
    sequence = sequence_of(output=(5, 6), min_tokens=4)
    assert make_rows(scheduled(sequence, drafts=(7, 8)), stop_ids=(0,), masks=[3, 4, 5]) == [
        SamplingRow(sequence, 2, (), (0,), 3),
        SamplingRow(sequence, 3, (7,), (0,), 4),
        SamplingRow(sequence, 4, (7, 8), (), 5),
    ]
    late = sequence_of(output=(5, 6))
    assert make_rows(scheduled(late, is_last_in_flight=True), stop_ids=(0,)) == [SamplingRow(late, 3)]
    prompt_chunk = ScheduledSequence(sequence, 0, 2, (), False, 0, 0)
    assert make_rows(prompt_chunk) == []


def test_stop_ids_do_not_come_before_min_tokens() -> None:
    logits = torch.zeros(1, V)
    logits[0, 0] = 5.0
    sequence = sequence_of(temperature=0.0, min_tokens=2)
    sampler = Sampler(vocab_size=V)
    for _ in range(3):
        sequence.token_ids += sampler(logits, make_rows(scheduled(sequence), stop_ids=(0,))).take().ids
    assert sequence.output_ids == [1, 1, 0]


def test_memory_of_counts_is_used_again_and_clean() -> None:
    sampler = Sampler(vocab_size=V)
    logits = random_logits(3, 1)
    for turn in range(20):
        batch = [
            sequence_of(
                prompt=(turn, 2), output=(turn % 7,) * 5, seed=turn, frequency_penalty=2.0, repetition_penalty=3.0
            )
            for _ in range(3)
        ]
        rows = [row_of(sequence) for sequence in batch]
        assert sampler(logits, rows).take() == Sampler(vocab_size=V)(logits, rows).take()
        for sequence in batch:
            sampler.release(sequence)
            sampler.release(sequence)
    assert sampler._penalties.num_slots == 0
    assert len(sampler._penalties._counts) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_gpu_samples_the_same_and_the_host_does_not_wait() -> None:
    params: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "logprobs": 3},
        {"temperature": 1.0, "top_p": 0.8, "frequency_penalty": 0.5},
        {"temperature": 0.7, "top_k": 9, "logit_bias": {4: 2.0}},
    ]
    logits = random_logits(4, 2)
    masks = np.array([mask_of(set(range(0, V, 2)))], dtype=np.int32)
    device = torch.device("cuda")
    taken = []
    for place in (torch.device("cpu"), device):
        sampler = Sampler(vocab_size=V, device=place)
        rows = [row_of(sequence_of(seed=i, output=(4, 4), **p)) for i, p in enumerate(params)]
        rows[1] = rows[1]._replace(mask=0, banned_ids=(2,))
        there = logits.to(place)
        sampler(there, rows, masks=masks).take()  # kernels are loaded now
        for row in rows:
            sampler.release(row.sequence)
        if place == device:
            torch.cuda.set_sync_debug_mode("error")
        try:
            output = sampler(there, rows, masks=masks)
        finally:
            if place == device:
                torch.cuda.set_sync_debug_mode("default")
        taken.append(output.take())
    assert taken[0].ids == taken[1].ids
    assert taken[0].logprobs is not None
    assert taken[1].logprobs is not None
    cpu_entry, gpu_entry = taken[0].logprobs[1], taken[1].logprobs[1]
    assert cpu_entry is not None
    assert gpu_entry is not None
    assert cpu_entry.rank == gpu_entry.rank
    assert abs(cpu_entry.logprob - gpu_entry.logprob) < 1e-5
