"""GGUF's tensors as a layout: the architecture `gpt-oss`, as llama.cpp names and stores them.

Norms, biases, sinks and the router are float32. Dense matrices are BF16, F16 or Q8_0. Experts stay MXFP4, in ggml's
order of nibbles, with gate and up apart. A quantised tensor appears here as bytes: its last dimension counts bytes.
"""

# E experts, R rows, N blocks of 32 weights along a row

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.mxfp4 import BLOCK, Mxfp4, pack_mxfp4
from ossia.model.checkpoint.layout import Layout, Rule, Shape, Value, Weight, dense

DENSE_TYPES = ("bf16", "f16", "q8_0")
MXFP4_BYTES = 1 + BLOCK // 2
"""Of a block: the scale (E8M0), then byte j holds weight j in its low nibble and weight j + 16 in its high one."""
Q8_0_BYTES = 2 + BLOCK
"""Of a block: the scale (float16), then 32 signed bytes."""


@runtime_checkable
class GgufCodec(Protocol):
    """A codec that also says what ggml calls the type of its tensors."""

    @property
    def ggml_type(self) -> str: ...


class Single:
    """One tensor of a float dtype, rows as they are."""

    is_rowwise, is_packed = True, False

    def __init__(self, dtype: torch.dtype, ggml_type: str) -> None:
        self.dtype, self.ggml_type = dtype, ggml_type

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        return ((weight.shape, self.dtype),)

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        return parts[0]

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        wide = dense(value, torch.float32)
        narrow = wide.to(self.dtype)
        if self.dtype == torch.float16 and bool((narrow.isinf() & wide.isfinite()).any()):
            raise InvalidInputError(
                f"{weight.name} holds numbers beyond float16's 65504; write it with bf16 or q8_0", param="dense"
            )
        return (narrow,)


class Q80(Single):
    """One matrix in 8 bits: uint8 [R, 34 N]."""

    def __init__(self) -> None:
        super().__init__(torch.uint8, "Q8_0")

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        return (((*weight.shape[:-1], num_blocks(weight) * Q8_0_BYTES), torch.uint8),)

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        blocks = parts[0].unflatten(-1, (-1, Q8_0_BYTES))
        scales = blocks[..., :2].contiguous().view(torch.float16).float()
        return (scales * blocks[..., 2:].contiguous().view(torch.int8).float()).flatten(-2)

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (quantize_q8_0(dense(value, torch.float32)),)


class Qkv:
    """The fused projection as q, k and v, each as `inner` has it."""

    is_rowwise, is_packed = False, False

    def __init__(self, inner: Single) -> None:
        self.inner, self.ggml_type = inner, inner.ggml_type

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        ((shape, dtype),) = self.inner.parts(weight)
        return tuple(((rows, *shape[1:]), dtype) for rows in weight.groups)

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        return self.inner.decode((torch.cat(parts),))

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return self.inner.encode(value, weight, dtype)[0].split(weight.groups)


class Down:
    """Experts' output matrices: uint8 [E, R, 17 N]."""

    is_rowwise, is_packed, ggml_type = True, True, "MXFP4"

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        return (((*weight.shape[:-1], num_blocks(weight) * MXFP4_BYTES), torch.uint8),)

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        return from_ggml(parts[0])

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (to_ggml(value if isinstance(value, Mxfp4) else pack_mxfp4(value)),)


