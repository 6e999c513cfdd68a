from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.engine import batch as module
from ossia.engine.batch import Batch, BatchBuilder, Group, Padding, PromptRows, SampledStep
from ossia.engine.plan import ScheduledSequence, StepPlan
from ossia.engine.request import Request, SamplingParams
from ossia.engine.sequence import Sequence, SequenceState
from ossia.model.config import FULL, SLIDING, ModelConfig

WINDOW = 6


def make_config(*layer_types: str, window: int = WINDOW) -> ModelConfig:
    return ModelConfig(
        vocab_size=1000,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=len(layer_types),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_local_experts=4,
        layer_types=layer_types,
        sliding_window=window,
    )


def make_sequence(num_tokens: int, *, num_prompt: int | None = None, first_id: int = 0, **params: Any) -> Sequence:
    ids = list(range(first_id, first_id + num_tokens))
    num_prompt = num_prompt or num_tokens
    request = Request(id="r", prompt_ids=tuple(ids[:num_prompt]), params=SamplingParams(**params))
    return Sequence(request=request, index=0, seed=0, arrival=0, max_length=999, token_ids=ids, num_prompt=num_prompt)


def item(
    sequence: Sequence, num_tokens: int, *, drafts: tuple[int, ...] = (), is_last_in_flight: bool = False
) -> ScheduledSequence:
    end = sequence.num_computed + num_tokens
    return ScheduledSequence(
        sequence=sequence,
        start=sequence.num_computed,
        num_tokens=num_tokens + len(drafts),
        drafts=drafts,
        is_last_in_flight=is_last_in_flight,
        num_samples=1 + len(drafts) if end == sequence.length else 0,
        epoch=sequence.num_preemptions,
    )


def plan_of(*items: ScheduledSequence) -> StepPlan:
    return StepPlan(items, sum(each.num_tokens for each in items), ())


def give_pages(sequence: Sequence, length: int, page_size: int, numbers: list[int]) -> None:
    for pages in (sequence.full_pages, sequence.sliding_pages):
        while len(pages) * page_size < length:
            pages.append(numbers.pop())


