"""What the GPU's runner plans on the host."""

from __future__ import annotations

import pytest
import torch

from ossia.engine.cuda_runner import graph_sizes, padding_inputs


@pytest.mark.parametrize(
    ("max_num_seqs", "expected"), [(1, (1,)), (3, (1, 2, 4)), (16, (1, 2, 4, 8, 16)), (33, (1, 2, 4, 8, 16, 32, 48))]
)
def test_graph_sizes_reach_the_largest_step(max_num_seqs: int, expected: tuple[int, ...]) -> None:
    assert graph_sizes(max_num_seqs) == expected


@pytest.mark.parametrize(
    ("num_tokens", "at_most", "lengths"), [(8192, 2048, [2048] * 4), (32, 2048, [32]), (10, 3, [3, 3, 3, 1])]
)
def test_padding_is_prompts_on_the_null_page(num_tokens: int, at_most: int, lengths: list[int]) -> None:
    inputs = padding_inputs(num_tokens, at_most=at_most, page_size=16, device=torch.device("cpu"))
    assert inputs.context_lens.tolist() == inputs.cu_seqlens_q.diff().tolist() == lengths
    assert inputs.token_ids.shape == inputs.positions.shape == (num_tokens,)
    assert inputs.max_queries == lengths[0]
    assert inputs.full is not None
    assert not inputs.full.slot_mapping.any()
    assert not inputs.full.block_table.any()
    assert inputs.full.block_table.shape == (len(lengths), -(-lengths[0] // 16))
