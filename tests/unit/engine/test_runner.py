from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.engine import runner as module
from ossia.engine.batch import BatchBuilder, Padding, SampledStep
from ossia.engine.kv_cache import PagedKVCache, bytes_per_page
from ossia.engine.plan import ScheduledSequence, StepPlan
from ossia.engine.request import Request, SamplingParams
from ossia.engine.runner import PagedAttention, StepLogits, TorchRunner, choose_page_count
from ossia.engine.sequence import Sequence
from ossia.kernels.sampling import sample, token_uniform
from ossia.model.attention import PackedAttention
from ossia.model.config import FULL, SLIDING, ModelConfig, RopeConfig
from ossia.model.generate import GenerationOptions, generate
from ossia.model.transformer import Transformer

VOCAB, WINDOW, NUM_PAGES = 53, 6, 400
BOUND = 1e-5
"""Of logits of size ~4 in float32, rounded at 2^-22: each is a sum of 32 terms, after 4 layers of such."""


def make_config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "max_position_embeddings": 256,
        "rope": RopeConfig(factor=4.0, original_max_position_embeddings=64),
        "eos_token_ids": (1,),
        "pad_token_id": 0,
    }
    return ModelConfig(**(fields | changes))


def make_model(config: ModelConfig, *, seed: int = 2) -> Transformer:
    model = Transformer(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return make_model(make_config())


class Pages:
    """Hands out pages in a shuffled order, and takes sliding ones back as soon as the window has passed."""

    def __init__(self, *, num_pages: int, page_size: int, window: int, seed: int = 0) -> None:
        self.free = list(range(1, num_pages))
        random.Random(seed).shuffle(self.free)
        self.page_size, self.window = page_size, window

    def cover(self, sequence: Sequence, length: int) -> None:
        for pages in (sequence.full_pages, sequence.sliding_pages):
            while len(pages) * self.page_size < length:
                pages.append(self.free.pop())

    def release_passed(self, sequence: Sequence) -> None:
        for block in range(max(0, sequence.num_computed - self.window + 1) // self.page_size):
            if sequence.sliding_pages[block]:
                self.free.insert(0, sequence.sliding_pages[block])
                sequence.sliding_pages[block] = 0


def make_sequence(prompt: Iterable[int], *, index: int = 0, **params: Any) -> Sequence:
    ids = tuple(prompt)
    request = Request(id=f"r{index}", prompt_ids=ids, params=SamplingParams(**params))
    return Sequence(
        request=request,
        index=0,
        seed=index,
        arrival=index,
        max_length=256,
        token_ids=list(ids),
        num_prompt=len(ids),
    )


def schedule(sequence: Sequence, num_tokens: int, *, drafts: tuple[int, ...] = ()) -> ScheduledSequence:
    """Run so many known tokens of it and then the drafts; sample if that is all."""
    start = sequence.num_computed
    is_last = start + num_tokens == sequence.length
    return ScheduledSequence(
        sequence=sequence,
        start=start,
        num_tokens=num_tokens + len(drafts),
        drafts=drafts,
        is_last_in_flight=is_last and sequence.num_in_flight > 0,
        num_samples=1 + len(drafts) if is_last else 0,
        epoch=sequence.num_preemptions,
    )


def make_plan(*scheduled: ScheduledSequence) -> StepPlan:
    return StepPlan(scheduled, sum(item.num_tokens for item in scheduled), ())


class Harness:
    """A runner whose pool starts out full of NaN, so that nothing may be read that was not written."""

    def __init__(self, model: Transformer, *, page_size: int = 4, seed: int = 0, dtype: torch.dtype | None = None):
        config = model.config
        cache = PagedKVCache(config, num_pages=NUM_PAGES, page_size=page_size, dtype=dtype or torch.float32)
        for held in (*cache.keys, *cache.values):
            held.copy_(torch.full(held.shape, float("nan")))
        self.runner = TorchRunner(model, cache=cache)
        self.pages = Pages(num_pages=NUM_PAGES, page_size=page_size, window=config.sliding_window, seed=seed)

    def run(self, *scheduled: ScheduledSequence, last: SampledStep | None = None) -> StepLogits:
        for item in scheduled:
            self.pages.cover(item.sequence, item.end)
        out = self.runner.forward(make_plan(*scheduled), last=last)
        for item in scheduled:
            item.sequence.num_computed = item.end - len(item.drafts)
            self.pages.release_passed(item.sequence)
        return out


@torch.inference_mode()
def alone(model: Transformer, ids: list[int]) -> Tensor:
    """Logits of every position, without any cache."""
    hidden = model(torch.tensor(ids), positions=torch.arange(len(ids)), attention=PackedAttention([0, len(ids)]))
    return model.logits(hidden)


def difference(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max())


def random_ids(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    page_size=st.sampled_from([1, 2, 4, 5, 16]),
    window=st.sampled_from([1, 3, 6, 17]),
    data=st.data(),
)
def test_mixed_steps_equal_each_sequence_alone(
    lengths: list[int], page_size: int, window: int, data: st.DataObject
) -> None:
    model = make_model(make_config(sliding_window=window))
    harness = Harness(model, page_size=page_size, seed=len(lengths))
    sequences = [make_sequence(random_ids(length, seed), index=seed) for seed, length in enumerate(lengths)]
    for _ in range(8):
        runnable = data.draw(st.lists(st.sampled_from(sequences), unique_by=id, min_size=1))
        items = []
        for sequence in runnable:
            remaining = sequence.length - sequence.num_computed
            num_tokens = data.draw(st.integers(1, remaining))
            drafts = tuple(data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=3))) if num_tokens == 1 else ()
            items.append(schedule(sequence, num_tokens, drafts=drafts if remaining == num_tokens else ()))
        out = harness.run(*items)
        assert out.sample_logits.isfinite().all()
        row = 0
        for item in items:
            if item.num_samples:
                known = item.sequence.token_ids
                wanted = alone(model, [*known, *item.drafts])[-item.num_samples :]
                got = out.sample_logits[row : row + item.num_samples]
                assert difference(got, wanted) <= BOUND
                item.sequence.token_ids.append(int(got[0].argmax()))
            row += item.num_samples
        assert row == out.sample_logits.shape[0]


