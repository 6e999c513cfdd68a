"""Our logits against the Transformers model's, both in float32, with weights copied in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ossia.model.attention import CachedAttention, KVCache, PackedAttention
from ossia.model.config import ModelConfig
from ossia.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

RELATIVE = 1e-4
"""Allowed difference of logits, relative to the largest. Float32 rounding gives some 1e-6 here, a wrong operation
1e-2 and more (`test_a_broken_model_is_noticed`)."""

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
    "rope_theta": 150000.0,
}
SHORT_YARN = YARN | {"factor": 4.0, "beta_fast": 8.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    vocab: int
    hidden: int
    expert_hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    active: int
    window: int
    tokens: int
    rope: dict[str, Any]
    max_positions: int = 512
    limit: float = 7.0

    def hf_fields(self) -> dict[str, Any]:
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.expert_hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.active,
            "sliding_window": self.window,
            "max_position_embeddings": self.max_positions,
            "rope_parameters": self.rope,
            "swiglu_limit": self.limit,
            "pad_token_id": None,
        }


PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
CASES = {
    "one-kv-head": Case(
        vocab=97, hidden=36, expert_hidden=20, layers=3, heads=4, kv_heads=1, head_dim=10, experts=4, active=2,
        window=7, tokens=50, rope=PLAIN,
    ),
    "all-heads-kv": Case(
        vocab=61, hidden=27, expert_hidden=35, layers=2, heads=3, kv_heads=3, head_dim=14, experts=5, active=1,
        window=5, tokens=33, rope=SHORT_YARN,
    ),
    "yarn-as-published": Case(
        vocab=131, hidden=64, expert_hidden=32, layers=4, heads=8, kv_heads=2, head_dim=64, experts=8, active=4,
        window=16, tokens=70, rope=YARN, max_positions=131072,
    ),
    "many-experts": Case(
        vocab=50, hidden=40, expert_hidden=24, layers=2, heads=8, kv_heads=4, head_dim=8, experts=32, active=4,
        window=128, tokens=140, rope=YARN,
    ),
    "rounded-yarn": Case(
        vocab=71, hidden=33, expert_hidden=17, layers=3, heads=6, kv_heads=2, head_dim=18, experts=7, active=3,
        window=2, tokens=20, rope=SHORT_YARN | {"truncate": True},
    ),
    "all-experts-active": Case(
        vocab=80, hidden=48, expert_hidden=40, layers=2, heads=5, kv_heads=1, head_dim=12, experts=6, active=6,
        window=9, tokens=30, rope=PLAIN | {"rope_theta": 500.0}, limit=1.5,
    ),
}  # fmt: skip
FAR = Case(
    vocab=40, hidden=16, expert_hidden=8, layers=2, heads=2, kv_heads=1, head_dim=8, experts=4, active=2,
    window=128, tokens=4300, rope=YARN, max_positions=8192,
)  # fmt: skip


def make_hf(case: Case, *, seed: int = 0) -> Any:
    """A Transformers model in which every tensor matters: no bias or sink is zero, no norm weight one."""
    config = transformers.GptOssConfig(**case.hf_fields())
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # the grouped one takes no odd sizes
    model = transformers.GptOssForCausalLM(config).eval().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith(("bias", "sinks")):
                parameter.copy_(0.5 * noise)
            elif "embed" in name:
                parameter.copy_(noise)
            else:  # gate and up must reach the clamp, and scores must not be flat
                parameter.copy_(noise * 1.5 * parameter.shape[-1] ** -0.5)
    return model


def from_hf(hf: Any) -> Transformer:
    """Our model with the weights of a Transformers model, whose experts are [E, in, out]."""
    model = Transformer(ModelConfig.from_hf(hf.config.to_dict()), dtype=torch.float32)
    theirs = hf.state_dict()
    ours = {"norm.weight": theirs["model.norm.weight"], "lm_head.weight": theirs["lm_head.weight"]}
    ours["embed_tokens.weight"] = theirs["model.embed_tokens.weight"]
    for index in range(model.config.num_hidden_layers):
        a, b = f"model.layers.{index}.", f"layers.{index}."
        ours[b + "attn_norm.weight"] = theirs[a + "input_layernorm.weight"]
        ours[b + "mlp_norm.weight"] = theirs[a + "post_attention_layernorm.weight"]
        ours[b + "attn.sinks"] = theirs[a + "self_attn.sinks"]
        for kind in ("weight", "bias"):
            ours[b + f"attn.qkv.{kind}"] = torch.cat([theirs[a + f"self_attn.{x}_proj.{kind}"] for x in "qkv"])
            ours[b + f"attn.out.{kind}"] = theirs[a + f"self_attn.o_proj.{kind}"]
            ours[b + f"mlp.router.{kind}"] = theirs[a + f"mlp.router.{kind}"]
        for name in ("gate_up", "down"):
            ours[b + f"mlp.experts.{name}"] = theirs[a + f"mlp.experts.{name}_proj"].transpose(1, 2)
            ours[b + f"mlp.experts.{name}_bias"] = theirs[a + f"mlp.experts.{name}_proj_bias"]
    model.load_state_dict(ours)
    return model


def draw_ids(case: Case, *, seed: int = 1) -> Tensor:
    return torch.randint(case.vocab, (case.tokens,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def prefill(model: Transformer, ids: Tensor) -> Tensor:
    attention = PackedAttention([0, len(ids)])
    return model.logits(model(ids, positions=torch.arange(len(ids)), attention=attention))


@torch.inference_mode()
def cached(model: Transformer, ids: Tensor, *, steps: list[int]) -> Tensor:
    """Logits of all tokens, run in pieces of the given lengths through one cache."""
    cache = KVCache(model.config, capacity=1, dtype=torch.float32)
    parts = []
    for piece in ids.split(steps):
        attention = CachedAttention(cache, num_tokens=len(piece))
        positions = torch.arange(cache.length, cache.length + len(piece))
        parts.append(model.logits(model(piece, positions=positions, attention=attention)))
        attention.commit()
    return torch.cat(parts)


@torch.inference_mode()
def hf_cached(hf: Any, ids: Tensor, *, steps: list[int]) -> Tensor:
    parts, past = [], None
    for piece in ids.split(steps):
        out = hf(piece[None], past_key_values=past, use_cache=True)
        past = out.past_key_values
        parts.append(out.logits[0])
    return torch.cat(parts)


def relative_difference(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str) -> None:
    case = CASES[name]
    hf = make_hf(case)
    model, ids = from_hf(hf), draw_ids(case)
    with torch.inference_mode():
        wanted = hf(ids[None]).logits[0]
    assert relative_difference(prefill(model, ids), wanted) < RELATIVE
    first = case.tokens // 2
    # A prompt, a piece that the cache must meet with a mask, then single tokens, past the window where it is short.
    steps = [first, 3] + [1] * (case.tokens - first - 3)
    got = cached(model, ids, steps=steps)
    assert relative_difference(got, wanted) < RELATIVE
    assert relative_difference(got, hf_cached(hf, ids, steps=[first] + [1] * (case.tokens - first))) < RELATIVE


@pytest.mark.slow
def test_logits_are_those_of_transformers_past_4096() -> None:
    hf = make_hf(FAR)
    model, ids = from_hf(hf), draw_ids(FAR)
    with torch.inference_mode():
        wanted = hf(ids[None]).logits[0]
    assert relative_difference(prefill(model, ids), wanted) < RELATIVE
    got = cached(model, ids, steps=[4090] + [1] * (FAR.tokens - 4090))
    assert relative_difference(got, wanted) < RELATIVE


def _without_sinks(model: Transformer) -> None:
    for layer in model.layers:
        layer.attn.sinks.fill_(-1e9)


def _with_window_off_by_one(model: Transformer) -> None:
    for layer in model.layers:
        layer.attn.window = layer.attn.window and layer.attn.window + 1


def _with_swapped_gate_and_up(model: Transformer) -> None:
    for layer in model.layers:
        experts = layer.mlp.experts
        experts.gate_up.copy_(experts.gate_up.unflatten(1, (-1, 2)).flip(2).flatten(1, 2))


def _without_clamp(model: Transformer) -> None:
    for layer in model.layers:
        layer.mlp.experts.limit = 1e9


def _without_yarn(model: Transformer) -> None:
    plain = dataclasses.replace(model.config.rope, factor=1.0)
    model.config = dataclasses.replace(model.config, rope=plain)
    model._rope.clear()


def _without_down_bias(model: Transformer) -> None:
    for layer in model.layers:
        layer.mlp.experts.down_bias.zero_()


def _without_router_bias(model: Transformer) -> None:
    for layer in model.layers:
        layer.mlp.router.bias.zero_()


BREAKS = [
    _without_sinks, _with_window_off_by_one, _with_swapped_gate_and_up, _without_clamp, _without_yarn,
    _without_down_bias, _without_router_bias,
]  # fmt: skip


@pytest.mark.parametrize("damage", BREAKS)
def test_a_broken_model_is_noticed(damage: Any) -> None:
    """The comparison above must be able to fail: each of these departs from the architecture in one place."""
    case = dataclasses.replace(CASES["yarn-as-published"], limit=0.5)
    hf = make_hf(case)
    model, ids = from_hf(hf), draw_ids(case)
    with torch.inference_mode():
        wanted = hf(ids[None]).logits[0]
    with torch.no_grad():
        damage(model)
    assert relative_difference(prefill(model, ids), wanted) > 10 * RELATIVE


def test_both_configs_say_the_same() -> None:
    for case in CASES.values():
        theirs = transformers.GptOssConfig(**case.hf_fields())
        ours = ModelConfig.from_hf(theirs.to_dict())
        again = transformers.GptOssConfig.from_dict(ours.to_hf())
        assert ModelConfig.from_hf(again.to_dict()) == ours
        rope = {key: value for key, value in again.rope_parameters.items() if key in case.rope}
        assert rope == case.rope