def expect_group(batch: Batch, plan: StepPlan, group: Group, *, window: int | None, page_size: int) -> None:
    """Compare a group with the contract, token by token and block by block."""
    slots = []
    for row, each in zip(group.block_table.tolist(), plan.scheduled, strict=False):
        pages = each.sequence.full_pages if window is None else each.sequence.sliding_pages
        first = 0 if window is None else max(0, each.start - window + 1) // page_size
        wanted = [page if first <= block else 0 for block, page in enumerate(pages)]
        assert len(row) * page_size >= each.end
        assert row[: len(pages)] == wanted[: len(row)]
        assert not any(row[len(pages) :])
        slots += [pages[p // page_size] * page_size + p % page_size for p in range(each.start, each.end)]
    assert group.slot_mapping[: len(slots)].tolist() == slots
    assert all(0 <= slot < page_size for slot in group.slot_mapping[len(slots) :].tolist())
    assert (group.block_table.dtype, group.slot_mapping.dtype) == (torch.int32, torch.int64)
    assert not group.block_table[len(plan.scheduled) :].any()
    assert group.slot_mapping.shape == batch.token_ids.shape


def expect(batch: Batch, plan: StepPlan, *, page_size: int, window: int = WINDOW) -> None:
    ids, positions, cu, lengths, rows = [], [], [0], [], []
    for each in plan.scheduled:
        known = [*each.sequence.token_ids, *each.drafts]
        ids += known[each.start : each.end]
        positions += range(each.start, each.end)
        cu.append(cu[-1] + each.num_tokens)
        lengths.append(each.end)
        rows += range(cu[-1] - each.num_samples, cu[-1])
    N, T = len(lengths), len(ids)
    assert (batch.num_tokens, batch.num_seqs) == (T, N)
    assert batch.max_queries == max(each.num_tokens for each in plan.scheduled)
    assert batch.token_ids[:T].tolist() == ids
    assert batch.positions[:T].tolist() == positions
    assert batch.cu_seqlens_q[: N + 1].tolist() == cu
    assert batch.context_lens[:N].tolist() == lengths
    assert batch.sample_rows.tolist() == rows
    assert not batch.token_ids[T:].any()
    assert not batch.positions[T:].any()
    assert not batch.context_lens[N:].any()
    dtypes = [batch.token_ids.dtype, batch.positions.dtype, batch.sample_rows.dtype]
    assert dtypes == [torch.int64] * 3
    assert [batch.cu_seqlens_q.dtype, batch.context_lens.dtype] == [torch.int32] * 2
    assert batch.full is not None
    assert batch.sliding is not None
    expect_group(batch, plan, batch.full, window=None, page_size=page_size)
    expect_group(batch, plan, batch.sliding, window=window, page_size=page_size)
    for name in ("token_ids", "positions", "cu_seqlens_q", "context_lens", "sample_rows"):
        assert getattr(batch.host, name).tolist() == getattr(batch, name).tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    page_size=st.sampled_from([1, 3, 16]),
    window=st.sampled_from([1, 4, 40]),
    rows=st.sampled_from([1, 3, 64]),
    columns=st.sampled_from([1, 64]),
)
def test_steps_of_random_traffic(seed: int, page_size: int, window: int, rows: int, columns: int) -> None:
    """Sequences come, grow, are preempted, lose pages that drafts took, and end; one builder sees it all."""
    rng = random.Random(seed)
    numbers = rng.sample(range(1, 30000), 20000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FIRST_ROWS", rows)
        patch.setattr(module, "_FIRST_BLOCKS", columns)
        builder = BatchBuilder(make_config(SLIDING, FULL, window=window), page_size=page_size)
    sequences = [make_sequence(rng.randint(1, 40), first_id=50 * i) for i in range(4)]
    for _ in range(15):
        items = []
        for sequence in rng.sample(sequences, rng.randint(1, len(sequences))):
            num_tokens = rng.choice([1, 1, rng.randint(1, sequence.length - sequence.num_computed)])
            is_all = sequence.num_computed + num_tokens == sequence.length
            drafts = tuple(rng.choices(range(1000), k=rng.randint(0, 4))) if is_all else ()
            items.append(item(sequence, num_tokens, drafts=drafts))
            give_pages(sequence, items[-1].end, page_size, numbers)
        plan = plan_of(*items)
        expect(builder.build(plan), plan, page_size=page_size, window=window)
        for each in items:
            sequence = each.sequence
            sequence.num_computed = each.end - len(each.drafts)
            if each.num_samples:
                sequence.token_ids.append(rng.randrange(1000))
            if rng.random() < 0.7:  # else released later, though it has left the window
                passed = max(0, sequence.num_computed - window + 1) // page_size
                sequence.sliding_pages[:passed] = [0] * passed
            event = rng.random()
            if event < 0.1:  # preempted
                sequence.full_pages.clear()
                sequence.sliding_pages.clear()
                sequence.num_computed = 0
                sequence.num_preemptions += 1
            elif event < 0.4:  # pages beyond what is computed go back, and others come
                blocks = -(-sequence.num_computed // page_size)
                del sequence.full_pages[blocks:], sequence.sliding_pages[blocks:]
            elif event < 0.5:
                sequence.state = SequenceState.FINISHED
                sequences[sequences.index(sequence)] = make_sequence(rng.randint(1, 40), first_id=rng.randrange(900))


@pytest.mark.parametrize("padding", [Padding(7, 3, 0), Padding(10, 5, 9), Padding(11, 4, 4), Padding(7, 6, 1)])
def test_padding(padding: Padding) -> None:
    numbers = list(range(1, 100))
    sequences = [make_sequence(n, first_id=100 * n) for n in (5, 1, 9)]
    sequences[2].num_computed = 8
    items = [item(sequences[0], 5), item(sequences[1], 1), item(sequences[2], 1)]
    for each in items:
        give_pages(each.sequence, each.end, 4, numbers)
    plan = plan_of(*items)
    batch = BatchBuilder(make_config(SLIDING, FULL), page_size=4).build(plan, padding=padding)
    expect(batch, plan, page_size=4)
    assert batch.token_ids.shape == batch.positions.shape == (padding.num_tokens,)
    assert batch.context_lens.shape == (padding.num_seqs,)
    assert batch.full is not None
    assert batch.full.block_table.shape == (padding.num_seqs, max(padding.num_blocks, 3))
    cu = batch.cu_seqlens_q.tolist()
    assert len(cu) == padding.num_seqs + 1
    if padding.num_seqs > 3:
        assert cu[-1] == padding.num_tokens
        dealt = [end - begin for begin, end in itertools.pairwise(cu[3:])]
        assert max(dealt) - min(dealt) <= 1


def test_ids_in_flight_come_from_the_step_before() -> None:
    numbers = list(range(1, 100))
    builder = BatchBuilder(make_config(SLIDING, FULL), page_size=4)
    a, b, c, d = (make_sequence(n, first_id=100 * n) for n in (2, 3, 4, 5))
    before = plan_of(item(a, 2), item(b, 2), item(c, 4), item(d, 5))  # b samples nothing yet
    last = SampledStep(before, torch.tensor([901, 903, 904]))
    for each in before.scheduled:
        each.sequence.num_computed = each.end
        each.sequence.num_in_flight = each.num_samples
    plan = plan_of(item(d, 1, is_last_in_flight=True), item(a, 1, is_last_in_flight=True), item(b, 1))
    for each in plan.scheduled:
        give_pages(each.sequence, each.end, 4, numbers)
    batch = builder.build(plan, last=last)
    assert batch.token_ids.tolist() == [904, 901, 302]
    assert batch.host.token_ids.tolist()[2] == 302
    assert batch.positions.tolist() == [5, 2, 2]


def test_rows_that_score_the_prompt() -> None:
    numbers = list(range(1, 100))
    builder = BatchBuilder(make_config(SLIDING, FULL), page_size=4)
    silent, first, second = make_sequence(6), make_sequence(6, prompt_logprobs=0), make_sequence(6, prompt_logprobs=3)
    again = make_sequence(9, num_prompt=5, prompt_logprobs=1)  # preempted: its output is computed anew with the prompt
    done = make_sequence(4, num_prompt=3, prompt_logprobs=1)
    second.num_computed, done.num_computed = 2, 3
    plan = plan_of(item(silent, 6), item(first, 4), item(second, 4), item(again, 9), item(done, 1))
    for each in plan.scheduled:
        give_pages(each.sequence, each.end, 4, numbers)
    rows = builder.build(plan).prompt_rows
    # The logits after the prompt's last token score the output's first one, which is not the prompt's.
    assert rows == (PromptRows(1, 6, 10, 0), PromptRows(2, 10, 13, 2), PromptRows(3, 14, 18, 0))


@pytest.mark.parametrize("kind", [FULL, SLIDING])
def test_models_with_one_kind_of_layer(kind: str) -> None:
    sequence = make_sequence(3)
    sequence.full_pages = sequence.sliding_pages = [7]
    batch = BatchBuilder(make_config(kind), page_size=4).build(plan_of(item(sequence, 3)))
    present, absent = (batch.full, batch.sliding) if kind == FULL else (batch.sliding, batch.full)
    assert absent is None
    assert present is not None
    assert present.slot_mapping.tolist() == [28, 29, 30]


def test_rows_of_ended_sequences_are_used_again() -> None:
    builder = BatchBuilder(make_config(FULL), page_size=4)
    for n in range(1000):
        sequence = make_sequence(3)
        sequence.full_pages = [n + 1]
        builder.build(plan_of(item(sequence, 3)))
        sequence.state = SequenceState.FINISHED
    tables = builder._full
    assert tables is not None
    assert tables._table.shape[0] == module._FIRST_ROWS
    assert len(tables._rows) <= module._FIRST_ROWS


def test_one_piece_for_a_device_gives_the_same_tensors() -> None:
    """What is packed for the copy to a GPU, on a device that computes nothing but has a type of its own."""
    arrays = [torch.arange(n, dtype=dtype).numpy() for n in (0, 1, 5, 16) for dtype in (torch.int32, torch.int64)]
    arrays.append(torch.arange(6, dtype=torch.int32).view(2, 3).numpy())
    packed = module._unpack(module._pack(arrays, is_pinned=False), arrays)
    for got, wanted in zip(packed, arrays, strict=True):
        assert got.tolist() == wanted.tolist()
        assert got.dtype == torch.from_numpy(wanted).dtype
        assert got.data_ptr() % got.element_size() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu() -> None:
    numbers = list(range(1, 100))
    builder = BatchBuilder(make_config(SLIDING, FULL), page_size=4, device="cuda")
    items = [item(make_sequence(n, first_id=100 * n), n) for n in (2, 3, 40)]
    for each in items:
        give_pages(each.sequence, each.end, 4, numbers)
    plan = plan_of(*items)
    batch = builder.build(plan)
    assert batch.token_ids.is_cuda
    expect(batch, plan, page_size=4)