@pytest.mark.parametrize("options", [GenerationOptions(temperature=0.0), GenerationOptions(temperature=0.9, seed=4)])
@pytest.mark.parametrize("layer_types", [(), (SLIDING,) * 4, (FULL,) * 4, (FULL, SLIDING, SLIDING, SLIDING)])
def test_tokens_equal_generate(layer_types: tuple[str, ...], options: GenerationOptions) -> None:
    """Five sequences, whose prompts are computed in chunks of 7 while others decode, 20 tokens each."""
    model = make_model(make_config(layer_types=layer_types))
    harness = Harness(model)
    prompts = [random_ids(length, length) for length in (3, 30, 1, 17, 11)]
    sequences = [make_sequence(prompt, index=i) for i, prompt in enumerate(prompts)]
    while sequences_left := [s for s in sequences if s.num_output < 20]:
        items = [schedule(s, min(7, s.length - s.num_computed)) for s in sequences_left]
        out = harness.run(*items)
        for logits, item in zip(out.sample_logits, [item for item in items if item.num_samples], strict=True):
            uniform = token_uniform(options.seed or 0, item.sequence.num_output)
            token = sample(
                logits[None],
                temperature=options.temperature,
                uniforms=torch.tensor([uniform], dtype=torch.float64),
            )
            item.sequence.token_ids.append(int(token))
    for prompt, sequence in zip(prompts, sequences, strict=True):
        wanted = list(generate(model, prompt, options=GenerationOptions(**_fields(options), max_tokens=20)))
        assert sequence.output_ids == wanted


def _fields(options: GenerationOptions) -> dict[str, Any]:
    return {"temperature": options.temperature, "seed": options.seed}


