from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.engine import logprobs as module
from ossia.engine.logprobs import compute_logprobs, prompt_logprobs

# Few values, so that many logits are equal, as they are after bfloat16.
rows_strategy = st.lists(
    st.tuples(
        st.lists(st.sampled_from([-9.0, -1.0, 0.0, 0.5, 0.5, 3.0, 30.0]), min_size=6, max_size=6), st.integers(0, 5)
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(rows=rows_strategy, num_top=st.integers(0, 9))
def test_logprob_rank_and_top_are_as_in_python(rows: list[tuple[list[float], int]], num_top: int) -> None:
    logits = torch.tensor([row for row, _ in rows])
    ids = torch.tensor([token for _, token in rows])
    entries = compute_logprobs(logits, ids, num_top=num_top).to_list([num_top] * len(rows))
    for entry, (row, token) in zip(entries, rows, strict=True):
        total = math.log(math.fsum(map(math.exp, row)))
        order = sorted(range(6), key=lambda i, row=row: (-row[i], i))
        assert entry.token_id == token
        # float32 has 24 bits; the largest logit is 30.
        assert entry.logprob == pytest.approx(row[token] - total, abs=1e-5)
        assert entry.rank == order.index(token) + 1
        assert [i for i, _ in entry.top] == order[:num_top]
        assert [x for _, x in entry.top] == pytest.approx([row[i] - total for i in order[:num_top]], abs=1e-5)


def test_each_row_has_as_many_as_it_asked_for() -> None:
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    entries = compute_logprobs(logits, torch.tensor([1, 2, 3]), num_top=4).to_list([0, 4, 2])
    assert [len(entry.top) for entry in entries] == [0, 4, 2]


def test_a_prompt_in_chunks_is_as_one_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(11, 30, generator=torch.Generator().manual_seed(0))
    ids = [3, 29, 0, 4, 4, 17, 8, 25, 1, 2, 3]
    whole = compute_logprobs(logits, torch.tensor(ids), num_top=3).to_list([3] * 11)
    monkeypatch.setattr(module, "PROMPT_ROWS", 4)
    in_chunks = [
        entry
        for begin, end in ((0, 1), (1, 9), (9, 11), (11, 11))
        for entry in prompt_logprobs(logits[begin:end], ids[begin:end], num_top=3)
    ]
    assert in_chunks == whole
