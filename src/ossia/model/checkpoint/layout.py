"""How tensors lie in a checkpoint: our parameter names, and for each format a table from them to the file's tensors.

Everything is named as in `Transformer`. A model has `weights_of(config)`; a `Layout` says for each of them which
tensors of the file hold it and how (a `Codec`). The model in memory is two layouts more, dense and packed, so that
loading, saving and converting are the same loop (`stream.transfer`) between two layouts.
"""

# E experts, D model, F expert hidden, G = 2F, H heads, K KV heads, C head dim, V vocab

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.mxfp4 import BLOCK, Mxfp4, pack_mxfp4, unpack_mxfp4
from ossia.model.config import ModelConfig

Shape = tuple[int, ...]
Value = Tensor | Mxfp4
"""A weight on its way from one layout to another: packed experts stay packed unless the target wants them dense."""


class Kind(StrEnum):
    """What a weight belongs to, for accounts of parameters and bytes."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    ROUTER = "router"
    EXPERTS = "experts"
    NORM = "norm"
    HEAD = "head"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """One weight of a model.

    Attributes:
        name: its full name in `Transformer`, dense: "layers.3.mlp.experts.gate_up".
        pattern: the same with "{n}" for the layer, the key of a layout's table.
        layer: the layer's number, None outside layers.
        shape: its dense shape, output-major.
        groups: the rows that belong to q, k and v; empty for other weights.
    """

    name: str
    pattern: str
    layer: int | None
    shape: Shape
    kind: Kind
    groups: tuple[int, ...] = ()

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


class Part(NamedTuple):
    """A tensor in a file; dtype None is the layout's float dtype."""

    name: str
    shape: Shape
    dtype: torch.dtype | None

    def num_bytes(self, float_dtype: torch.dtype) -> int:
        return math.prod(self.shape) * (self.dtype or float_dtype).itemsize


class Codec(Protocol):
    """How a weight is laid out in one or more tensors.

    Attributes:
        is_rowwise: rows of the weight (its first dimension) can be handled apart, which bounds a transfer's memory.
        is_packed: the weight is MXFP4 in this layout.
    """

    is_rowwise: bool
    is_packed: bool

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        """The tensors' shapes and dtypes."""
        ...

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        """From the file's tensors to the weight (some of its rows)."""
        ...

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """From the weight (some of its rows) to the file's tensors; floats in `dtype`."""
        ...


class Plain:
    """One tensor, as it is."""

    is_rowwise, is_packed = True, False

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        return ((weight.shape, None),)

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        return parts[0]

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (dense(value, dtype),)


class Split:
    """A fused projection as one tensor for each group of its rows: q, k and v."""

    is_rowwise, is_packed = False, False

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        return tuple(((rows, *weight.shape[1:]), None) for rows in weight.groups)

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        return torch.cat(parts)

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return dense(value, dtype).split(weight.groups)


class Transposed:
    """Experts' matrices input-major, [E, in, out], as Transformers keeps them."""

    is_rowwise, is_packed = True, False

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        E, num_out, num_in = weight.shape
        return (((E, num_in, num_out), None),)

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        return parts[0].transpose(1, 2)

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (dense(value, dtype).transpose(1, 2),)


