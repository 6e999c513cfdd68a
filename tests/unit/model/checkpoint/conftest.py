"""Small models of which every weight matters, in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia.model.checkpoint import save_checkpoint
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.transformer import Transformer


def small_config(*, hidden: int = 64, expert_hidden: int = 32) -> ModelConfig:
    return ModelConfig(
        vocab_size=50,
        hidden_size=hidden,
        intermediate_size=expert_hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=3,
        num_experts_per_tok=2,
        sliding_window=5,
        max_position_embeddings=512,
        rope=RopeConfig(original_max_position_embeddings=16),
        eos_token_ids=(7,),
        pad_token_id=None,
    )


def random_model(
    config: ModelConfig, *, dtype: torch.dtype = torch.bfloat16, packed_experts: bool = False, seed: int = 0
) -> Transformer:
    model = Transformer(config, dtype=dtype, packed_experts=packed_experts)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.uint8:
            low, high = (118, 128) if name.endswith("scales") else (0, 256)
            tensor.copy_(torch.randint(low, high, tensor.shape, generator=generator, dtype=torch.uint8))
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a random model in a format, as several shards, and returns its folder."""

    def save(name: str) -> Path:
        model = random_model(small_config(), packed_experts=name != "hf-bf16")
        save_checkpoint(model, tmp_path / name, format=name, max_shard_bytes=30_000)
        return tmp_path / name

    return save


@pytest.fixture
def make_config() -> Callable[..., ModelConfig]:
    return small_config


@pytest.fixture
def make_model() -> Callable[..., Transformer]:
    """`make_model(packed_experts=True)`: the model that `saved` writes, or with another config, dtype or seed."""

    def make(config: ModelConfig | None = None, **options: Any) -> Transformer:
        return random_model(config or small_config(), **options)

    return make
