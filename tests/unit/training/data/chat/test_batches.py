"""Batches of conversations: all of them, in each pass, in the way that they are learned."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import Effort
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity
from ossia.training.data.batches.conversations import ChannelWeights
from ossia.training.data.batches.packing import Batch
from ossia.training.data.chat.batches import ChatBatches, Encoder, fit_rows
from ossia.training.data.chat.file import GoodRow
from ossia.training.data.chat.rows import ChatRow, read_row
from ossia.training.loss import IGNORED

TOKENIZER = Tokenizer.o200k_harmony()
IDENTITY = Identity(model_identity="You are a test.", knowledge_cutoff=None)
ENCODER = Encoder(TOKENIZER, IDENTITY, ChannelWeights(), tuple(Effort))


def ask(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def numbered_rows(count: int) -> list[ChatRow]:
    """Every third of two turns that think, so of two examples; every other one says its effort."""
    rows: list[ChatRow] = []
    for i in range(count):
        messages = [ask(f"q{i}"), says(f"answer {i}a")]
        if i % 3 == 0:
            messages = [
                ask(f"q{i}"),
                says(f"answer {i}a", thinking="t"),
                ask("more"),
                says(f"answer {i}b", thinking="t"),
            ]
        rows.append(read_row({"messages": messages, "reasoning_effort": "high" if i % 2 else None}))
    return rows


def learned_texts(batch: Batch) -> list[str]:
    """What each document of a batch teaches."""
    found: list[str] = []
    for targets, documents in zip(batch.targets, batch.documents, strict=True):
        for number in range(int(documents.max()) + 1):
            ids = [int(t) for t in targets[documents == number] if t != IGNORED]
            if ids:
                found.append(TOKENIZER.decode(ids))
    return found


def make(rows: list[ChatRow], **options: Any) -> ChatBatches:
    return ChatBatches(rows, **{"encoder": ENCODER, "length": 256, "num_rows": 1, "seed": 3, **options})


def test_each_pass_holds_every_example_once() -> None:
    rows = numbered_rows(10)
    batches = make(rows)
    passes = [[batches.batch(epoch * batches.num_packed + i) for i in range(batches.num_packed)] for epoch in range(3)]
    thinks = "<|channel|>analysis<|message|>t<|end|><|start|>assistant"
    expected = Counter(
        [f"<|channel|>final<|message|>answer {i}a<|return|>" for i in range(10) if i % 3]
        + [f"{thinks}<|channel|>final<|message|>answer {i}{x}<|return|>" for i in range(0, 10, 3) for x in "ab"]
    )
    for learned in passes:
        assert Counter(text for batch in learned for text in learned_texts(batch)) == expected
    orders = {tuple(text for batch in learned for text in learned_texts(batch)) for learned in passes}
    assert len(orders) == 3
    text = TOKENIZER.decode(torch.cat([batch.ids.flatten() for learned in passes for batch in learned]).tolist())
    assert {effort for effort in Effort if f"Reasoning: {effort}" in text} == set(Effort)


def test_batches_follow_from_the_seed_and_their_number() -> None:
    rows = numbered_rows(9)
    first, again, other = (
        make(rows, seed=seed, num_rows=2, task_share=0.25, task_mix={"spell": 1.0}) for seed in (1, 1, 2)
    )
    wanted = [first.batch(number) for number in range(6)]
    for number in (5, 0, 3):
        assert all(
            x is y is None or torch.equal(x, y) for x, y in zip(again.batch(number), wanted[number], strict=True)
        )
    assert not torch.equal(other.batch(0).ids, wanted[0].ids)


def test_a_share_of_the_rows_holds_tasks() -> None:
    rows = numbered_rows(6)
    batches = make(rows, num_rows=4, task_share=0.3, task_mix={"spell": 1.0})
    texts = [text for number in range(5) for text in learned_texts(batches.batch(number))]
    of_file = [text for text in texts if "answer" in text]
    of_tasks = [text for text in texts if "-" in text]
    assert of_file
    assert of_tasks
    assert len(of_file) + len(of_tasks) == len(texts)
    rows_of_tasks = sum(
        any("-" in text for text in learned_texts(batches.batch(number).rows(slice(i, i + 1))))
        for number in range(5)
        for i in range(4)
    )
    assert rows_of_tasks == 6  # 0.3 of 20
    # Rows of the file follow one another without a gap.
    assert batches.batches_per_epoch == pytest.approx(batches.num_packed / 2.8)
    one_pass = range(math.ceil(batches.batches_per_epoch) + 1)
    seen = {text for number in one_pass for text in learned_texts(batches.batch(number)) if "answer" in text}
    assert len(seen) == 8
    with pytest.raises(InvalidInputError, match="share of tasks is 1"):
        make(rows, task_share=1.0)


def test_rows_that_do_not_fit_and_rows_that_teach_nothing() -> None:
    rows = [GoodRow(line, row) for line, row in enumerate(numbered_rows(3), start=1)]
    long = GoodRow(9, read_row({"question": "q", "answer": "word " * 300}))
    fitting = fit_rows([*rows, long], encoder=ENCODER, length=200)
    assert fitting.rows == rows
    ((line, reason),) = fitting.too_long
    assert line == 9
    assert "tokens, but a row holds 200; raise data.sequence_length" in reason
    only_calls = ENCODER._replace(weights=ChannelWeights(final=0.0, analysis=0.0, commentary=0.0))
    fitting = fit_rows(rows, encoder=only_calls, length=200)
    assert fitting.rows == []
    assert {reason for _, reason in fitting.too_long} == {
        "nothing to learn: all that the assistant says has the weight 0"
    }


def test_weights_of_channels_reach_the_batch() -> None:
    row = read_row({"messages": [ask("q"), says("a", thinking="t")]})
    encoder = ENCODER._replace(weights=ChannelWeights(analysis=0.5))
    batch = make([row], encoder=encoder).batch(0)
    assert batch.weights is not None
    learned = batch.targets != IGNORED
    assert Counter(batch.weights[learned].tolist()) == {0.5: 5, 1.0: 7}
    silent = ENCODER._replace(weights=ChannelWeights(analysis=0.0))
    (text,) = learned_texts(make([row], encoder=silent).batch(0))
    assert text == "<|start|>assistant<|channel|>final<|message|>a<|return|>"


@pytest.mark.parametrize("bad", [{"final": -1.0}, {"calls": float("nan")}, {"analysis": float("inf")}])
def test_weights_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="use a number from 0 on"):
        ChannelWeights(**bad)
    with pytest.raises(InvalidInputError, match="nothing would be learned"):
        ChannelWeights(analysis=0, calls=0, commentary=0, final=0)
