"""What shape a model has: `ModelConfig`, and its spellings in the two families of checkpoints.

Field names are Hugging Face's. Rope's are nested, because its fields only mean something together.
"""

# E experts, A active experts, D model, F expert hidden, H heads, K KV heads, C head dim, V vocab

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ossia.core.errors import InvalidInputError, UnsupportedModelError

MODEL_TYPE = "gpt_oss"
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary position embedding with YaRN by parts (arXiv 2309.00071); `factor` 1.0 is plain rope.

    Attributes:
        theta: base of the frequencies.
        factor: how many times the context is stretched beyond `original_max_position_embeddings`.
        beta_fast: dimensions that turn at least so often within the original context keep their frequency.
        beta_slow: dimensions that turn at most so often have it divided by `factor`; in between it is blended.
        original_max_position_embeddings: context before stretching.
        truncate: whether the ends of the blend are rounded outward to whole dimensions. gpt-oss does not.
    """

    theta: float = 150000.0
    factor: float = 32.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_max_position_embeddings: int = 4096
    truncate: bool = False

    def __post_init__(self) -> None:
        _require(self.theta > 1, "rope theta", self.theta, "a number above 1")
        _require(self.factor >= 1, "rope factor", self.factor, "a number of at least 1 (1 means plain rope)")
        _require(self.beta_slow > 0, "rope beta_slow", self.beta_slow, "a positive number")
        _require(self.beta_fast > self.beta_slow, "rope beta_fast", self.beta_fast, f"above beta_slow {self.beta_slow}")
        _require_counts(self, "original_max_position_embeddings")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of one gpt-oss model.

    Attributes:
        sliding_window: on sliding layers a query at position p sees keys k with p - sliding_window < k <= p.
        layer_types: "sliding_attention" or "full_attention" for each layer; empty means alternating, sliding first.
        swiglu_limit: the expert's gate is clamped from above, its up projection on both sides.
        swiglu_alpha: slope of the expert's sigmoid.
        eos_token_ids: ids that end an answer; the files call it eos_token_id.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int = 4
    sliding_window: int = 128
    layer_types: tuple[str, ...] = ()
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    eos_token_ids: tuple[int, ...] = (200002,)
    pad_token_id: int | None = 199999

    def __post_init__(self) -> None:
        _require_counts(self, *_COUNTS)
        if not self.layer_types:
            object.__setattr__(self, "layer_types", alternating(self.num_hidden_layers))
        H, K, A, E = (
            self.num_attention_heads,
            self.num_key_value_heads,
            self.num_experts_per_tok,
            self.num_local_experts,
        )
        _require(H % K == 0, "num_key_value_heads", K, f"a divisor of num_attention_heads {H}")
        _require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number, because rope turns halves")
        _require(A <= E, "num_experts_per_tok", A, f"at most num_local_experts {E}")
        known = all(kind in (SLIDING, FULL) for kind in self.layer_types)
        _require(known, "layer_types", list(self.layer_types), f"'{SLIDING}' and '{FULL}' only")
        wanted = f"{self.num_hidden_layers} entries, one for each layer"
        _require(len(self.layer_types) == self.num_hidden_layers, "layer_types", f"{len(self.layer_types)}", wanted)
        _require(self.rms_norm_eps > 0, "rms_norm_eps", self.rms_norm_eps, "a positive number")
        _require(self.swiglu_limit > 0, "swiglu_limit", self.swiglu_limit, "a positive number")
        for token in (*self.eos_token_ids, *(() if self.pad_token_id is None else (self.pad_token_id,))):
            _require(_is_int(token) and token >= 0, "eos_token_ids or pad_token_id", token, "token ids")

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer, or None where attention is full."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face `config.json`.

        Rope is taken from `rope_parameters` (as Transformers 5 writes) or from `rope_scaling` and `rope_theta` (as on
        the hub). A file with neither means the published YaRN, as it does in Transformers.

        Raises:
            UnsupportedModelError: the file describes another architecture, or a variant that gpt-oss has not.
            InvalidInputError: a field is missing or impossible.
        """
        _require_gpt_oss(raw)
        _require_keys(raw, _SHAPE)
        fields = {name: raw[name] for name in (*_SHAPE, *_OPTIONAL) if raw.get(name) is not None}
        fields.setdefault("head_dim", 64)  # what Transformers takes a missing key to mean
        eos = raw.get("eos_token_id")
        return cls(
            **fields,
            layer_types=tuple(raw.get("layer_types") or ()),
            rope=_rope_from_hf(raw),
            eos_token_ids=() if eos is None else (eos,) if _is_int(eos) else tuple(eos),
            pad_token_id=raw.get("pad_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face `config.json`, in the hub's spelling, which old and new readers take."""
        eos = list(self.eos_token_ids)
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": MODEL_TYPE,
            **{name: getattr(self, name) for name in (*_SHAPE, *_OPTIONAL)},
            "layer_types": list(self.layer_types),
            "rope_theta": self.rope.theta,
            "rope_scaling": _rope_to_hf(self.rope),
            "initial_context_length": self.rope.original_max_position_embeddings,
            "experts_per_token": self.num_experts_per_tok,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "pad_token_id": self.pad_token_id,
            **_FIXED,
        }

    @classmethod
    def from_original(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read the `config.json` of OpenAI's own format (`original/`).

        Raises:
            UnsupportedModelError: the file is not of that format.
            InvalidInputError: a value is impossible.
        """
        missing = [name for name in (*_ORIGINAL, "rope_scaling_factor") if name not in raw]
        if missing:
            raise UnsupportedModelError(
                f"this is not a config.json of OpenAI's original format: it has no {', '.join(missing)}; "
                "Hugging Face folders have 'model_type' instead"
            )
        fields = {ours: raw[theirs] for theirs, ours in _ORIGINAL.items() if not ours.startswith("rope.")}
        rope = {ours[5:]: raw[theirs] for theirs, ours in _ORIGINAL.items() if ours.startswith("rope.")}
        factor = raw["rope_scaling_factor"]
        extra = {name: raw[name] for name in _BEYOND_ORIGINAL if name in raw}
        for name in extra.keys() & {"eos_token_ids", "layer_types"}:
            extra[name] = tuple(extra[name])
        fields["max_position_embeddings"] = round(rope["original_max_position_embeddings"] * factor)
        return cls(**(fields | extra), rope=RopeConfig(**rope, factor=factor))

    def to_original(self) -> dict[str, Any]:
        """The content of OpenAI's `config.json`.

        That format fixes some of our fields (epsilon, special ids, alternation). Those of a model that differs are
        written as further keys, so that nothing is lost; the published models need none.

        Raises:
            InvalidInputError: rope is rounded (`truncate`), which the format cannot say.
        """
        _require(not self.rope.truncate, "rope truncate", True, "False in OpenAI's original format")
        raw = {theirs: _dotted(self, ours) for theirs, ours in _ORIGINAL.items()}
        raw["rope_scaling_factor"] = self.rope.factor
        plain = ModelConfig.from_original(raw)
        different = (name for name in _BEYOND_ORIGINAL if getattr(self, name) != getattr(plain, name))
        extra = {name: getattr(self, name) for name in different}
        return raw | {name: list(value) if isinstance(value, tuple) else value for name, value in extra.items()}


def alternating(num_layers: int) -> tuple[str, ...]:
    """The published pattern: sliding on even layers, full on odd ones."""
    return tuple(SLIDING if layer % 2 == 0 else FULL for layer in range(num_layers))


def num_parameters(config: ModelConfig, *, active: bool = False) -> int:
    """How many parameters a model of this shape has, unpacked.

    Args:
        config: the shape.
        active: count only what one token uses: A experts of each layer, and of the embeddings the output side.
    """
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, K, C, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.num_local_experts
    attention = (H + 2 * K) * C * (D + 1) + D * (H * C + 1) + H
    expert = 2 * F * (D + 1) + D * (F + 1)
    num_experts = config.num_experts_per_tok if active else E
    layer = 2 * D + attention + E * (D + 1) + num_experts * expert
    return config.num_hidden_layers * layer + D + (1 if active else 2) * V * D


_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_local_experts",
)
_COUNTS = (*_SHAPE, "head_dim", "num_experts_per_tok", "sliding_window", "max_position_embeddings")
_OPTIONAL = (
    "head_dim",
    "num_experts_per_tok",
    "sliding_window",
    "max_position_embeddings",
    "rms_norm_eps",
    "swiglu_limit",
    "swiglu_alpha",
)
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": True,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
"""What every gpt-oss has; a file that says otherwise describes another model."""

_ORIGINAL = {
    "num_hidden_layers": "num_hidden_layers",
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "swiglu_limit": "swiglu_limit",
    "head_dim": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window": "sliding_window",
    "initial_context_length": "rope.original_max_position_embeddings",
    "rope_theta": "rope.theta",
    "rope_ntk_alpha": "rope.beta_slow",
    "rope_ntk_beta": "rope.beta_fast",
}
"""OpenAI's name of each field, and ours."""

_BEYOND_ORIGINAL = (
    "max_position_embeddings",
    "rms_norm_eps",
    "swiglu_alpha",
    "layer_types",
    "eos_token_ids",
    "pad_token_id",
)


def _require_gpt_oss(raw: Mapping[str, Any]) -> None:
    got = raw.get("model_type")
    if got != MODEL_TYPE:
        raise UnsupportedModelError(
            f"this config.json has model_type {got!r}; Ossia runs {MODEL_TYPE!r} models only (gpt-oss and its kin)"
        )
    for name in ("hidden_act", "attention_bias", "tie_word_embeddings"):
        value = raw.get(name, _FIXED[name])
        if value != _FIXED[name]:
            raise UnsupportedModelError(f"this config.json has {name} {value!r}; gpt-oss has {_FIXED[name]!r} there")


def _rope_from_hf(raw: Mapping[str, Any]) -> RopeConfig:
    given = raw.get("rope_parameters") or raw.get("rope_scaling")
    if given is None:
        return RopeConfig(theta=raw.get("rope_theta", RopeConfig().theta))
    theta = given.get("rope_theta", raw.get("rope_theta", RopeConfig().theta))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta, factor=1.0)
    if kind != "yarn":
        raise UnsupportedModelError(f"this config.json has rope_type {kind!r}; allowed are 'yarn' and 'default'")
    for name in ("attention_factor", "mscale", "mscale_all_dim"):
        if given.get(name) is not None:
            raise UnsupportedModelError(f"this config.json sets rope's {name}, which no gpt-oss has; remove it")
    _require_keys(given, ("factor", "original_max_position_embeddings"))
    return RopeConfig(
        theta=theta,
        factor=given["factor"],
        beta_fast=given.get("beta_fast") or 32.0,
        beta_slow=given.get("beta_slow") or 1.0,
        original_max_position_embeddings=given["original_max_position_embeddings"],
        truncate=given.get("truncate", True),  # what Transformers takes a missing key to mean
    )


def _rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    if rope.factor == 1.0:
        return {"rope_type": "default"}
    return {
        "rope_type": "yarn",
        "factor": rope.factor,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
        "truncate": rope.truncate,
    }


def _dotted(config: ModelConfig, name: str) -> Any:
    return getattr(config.rope, name[5:]) if name.startswith("rope.") else getattr(config, name)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, name: str, got: object, allowed: str) -> None:
    if not condition:
        raise InvalidInputError(f"{name} is {got!r}; allowed: {allowed}", param=name)


def _require_counts(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(_is_int(value) and value > 0, name, value, "a positive whole number")


def _require_keys(raw: Mapping[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if raw.get(name) is None]
    if missing:
        raise InvalidInputError(f"the config lacks {', '.join(missing)}; every gpt-oss config.json has them")


def _published(num_layers: int, num_experts: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=201088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=num_layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        num_local_experts=num_experts,
    )


PUBLISHED: dict[str, ModelConfig] = {
    "openai/gpt-oss-20b": _published(24, 32),
    "openai/gpt-oss-120b": _published(36, 128),
}
"""The two published models, by their name on the Hugging Face hub."""