class Packed:
    """MXFP4 along the input dimension: blocks uint8 [E, out, in / 32, 16] and scales uint8 [E, out, in / 32]."""

    is_rowwise, is_packed = True, True

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        E, num_out, num_in = weight.shape
        if num_in % BLOCK:
            raise InvalidInputError(
                f"{weight.name} has {num_in} inputs, but MXFP4 packs blocks of {BLOCK}: hidden_size and "
                f"intermediate_size must be multiples of {BLOCK}; use the format hf-bf16 for this model"
            )
        blocks = (E, num_out, num_in // BLOCK, BLOCK // 2)
        return (blocks, torch.uint8), (blocks[:3], torch.uint8)

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        return Mxfp4(*parts)

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return value if isinstance(value, Mxfp4) else pack_mxfp4(value)


def dense(value: Value, dtype: torch.dtype) -> Tensor:
    """The value as one tensor of that dtype; MXFP4 is unpacked, exactly if `dtype` is bfloat16 or float32."""
    if isinstance(value, Mxfp4):
        return unpack_mxfp4(value.blocks, scales=value.scales, dtype=dtype)
    return value.to(dtype)


PLAIN, SPLIT, TRANSPOSED, PACKED = Plain(), Split(), Transposed(), Packed()


class Rule(NamedTuple):
    """One line of a table: the file's tensor names, "{n}" standing for the layer, and how they hold the weight."""

    names: tuple[str, ...]
    codec: Codec = PLAIN


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A format's table.

    Attributes:
        name: as users type it.
        rules: by the weight's pattern.
        is_packed: the experts are MXFP4.
    """

    name: str
    rules: Mapping[str, Rule]
    is_packed: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_packed", any(rule.codec.is_packed for rule in self.rules.values()))

    def codec(self, weight: Weight) -> Codec:
        return self.rules[weight.pattern].codec

    def parts(self, weight: Weight) -> tuple[Part, ...]:
        """The tensors that hold a weight.

        Raises:
            InvalidInputError: MXFP4 cannot hold it, because a dimension is not a multiple of 32.
        """
        names, codec = self.rules[weight.pattern]
        filled = (name.format(n=weight.layer) for name in names)
        return tuple(Part(name, shape, dtype) for name, (shape, dtype) in zip(filled, codec.parts(weight), strict=True))


def weights_of(config: ModelConfig) -> Iterator[Weight]:
    """All weights of a model, in the order of a forward pass."""
    D, F, V, E = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_local_experts
    H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    qkv = (H * C, K * C, K * C)
    in_layer: tuple[tuple[str, Shape, Kind], ...] = (
        ("attn_norm.weight", (D,), Kind.NORM),
        ("attn.qkv.weight", (sum(qkv), D), Kind.ATTENTION),
        ("attn.qkv.bias", (sum(qkv),), Kind.ATTENTION),
        ("attn.sinks", (H,), Kind.ATTENTION),
        ("attn.out.weight", (D, H * C), Kind.ATTENTION),
        ("attn.out.bias", (D,), Kind.ATTENTION),
        ("mlp_norm.weight", (D,), Kind.NORM),
        ("mlp.router.weight", (E, D), Kind.ROUTER),
        ("mlp.router.bias", (E,), Kind.ROUTER),
        ("mlp.experts.gate_up", (E, 2 * F, D), Kind.EXPERTS),
        ("mlp.experts.gate_up_bias", (E, 2 * F), Kind.EXPERTS),
        ("mlp.experts.down", (E, D, F), Kind.EXPERTS),
        ("mlp.experts.down_bias", (E, D), Kind.EXPERTS),
    )
    yield _outside("embed_tokens.weight", (V, D), Kind.EMBEDDING)
    for n in range(config.num_hidden_layers):
        for name, shape, kind in in_layer:
            full, pattern = f"layers.{n}.{name}", f"layers.{{n}}.{name}"
            groups = qkv if ".qkv." in name else ()
            yield Weight(name=full, pattern=pattern, layer=n, shape=shape, kind=kind, groups=groups)
    yield _outside("norm.weight", (D,), Kind.NORM)
    yield _outside("lm_head.weight", (V, D), Kind.HEAD)


def can_pack(config: ModelConfig) -> bool:
    """Whether MXFP4 can hold the experts."""
    return config.hidden_size % BLOCK == 0 and config.intermediate_size % BLOCK == 0


def _outside(name: str, shape: Shape, kind: Kind) -> Weight:
    return Weight(name=name, pattern=name, layer=None, shape=shape, kind=kind)


def table(lines: Mapping[str, str | tuple[str, str, str]]) -> dict[str, Rule]:
    """A table from short lines: a name for a plain weight, three for one that is split into q, k and v."""
    rules: dict[str, Rule] = {}
    for pattern, names in lines.items():
        rules[pattern] = Rule((names,), PLAIN) if isinstance(names, str) else Rule(names, SPLIT)
    return rules


_GATE_UP, _DOWN = "layers.{n}.mlp.experts.gate_up", "layers.{n}.mlp.experts.down"


def expert_rules(gate_up: tuple[str, ...], down: tuple[str, ...], codec: Codec) -> dict[str, Rule]:
    """The two lines of the experts' matrices, which is all that differs between dense and packed layouts."""
    return {_GATE_UP: Rule(gate_up, codec), _DOWN: Rule(down, codec)}