def test_drafts_are_scored_where_they_stand(model: Transformer) -> None:
    harness = Harness(model)
    plain, drafted = make_sequence(random_ids(9, 1)), make_sequence(random_ids(23, 2), index=1)
    harness.run(schedule(plain, 8), schedule(drafted, 22))
    drafts = (5, 6, 7)
    out = harness.run(schedule(drafted, 1, drafts=drafts), schedule(plain, 1))
    wanted = torch.cat((alone(model, [*drafted.token_ids, *drafts])[-4:], alone(model, plain.token_ids)[-1:]))
    assert difference(out.sample_logits, wanted) <= BOUND
    # The first draft is accepted; what the others wrote is written over.
    drafted.token_ids += [5, 50]
    drafted.num_computed += 1
    out = harness.run(schedule(drafted, 1))
    assert difference(out.sample_logits, alone(model, drafted.token_ids)[-1:]) <= BOUND


def test_tokens_in_flight(model: Transformer) -> None:
    harness = Harness(model)
    a, b = make_sequence(random_ids(5, 1)), make_sequence(random_ids(8, 2), index=1)
    plan = (schedule(a, 5), schedule(b, 8))
    first = harness.run(*plan)
    last = SampledStep(make_plan(*plan), first.sample_logits.argmax(dim=-1))
    a.num_in_flight = b.num_in_flight = 1
    out = harness.run(schedule(b, 1), schedule(a, 1), last=last)
    ids = last.token_ids.tolist()
    wanted = torch.cat((alone(model, [*b.token_ids, ids[1]])[-1:], alone(model, [*a.token_ids, ids[0]])[-1:]))
    assert difference(out.sample_logits, wanted) <= BOUND


def test_logits_of_the_prompt(model: Transformer) -> None:
    harness = Harness(model)
    other, sequence = make_sequence(random_ids(4, 1)), make_sequence(random_ids(21, 2), index=1, prompt_logprobs=1)
    found: dict[int, Tensor] = {}
    for num_tokens in (9, 12):
        out = harness.run(schedule(other, 1), schedule(sequence, num_tokens))
        (prompt,) = out.prompt
        assert prompt.place == 1
        for first, logits in prompt.pieces(num_rows=4):
            assert logits.shape[0] <= 4
            assert logits.dtype == torch.float32
            found |= {first + i: row for i, row in enumerate(logits)}
    assert sorted(found) == list(range(20))
    assert difference(torch.stack([found[i] for i in range(20)]), alone(model, sequence.token_ids)[:20]) <= BOUND
    assert out.sample_logits.shape[0] == 1  # `other` has a prompt's token left still


def test_a_poisoned_sequence_harms_no_other(model: Transformer) -> None:
    """Nor does what it left in its pages."""
    poisoned = make_model(model.config)
    bad = VOCAB - 1
    with torch.no_grad():
        poisoned.embed_tokens.weight[bad] = float("nan")
    harness = Harness(poisoned)
    good, ill = make_sequence([1, 2, 3, 4, 5]), make_sequence([6, bad, 7, 8, 9, 10, 11], index=1)
    out = harness.run(schedule(good, 5), schedule(ill, 7))
    assert out.sample_logits.isfinite().all(dim=-1).tolist() == [True, False]
    assert difference(out.sample_logits[:1], alone(model, good.token_ids)[-1:]) <= BOUND
    harness.pages.free += [page for page in (*ill.full_pages, *ill.sliding_pages) if page]  # the next ones taken
    heir = make_sequence([12, 13, 14, 15, 16, 17], index=2)
    for num_tokens in (5, 1):
        out = harness.run(schedule(heir, num_tokens))
    assert set(heir.full_pages) < {*ill.full_pages, *ill.sliding_pages}
    assert out.sample_logits.isfinite().all()
    assert difference(out.sample_logits, alone(model, heir.token_ids)[-1:]) <= BOUND


FP8_SHARE = 0.1
"""E4M3 is off by 2^-4 of a number at most, and by half of that in the root mean square. The logits are then off by some
hundredths of their own deviation, in the root mean square."""


