from __future__ import annotations

import dataclasses

import torch

from ossia.harmony.tokenizer import Tokenizer
from ossia.model.config import PUBLISHED
from ossia.model.random_weights import SCALES, random_model
from ossia.model.transformer import Transformer

CONFIG = dataclasses.replace(
    PUBLISHED["openai/gpt-oss-20b"],
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    layer_types=PUBLISHED["openai/gpt-oss-20b"].layer_types[:2],
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    num_local_experts=16,
)


def draw() -> Transformer:
    torch.manual_seed(0)
    return random_model(CONFIG, name="random", tokenizer=Tokenizer.o200k_harmony(), device="cpu").model


def test_every_weight_is_drawn_and_repeatable() -> None:
    first, second = draw().state_dict(), draw().state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        if "norm" in name:
            assert bool((tensor == 1).all())
        elif name.endswith("scales"):
            assert SCALES[0] <= int(tensor.min()) <= int(tensor.max()) < SCALES[1]
        elif name.endswith("blocks"):
            assert len(tensor.unique()) > 200
        else:
            wanted = 1.0 if "embed" in name or "sinks" in name else 0.02
            assert 0.2 * wanted < float(tensor.float().std()) < 3 * wanted


def test_no_two_rows_of_a_large_tensor_are_alike() -> None:
    rows = draw().embed_tokens.weight[:70_000].float()  # the drawn block repeats within them
    assert len(torch.unique(rows[:, :4], dim=0)) > 69_000
