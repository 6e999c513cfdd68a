from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from ossia.core.errors import InvalidInputError, UnsupportedModelError
from ossia.model.config import PUBLISHED, ModelConfig, RopeConfig, num_parameters
from ossia.model.transformer import Transformer

# What the hub's files say, in both spellings.
HUB_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {"quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 201088,
}

ORIGINAL_20B = {
    "num_hidden_layers": 24,
    "num_experts": 32,
    "experts_per_token": 4,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "swiglu_limit": 7.0,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}


def small(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 10,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
    }
    return ModelConfig(**(fields | changes))


ODD = small(
    layer_types=("full_attention", "full_attention", "sliding_attention"),
    max_position_embeddings=300,
    sliding_window=9,
    rms_norm_eps=1e-6,
    swiglu_alpha=2.0,
    eos_token_ids=(3, 5),
    pad_token_id=None,
    rope=RopeConfig(theta=1000.0, factor=2.0, beta_fast=16.0, beta_slow=2.0, original_max_position_embeddings=100),
)


@pytest.mark.parametrize(
    ("name", "total"), [("openai/gpt-oss-20b", 20_914_757_184), ("openai/gpt-oss-120b", 116_829_156_672)]
)
def test_published_parameter_counts(name: str, total: int) -> None:
    model = Transformer(PUBLISHED[name], device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    assert num_parameters(PUBLISHED[name]) == total


def test_published_active_parameters() -> None:
    billions = [round(num_parameters(config, active=True) / 1e9, 1) for config in PUBLISHED.values()]
    assert billions == [3.6, 5.1]


@pytest.mark.parametrize("config", [small(), ODD, small(num_experts_per_tok=5)])
def test_counts_are_those_of_the_model(config: ModelConfig) -> None:
    model = Transformer(config, device="meta")
    assert num_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


def test_reads_both_hugging_face_spellings() -> None:
    hub = ModelConfig.from_hf(HUB_20B)
    assert hub == PUBLISHED["openai/gpt-oss-20b"]
    raw = {key: value for key, value in HUB_20B.items() if key not in ("rope_scaling", "rope_theta")}
    assert ModelConfig.from_hf(raw | {"rope_parameters": HUB_20B["rope_scaling"] | {"rope_theta": 150000.0}}) == hub


def test_eos_may_be_one_or_several() -> None:
    assert ModelConfig.from_hf(HUB_20B | {"eos_token_id": [200002, 200012]}).eos_token_ids == (200002, 200012)
    assert ModelConfig.from_hf(HUB_20B | {"eos_token_id": None}).eos_token_ids == ()
    assert small(eos_token_ids=(7,)).to_hf()["eos_token_id"] == 7
    assert small(eos_token_ids=(7, 8)).to_hf()["eos_token_id"] == [7, 8]
    assert small(eos_token_ids=()).to_hf()["eos_token_id"] is None


def test_what_a_file_leaves_out_means_what_it_means_in_transformers() -> None:
    raw = {key: value for key, value in HUB_20B.items() if key not in ("rope_scaling", "layer_types", "head_dim")}
    config = ModelConfig.from_hf(raw)
    assert config.rope == RopeConfig()
    assert config.head_dim == 64
    assert config.layer_types[:3] == ("sliding_attention", "full_attention", "sliding_attention")
    yarn = {key: value for key, value in HUB_20B["rope_scaling"].items() if key != "truncate"}
    assert ModelConfig.from_hf(HUB_20B | {"rope_scaling": yarn}).rope.truncate


def test_plain_rope() -> None:
    config = ModelConfig.from_hf(HUB_20B | {"rope_scaling": {"rope_type": "default"}})
    assert config.rope == RopeConfig(factor=1.0)
    assert config.to_hf()["rope_scaling"] == {"rope_type": "default"}


@pytest.mark.parametrize("config", [*PUBLISHED.values(), small(), ODD, small(rope=RopeConfig(truncate=True))])
def test_hugging_face_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_hugging_face_fields_are_the_hubs() -> None:
    written = PUBLISHED["openai/gpt-oss-20b"].to_hf()
    for name in written.keys() & HUB_20B.keys():
        assert written[name] == HUB_20B[name], name


@pytest.mark.parametrize("config", [*PUBLISHED.values(), small(), ODD, small(max_position_embeddings=77)])
def test_original_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_original(json.loads(json.dumps(config.to_original()))) == config


def test_original_of_the_published_model_has_openais_keys_only() -> None:
    assert PUBLISHED["openai/gpt-oss-20b"].to_original() == ORIGINAL_20B
    assert ModelConfig.from_original(ORIGINAL_20B) == PUBLISHED["openai/gpt-oss-20b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": False}, "attention_bias False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type 'llama3'"),
        ({"rope_scaling": HUB_20B["rope_scaling"] | {"mscale": 1.0}}, "mscale"),
    ],
)
def test_other_architectures_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        ModelConfig.from_hf(HUB_20B | change)


def test_original_files_are_told_from_others() -> None:
    with pytest.raises(UnsupportedModelError, match="num_experts"):
        ModelConfig.from_original(HUB_20B)
    with pytest.raises(InvalidInputError, match="truncate"):
        small(rope=RopeConfig(truncate=True)).to_original()


@pytest.mark.parametrize("name", ["hidden_size", "num_local_experts", "vocab_size"])
def test_a_missing_size_is_named(name: str) -> None:
    with pytest.raises(InvalidInputError, match=name):
        ModelConfig.from_hf({key: value for key, value in HUB_20B.items() if key != name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; allowed: a positive whole number"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5"),
        ({"sliding_window": True}, "sliding_window is True"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4; allowed: a divisor of num_attention_heads 6"),
        ({"head_dim": 7}, "head_dim is 7; allowed: an even number"),
        ({"num_experts_per_tok": 6}, "num_experts_per_tok is 6; allowed: at most num_local_experts 5"),
        ({"layer_types": ("full_attention",)}, "layer_types is '1'; allowed: 3 entries"),
        ({"layer_types": ("full_attention", "linear", "linear")}, "layer_types"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"swiglu_limit": -1.0}, "swiglu_limit"),
        ({"eos_token_ids": (-1,)}, "eos_token_ids"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        small(**change)


@pytest.mark.parametrize("change", [{"theta": 1.0}, {"factor": 0.5}, {"beta_slow": 0.0}, {"beta_fast": 1.0}])
def test_impossible_rope_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match=f"rope {next(iter(change))}"):
        RopeConfig(**change)


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().hidden_size = 3  # type: ignore[misc]


def test_windows_follow_the_layer_types() -> None:
    assert [ODD.window(layer) for layer in range(3)] == [None, None, 9]


def test_the_config_needs_no_torch() -> None:
    """`ossia info` reads shapes without paying for torch."""
    import subprocess
    import sys

    code = "import sys, ossia.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_building_on_meta_needs_no_memory() -> None:
    model = Transformer(PUBLISHED["openai/gpt-oss-120b"], device="meta", packed_experts=True)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    experts = model.layers[0].mlp.experts
    assert experts.gate_up_blocks.shape == (128, 5760, 90, 16)
    assert experts.down_scales.shape == (128, 2880, 90)
    assert experts.down_blocks.dtype == torch.uint8