def test_fp8_pages() -> None:
    model = make_model(make_config(num_experts_per_tok=4))  # all experts, so that none can be exchanged for another
    harness = Harness(model, dtype=torch.float8_e4m3fn)
    sequences = [make_sequence(random_ids(length, length), index=length) for length in (4, 19, 33)]
    harness.run(*(schedule(s, s.length - 1) for s in sequences))
    out = harness.run(*(schedule(s, 1) for s in sequences))
    wanted = torch.cat([alone(model, s.token_ids)[-1:] for s in sequences])
    assert BOUND < float((out.sample_logits - wanted).std()) <= FP8_SHARE * float(wanted.std())


@pytest.mark.parametrize("padding", [Padding(8, 4, 0), Padding(16, 8, 30)])
@torch.inference_mode()
def test_padding_changes_no_row(model: Transformer, padding: Padding) -> None:
    harness = Harness(model)
    cache = harness.runner.cache
    sequences = [make_sequence(random_ids(length, length), index=length) for length in (4, 19, 33)]
    harness.run(*(schedule(s, s.length - 1) for s in sequences))
    items = [schedule(s, 1) for s in sequences]
    for item in items:
        harness.pages.cover(item.sequence, item.end)
    batch = BatchBuilder(model.config, page_size=4).build(make_plan(*items), padding=padding)
    before = [held.clone() for held in (*cache.keys, *cache.values)]
    attention = PagedAttention(cache, batch=batch, config=model.config, dtype=torch.float32)
    hidden = model(batch.token_ids, positions=batch.positions, attention=attention)
    assert hidden.shape[0] == padding.num_tokens
    assert hidden.isfinite().all()
    wanted = torch.cat([alone(model, s.token_ids)[-1:] for s in sequences])
    assert difference(model.logits(hidden[batch.sample_rows]), wanted) <= BOUND
    own = {page for s in sequences for page in (s.full_pages[-1], s.sliding_pages[-1])}
    for old, new in zip(before, (*cache.keys, *cache.values), strict=True):
        changed = (~torch.isclose(old, new, equal_nan=True)).flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert set(changed) <= own | {0}


def test_page_count_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(max_position_embeddings=100_000)
    per_page = bytes_per_page(config, page_size=16, dtype=torch.float32)

    def count(**changes: Any) -> int:
        return choose_page_count(config, **({"device": "cpu", "dtype": torch.float32} | changes))

    assert count(num_bytes=10 * per_page) == 10
    monkeypatch.setattr(module, "free_memory", lambda: 1000 * per_page)
    assert count() == int(1000 * module.CPU_SHARE)
    assert count(reserved=400 * per_page) == int(600 * module.CPU_SHARE)
    assert count(dtype=torch.float8_e4m3fn) == int(4000 * module.CPU_SHARE)
    monkeypatch.setattr(module, "free_memory", lambda: None)
    assert count(max_num_seqs=1000) == module.CPU_CAP * module.CPU_SHARE // per_page
    monkeypatch.setattr(module, "free_memory", lambda: 1 << 60)
    assert count(max_num_seqs=1000) == module.CPU_CAP // per_page
    # No more than all sequences at their longest can hold, and the null page.
    assert count(max_num_seqs=2) == 1 + 2 * (6250 + 2)
    with pytest.raises(InvalidInputError, match="too few for a KV cache"):
        count(num_bytes=per_page)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu() -> None:
    model = make_model(make_config())
    on_gpu = make_model(make_config()).cuda()
    cache = PagedKVCache(on_gpu.config, num_pages=NUM_PAGES, page_size=4, dtype=torch.float32, device="cuda")
    runner = TorchRunner(on_gpu, cache=cache)
    pages = Pages(num_pages=NUM_PAGES, page_size=4, window=WINDOW)
    sequences = [make_sequence(random_ids(length, length), index=length) for length in (4, 19, 33)]
    for num_left in (1, 0):
        items = [schedule(s, s.length - s.num_computed - num_left) for s in sequences]
        for item in items:
            pages.cover(item.sequence, item.end)
        out = runner.forward(make_plan(*items))
        for item in items:
            item.sequence.num_computed = item.end
    wanted = torch.cat([alone(model, s.token_ids)[-1:] for s in sequences])
    assert difference(out.sample_logits.cpu(), wanted) <= 1e-4
