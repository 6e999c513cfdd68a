from __future__ import annotations

from typing import Any

import pytest
import torch

from ossia.core.errors import InvalidInputError
from ossia.engine.kv_cache import (
    PagedKVCache,
    bytes_per_page,
    has_full_layers,
    has_sliding_layers,
    layer_slots,
    num_layer_slots,
    num_pages_for,
    pages_in_budget,
)
from ossia.model.config import FULL, PUBLISHED, SLIDING, ModelConfig


def make_config(*layer_types: str) -> ModelConfig:
    return ModelConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=len(layer_types),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_local_experts=4,
        layer_types=layer_types,
    )


MIXES = [
    (SLIDING, FULL, SLIDING, FULL),
    (FULL, SLIDING, SLIDING, SLIDING),
    (FULL, FULL),
    (SLIDING,),
]


@pytest.mark.parametrize("layer_types", MIXES)
def test_layers_of_a_group_have_slots_of_their_own(layer_types: tuple[str, ...]) -> None:
    config = make_config(*layer_types)
    slots = layer_slots(config)
    for kind in (FULL, SLIDING):
        own = [slot for slot, other in zip(slots, layer_types, strict=True) if other == kind]
        assert own == list(range(len(own)))
    assert num_layer_slots(config) == max(layer_types.count(FULL), layer_types.count(SLIDING))
    assert (has_full_layers(config), has_sliding_layers(config)) == (FULL in layer_types, SLIDING in layer_types)


@pytest.mark.parametrize("layer_types", MIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_tensors(layer_types: tuple[str, ...], dtype: torch.dtype) -> None:
    config = make_config(*layer_types)
    cache = PagedKVCache(config, num_pages=5, page_size=3, dtype=dtype)
    for layer, slot in enumerate(layer_slots(config)):
        keys, values = cache.layer(layer)
        assert keys.data_ptr() == cache.keys[slot].data_ptr()
        assert values.data_ptr() == cache.values[slot].data_ptr()
        for held in (keys, values):
            assert held.shape == (5, 3, 1, 4)
            assert held.is_contiguous()
            assert held.dtype == dtype
            assert not held[0].float().any()
    assert len({held.data_ptr() for held in (*cache.keys, *cache.values)}) == 2 * num_layer_slots(config)
    held_bytes = sum(held.numel() * held.element_size() for held in (*cache.keys, *cache.values))
    assert cache.num_bytes == held_bytes == 5 * bytes_per_page(config, page_size=3, dtype=dtype)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_long_context_takes_half_of_a_uniform_cache(name: str) -> None:
    config = PUBLISHED[name]
    num_tokens = config.max_position_embeddings
    assert num_tokens == 131072
    width = config.num_key_value_heads * config.head_dim
    uniform = num_tokens * config.num_hidden_layers * 2 * width * torch.bfloat16.itemsize
    ours = num_pages_for(config, num_tokens=num_tokens) * bytes_per_page(config, dtype=torch.bfloat16)
    assert 0.5 <= ours / uniform < 0.501  # the windows' pages, and nothing else, come on top of a half


def test_pages_of_a_sequence() -> None:
    both = make_config(SLIDING, FULL)  # window 128
    assert num_pages_for(both, num_tokens=1) == 2
    assert num_pages_for(both, num_tokens=16) == 2
    assert num_pages_for(both, num_tokens=17) == 4
    assert num_pages_for(both, num_tokens=1600) == 100 + 9
    assert num_pages_for(make_config(SLIDING), num_tokens=1600) == 9
    assert num_pages_for(make_config(FULL), num_tokens=1600, page_size=5) == 320


def test_a_window_never_spans_more_pages_than_counted() -> None:
    config, page_size = make_config(SLIDING), 24
    widest = max(last // page_size - max(0, last - config.sliding_window + 1) // page_size + 1 for last in range(2000))
    assert num_pages_for(config, num_tokens=2000, page_size=page_size) == widest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_pages_in_budget(dtype: torch.dtype) -> None:
    config = make_config(SLIDING, FULL, FULL)
    per_page = bytes_per_page(config, dtype=dtype)
    assert per_page == 2 * 2 * 16 * 4 * dtype.itemsize
    assert pages_in_budget(config, num_bytes=7 * per_page, dtype=dtype) == 7
    assert pages_in_budget(config, num_bytes=8 * per_page - 1, dtype=dtype) == 7
    with pytest.raises(InvalidInputError, match="too few for a KV cache"):
        pages_in_budget(config, num_bytes=3 * per_page - 1, dtype=dtype)


@pytest.mark.parametrize(("name", "given"), [("num_pages", {"num_pages": 2}), ("page_size", {"page_size": 0})])
def test_impossible_sizes(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        PagedKVCache(make_config(FULL), **({"num_pages": 4} | given))
    assert caught.value.param == name