class GateUp(Down):
    """Experts' gate and up matrices, which are the even and the odd rows of ours."""

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        (((E, R, width), dtype),) = super().parts(weight)
        return (((E, R // 2, width), dtype),) * 2

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        return from_ggml(torch.stack(parts, dim=2).flatten(1, 2))

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        (both,) = super().encode(value, weight, dtype)
        return both[:, 0::2], both[:, 1::2]


class GateUpBias:
    """The same for their biases, float32 [E, R / 2] each."""

    is_rowwise, is_packed, ggml_type = True, False, "F32"

    def parts(self, weight: Weight) -> tuple[tuple[Shape, torch.dtype | None], ...]:
        E, R = weight.shape
        return (((E, R // 2), torch.float32),) * 2

    def decode(self, parts: tuple[Tensor, ...]) -> Value:
        return torch.stack(parts, dim=2).flatten(1, 2)

    def encode(self, value: Value, weight: Weight, dtype: torch.dtype) -> tuple[Tensor, ...]:
        both = dense(value, torch.float32)
        return both[:, 0::2], both[:, 1::2]


def gguf_layout(dense_type: str = "bf16") -> Layout:
    """The table of a GGUF file.

    Raises:
        InvalidInputError: the type of dense matrices is not known.
    """
    codecs = {"bf16": Single(torch.bfloat16, "BF16"), "f16": Single(torch.float16, "F16"), "q8_0": Q80()}
    if dense_type not in codecs:
        raise InvalidInputError(f"dense is {dense_type!r}; allowed: {', '.join(DENSE_TYPES)}", param="dense")
    matrix, vector = codecs[dense_type], Single(torch.float32, "F32")
    block, ours = "blk.{n}.", "layers.{n}."
    qkv = tuple(f"{block}attn_{name}" for name in "qkv")
    rules = {
        "embed_tokens.weight": Rule(("token_embd.weight",), matrix),
        "norm.weight": Rule(("output_norm.weight",), vector),
        "lm_head.weight": Rule(("output.weight",), matrix),
        f"{ours}attn_norm.weight": Rule((f"{block}attn_norm.weight",), vector),
        f"{ours}attn.qkv.weight": Rule(tuple(f"{name}.weight" for name in qkv), Qkv(matrix)),
        f"{ours}attn.qkv.bias": Rule(tuple(f"{name}.bias" for name in qkv), Qkv(vector)),
        f"{ours}attn.sinks": Rule((f"{block}attn_sinks.weight",), vector),
        f"{ours}attn.out.weight": Rule((f"{block}attn_output.weight",), matrix),
        f"{ours}attn.out.bias": Rule((f"{block}attn_output.bias",), vector),
        f"{ours}mlp_norm.weight": Rule((f"{block}post_attention_norm.weight",), vector),
        f"{ours}mlp.router.weight": Rule((f"{block}ffn_gate_inp.weight",), vector),
        f"{ours}mlp.router.bias": Rule((f"{block}ffn_gate_inp.bias",), vector),
        f"{ours}mlp.experts.gate_up": Rule((f"{block}ffn_gate_exps.weight", f"{block}ffn_up_exps.weight"), GateUp()),
        f"{ours}mlp.experts.gate_up_bias": Rule(
            (f"{block}ffn_gate_exps.bias", f"{block}ffn_up_exps.bias"), GateUpBias()
        ),
        f"{ours}mlp.experts.down": Rule((f"{block}ffn_down_exps.weight",), Down()),
        f"{ours}mlp.experts.down_bias": Rule((f"{block}ffn_down_exps.bias",), vector),
    }
    return Layout(name="gguf", rules=rules)


def num_blocks(weight: Weight) -> int:
    """Blocks of 32 along a row.

    Raises:
        InvalidInputError: a row is not made of whole blocks.
    """
    width = weight.shape[-1]
    if width % BLOCK:
        raise InvalidInputError(
            f"{weight.name} has {width} inputs, but GGUF's MXFP4 and Q8_0 have blocks of {BLOCK}; this model cannot be "
            "written so. Its dense matrices can with bf16 or f16; its experts need multiples of 32"
        )
    return width // BLOCK


def to_ggml(packed: Mxfp4) -> Tensor:
    """Blocks of our order (byte j: weights 2j and 2j + 1) -> uint8 [..., 17 N], the very same numbers."""
    low, high = packed.blocks & 15, packed.blocks >> 4
    codes = torch.stack((low, high), dim=-1).flatten(-2)
    half = BLOCK // 2
    out = torch.empty(*packed.scales.shape, MXFP4_BYTES, dtype=torch.uint8)
    out[..., 0] = packed.scales
    torch.bitwise_or(codes[..., :half], codes[..., half:] << 4, out=out[..., 1:])
    return out.flatten(-2)


def from_ggml(data: Tensor) -> Mxfp4:
    """The reverse of `to_ggml`."""
    blocks = data.unflatten(-1, (-1, MXFP4_BYTES))
    codes = torch.cat((blocks[..., 1:] & 15, blocks[..., 1:] >> 4), dim=-1)
    return Mxfp4(codes[..., 0::2] | codes[..., 1::2] << 4, blocks[..., 0].contiguous())


def quantize_q8_0(w: Tensor) -> Tensor:
    """float32 [..., 32 N] -> uint8 [..., 34 N], rounded as ggml does: halves away from zero, by the scale before it
    became float16."""
    blocks = w.unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    scaled = blocks * inverse
    numbers = (scaled.abs() + 0.5).floor() * scaled.sign()
    halves = scale.to(torch.float16)
    if bool(halves.isinf().any()):
        raise InvalidInputError("a matrix holds numbers that Q8_0's float16 scales cannot reach; write it with bf16")
    return torch.cat((halves.view(torch.uint8), numbers.to(torch.int8).view(torch.uint8)), dim=-1).flatten(-2)
