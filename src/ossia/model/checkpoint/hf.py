"""Hugging Face folders: `hf-mxfp4`, as on the hub, and `hf-bf16`, as fine-tuning tools write them."""

from __future__ import annotations

from typing import Any

from ossia.harmony.vocab import O200K_VOCAB_SIZE
from ossia.model.checkpoint.layout import PACKED, TRANSPOSED, Layout, expert_rules, table
from ossia.model.config import ModelConfig

_L = "model.layers.{n}."
_EXPERTS = f"{_L}mlp.experts."


def _qkv(kind: str) -> tuple[str, str, str]:
    return f"{_L}self_attn.q_proj.{kind}", f"{_L}self_attn.k_proj.{kind}", f"{_L}self_attn.v_proj.{kind}"


_COMMON = table(
    {
        "embed_tokens.weight": "model.embed_tokens.weight",
        "layers.{n}.attn_norm.weight": f"{_L}input_layernorm.weight",
        "layers.{n}.attn.qkv.weight": _qkv("weight"),
        "layers.{n}.attn.qkv.bias": _qkv("bias"),
        "layers.{n}.attn.sinks": f"{_L}self_attn.sinks",
        "layers.{n}.attn.out.weight": f"{_L}self_attn.o_proj.weight",
        "layers.{n}.attn.out.bias": f"{_L}self_attn.o_proj.bias",
        "layers.{n}.mlp_norm.weight": f"{_L}post_attention_layernorm.weight",
        "layers.{n}.mlp.router.weight": f"{_L}mlp.router.weight",
        "layers.{n}.mlp.router.bias": f"{_L}mlp.router.bias",
        "layers.{n}.mlp.experts.gate_up_bias": f"{_EXPERTS}gate_up_proj_bias",
        "layers.{n}.mlp.experts.down_bias": f"{_EXPERTS}down_proj_bias",
        "norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
)

HF_BF16 = Layout(
    name="hf-bf16",
    rules=_COMMON | expert_rules((f"{_EXPERTS}gate_up_proj",), (f"{_EXPERTS}down_proj",), TRANSPOSED),
)
HF_MXFP4 = Layout(
    name="hf-mxfp4",
    rules=_COMMON
    | expert_rules(
        (f"{_EXPERTS}gate_up_proj_blocks", f"{_EXPERTS}gate_up_proj_scales"),
        (f"{_EXPERTS}down_proj_blocks", f"{_EXPERTS}down_proj_scales"),
        PACKED,
    ),
)

HF_BF16_AS_BLOCKS = Layout(
    name="hf-bf16",
    rules=_COMMON | expert_rules((f"{_EXPERTS}gate_up_proj_blocks",), (f"{_EXPERTS}down_proj_blocks",), TRANSPOSED),
)
"""What Transformers 5 saves of a model that it loaded from MXFP4 and unpacked: dense experts under the packed names.
Only read."""

QUANTIZATION_CONFIG: dict[str, Any] = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
"""As in the published files."""


def config_json(config: ModelConfig, *, is_packed: bool) -> dict[str, Any]:
    """The content of config.json."""
    raw = config.to_hf() | {"dtype": "bfloat16"}
    return raw | {"quantization_config": QUANTIZATION_CONFIG} if is_packed else raw


def generation_config_json(config: ModelConfig) -> dict[str, Any]:
    """The content of generation_config.json: sample as the model is, end at the model's own ids.

    Only the o200k_harmony vocabulary has `<|startoftext|>` at 199998 and ends also at `<|call|>` and `<|endoftext|>`
    under those ids; a model with another vocabulary is known by what its config says.
    """
    raw: dict[str, Any] = {"do_sample": True, "eos_token_id": list(config.eos_token_ids)}
    if config.pad_token_id is not None:
        raw["pad_token_id"] = config.pad_token_id
    if config.vocab_size == O200K_VOCAB_SIZE:
        raw |= {"bos_token_id": 199998, "eos_token_id": [200002, 199999, 200012]}
    return raw
