"""OpenAI's own layout, the hub's `original/` folder: MXFP4 experts, fused qkv, other names."""

from __future__ import annotations

from collections.abc import Iterable

from ossia.model.checkpoint.layout import PACKED, Layout, Weight, expert_rules, table

_B = "block.{n}."

ORIGINAL = Layout(
    name="original",
    rules=table(
        {
            "embed_tokens.weight": "embedding.weight",
            "layers.{n}.attn_norm.weight": f"{_B}attn.norm.scale",
            "layers.{n}.attn.qkv.weight": f"{_B}attn.qkv.weight",
            "layers.{n}.attn.qkv.bias": f"{_B}attn.qkv.bias",
            "layers.{n}.attn.sinks": f"{_B}attn.sinks",
            "layers.{n}.attn.out.weight": f"{_B}attn.out.weight",
            "layers.{n}.attn.out.bias": f"{_B}attn.out.bias",
            "layers.{n}.mlp_norm.weight": f"{_B}mlp.norm.scale",
            "layers.{n}.mlp.router.weight": f"{_B}mlp.gate.weight",
            "layers.{n}.mlp.router.bias": f"{_B}mlp.gate.bias",
            "layers.{n}.mlp.experts.gate_up_bias": f"{_B}mlp.mlp1_bias",
            "layers.{n}.mlp.experts.down_bias": f"{_B}mlp.mlp2_bias",
            "norm.weight": "norm.scale",
            "lm_head.weight": "unembedding.weight",
        }
    )
    | expert_rules(
        (f"{_B}mlp.mlp1_weight.blocks", f"{_B}mlp.mlp1_weight.scales"),
        (f"{_B}mlp.mlp2_weight.blocks", f"{_B}mlp.mlp2_weight.scales"),
        PACKED,
    ),
)

_DTYPE_OF_SUFFIX = {"blocks": "FP4", "scales": "UE8"}


def dtypes_json(weights: Iterable[Weight]) -> dict[str, str]:
    """The content of `dtypes.json`: what each tensor's bytes mean, which uint8 does not say."""
    parts = (part for weight in weights for part in ORIGINAL.parts(weight))
    return {part.name: _DTYPE_OF_SUFFIX.get(part.name.rsplit(".", 1)[-1], "BF16") for part in parts}
