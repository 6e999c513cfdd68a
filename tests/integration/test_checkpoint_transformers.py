"""Folders written here load in Transformers with equal logits, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ossia.model.attention import PackedAttention
from ossia.model.checkpoint import Checkpoint, convert, load_model, save_checkpoint
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5
"""Allowed difference of float32 logits, relative to the largest. Rounding gives some 1e-6; a wrong layout more than 0.1
(`test_a_swapped_tensor_is_noticed`)."""

CONFIGS = {
    "yarn": ModelConfig(
        vocab_size=120,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=5,
        num_experts_per_tok=2,
        sliding_window=9,
        max_position_embeddings=256,
        rope=RopeConfig(factor=4.0, original_max_position_embeddings=64, theta=10000.0),
        eos_token_ids=(3, 5),
        pad_token_id=0,
    ),
    "plain-rope": ModelConfig(
        vocab_size=77,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=8,
        num_experts_per_tok=4,
        sliding_window=4,
        max_position_embeddings=128,
        rope=RopeConfig(factor=1.0),
        swiglu_limit=2.0,
        eos_token_ids=(1,),
        pad_token_id=None,
    ),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request: pytest.FixtureRequest) -> Transformer:
    """A bfloat16 model of which every weight matters."""
    model = Transformer(request.param, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_vector = parameter.dim() == 1 or name.endswith("bias")
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.5 * noise if is_vector else noise * 0.2)
    return model


def our_logits(folder: Path, ids: Tensor, **options: Any) -> Tensor:
    model = load_model(folder, dtype=torch.float32, **options)
    T = ids.shape[0]
    with torch.no_grad():
        hidden = model(ids, positions=torch.arange(T), attention=PackedAttention(torch.tensor([0, T])))
        return model.logits(hidden)


def load_hf(folder: Path) -> Any:
    """As a user of Transformers would on a CPU: MXFP4 unpacked to bfloat16, then float32 for comparing."""
    options: dict[str, Any] = {"attn_implementation": "eager", "experts_implementation": "eager"}
    if "quantization_config" in json.loads((folder / "config.json").read_text()):
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
        options["dtype"] = torch.bfloat16
    else:
        options["dtype"] = torch.float32
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.float().eval()


def hf_logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids[None]).logits[0]


def tokens(config: ModelConfig) -> Tensor:
    return torch.randint(0, config.vocab_size, (40,), generator=torch.Generator().manual_seed(2))


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", ["hf-mxfp4", "hf-bf16"])
def test_transformers_loads_what_we_save(model: Transformer, tmp_path: Path, name: str) -> None:
    save_checkpoint(model, tmp_path, format=name, max_shard_bytes=60_000)
    ids = tokens(model.config)
    theirs = load_hf(tmp_path)
    assert difference(our_logits(tmp_path, ids), hf_logits(theirs, ids)) < RELATIVE
    assert theirs.generation_config.eos_token_id == list(model.config.eos_token_ids)


def test_we_load_what_transformers_saves(model: Transformer, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "ours", format="hf-bf16")
    theirs, ids = load_hf(tmp_path / "ours"), tokens(model.config)
    wanted = hf_logits(theirs, ids)  # before the cast, which would round rope's frequencies, too
    theirs.bfloat16().save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    assert difference(our_logits(tmp_path / "theirs", ids), wanted) < RELATIVE
    assert Checkpoint.open(tmp_path / "theirs").config == model.config


def test_we_load_an_unpacked_model_that_transformers_saves(model: Transformer, tmp_path: Path) -> None:
    """Transformers keeps the packed tensors' names for what it unpacked."""
    save_checkpoint(model, tmp_path / "ours", format="hf-mxfp4")
    theirs = load_hf(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    ids = tokens(model.config)
    assert Checkpoint.open(tmp_path / "theirs").layout.name == "hf-bf16"
    assert difference(our_logits(tmp_path / "theirs", ids), hf_logits(theirs, ids)) < RELATIVE


def test_a_round_through_the_original_format(model: Transformer, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "original", format="original")
    convert(tmp_path / "original", tmp_path / "hf", format="hf-mxfp4")
    ids = tokens(model.config)
    wanted = our_logits(tmp_path / "original", ids, packed_experts=True)
    assert difference(hf_logits(load_hf(tmp_path / "hf"), ids), wanted) < RELATIVE


def test_a_swapped_tensor_is_noticed(model: Transformer, tmp_path: Path) -> None:
    """The bound above tells a wrong layout from rounding: gate and up exchanged."""
    save_checkpoint(model, tmp_path / "right", format="hf-bf16")
    ids = tokens(model.config)
    right = hf_logits(load_hf(tmp_path / "right"), ids)
    with torch.no_grad():
        for layer in model.layers:
            gate_up = layer.mlp.experts.gate_up
            gate_up.copy_(gate_up.unflatten(1, (-1, 2)).flip(2).flatten(1, 2))
    save_checkpoint(model, tmp_path / "wrong", format="hf-bf16")
    assert difference(our_logits(tmp_path / "wrong", ids), right) > 1e-2
