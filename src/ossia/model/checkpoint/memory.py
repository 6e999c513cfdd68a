"""The model in memory as two layouts: dense experts, or packed ones."""

from __future__ import annotations

from ossia.model.checkpoint.layout import PACKED, PLAIN, Layout, expert_rules, table

_EXPERTS = "layers.{n}.mlp.experts."
_OWN_NAMES = table(
    {
        name: name
        for name in (
            "embed_tokens.weight",
            "layers.{n}.attn_norm.weight",
            "layers.{n}.attn.qkv.weight",
            "layers.{n}.attn.qkv.bias",
            "layers.{n}.attn.sinks",
            "layers.{n}.attn.out.weight",
            "layers.{n}.attn.out.bias",
            "layers.{n}.mlp_norm.weight",
            "layers.{n}.mlp.router.weight",
            "layers.{n}.mlp.router.bias",
            f"{_EXPERTS}gate_up_bias",
            f"{_EXPERTS}down_bias",
            "norm.weight",
            "lm_head.weight",
        )
    }
)

DENSE = Layout(name="memory", rules=_OWN_NAMES | expert_rules((f"{_EXPERTS}gate_up",), (f"{_EXPERTS}down",), PLAIN))
PACKED_EXPERTS = Layout(
    name="memory-mxfp4",
    rules=_OWN_NAMES
    | expert_rules(
        (f"{_EXPERTS}gate_up_blocks", f"{_EXPERTS}gate_up_scales"),
        (f"{_EXPERTS}down_blocks", f"{_EXPERTS}down_scales"),
        PACKED,
    ),
)
