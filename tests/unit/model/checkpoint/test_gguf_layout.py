"""GGUF's codecs against the `gguf` package's own decoders, and against ours the other way round."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.mxfp4 import Mxfp4, pack_mxfp4, unpack_mxfp4
from ossia.model.checkpoint.gguf_layout import (
    DENSE_TYPES,
    Q80,
    Single,
    from_ggml,
    gguf_layout,
    num_blocks,
    quantize_q8_0,
    to_ggml,
)
from ossia.model.checkpoint.layout import Kind, Weight, dense, weights_of
from ossia.model.config import ModelConfig

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=64,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_local_experts=3,
    num_experts_per_tok=2,
)


def weight(shape: tuple[int, ...]) -> Weight:
    return Weight(name="w", pattern="w", layer=None, shape=shape, kind=Kind.HEAD)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4))
def test_mxfp4_keeps_every_number(seed: int, num_rows: int, num_blocks: int) -> None:
    """All codes, and the scales that float32 can hold: 2^(254 - 127) times 6 is beyond it."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (num_rows, num_blocks, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(0, 252, (num_rows, num_blocks), generator=generator, dtype=torch.uint8)
    ours = unpack_mxfp4(blocks, scales=scales, dtype=torch.float32)
    data = to_ggml(Mxfp4(blocks, scales))
    assert data.shape == (num_rows, 17 * num_blocks)
    theirs = dequantize(data.numpy(), gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(ours.numpy(), theirs)
    back = from_ggml(data)
    assert torch.equal(back.blocks, blocks)
    assert torch.equal(back.scales, scales)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 0.02, 1.0, 300.0]))
def test_q8_0_is_ggmls_to_the_byte(seed: int, size: float) -> None:
    w = torch.randn(3, 96, generator=torch.Generator().manual_seed(seed)) * size
    w[0, :32] = 0.0
    w[1, 0] = w[1, :32].abs().max() * 2
    ours = quantize_q8_0(w)
    theirs = quantize(w.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(ours.numpy(), theirs)
    decoded = Q80().decode((ours,))
    assert isinstance(decoded, Tensor)
    assert np.array_equal(decoded.numpy(), dequantize(theirs, gguf.GGMLQuantizationType.Q8_0))


def test_ties_go_away_from_zero() -> None:
    w = torch.zeros(1, 32)
    w[0, :4] = torch.tensor([127.0, 0.5, -0.5, 1.5])
    numbers = quantize_q8_0(w).view(torch.int8)[0, 2:6]
    assert numbers.tolist() == [127, 1, -1, 2]


@pytest.mark.parametrize("name", DENSE_TYPES)
def test_each_weight_comes_back(name: str) -> None:
    layout = gguf_layout(name)
    generator = torch.Generator().manual_seed(1)
    for item in weights_of(CONFIG):
        value = torch.randn(item.shape, generator=generator).bfloat16()
        codec, parts = layout.codec(item), layout.parts(item)
        encoded = codec.encode(value, item, torch.float32)
        assert [tuple(tensor.shape) for tensor in encoded] == [part.shape for part in parts]
        assert [tensor.dtype for tensor in encoded] == [part.dtype for part in parts]
        back = dense(codec.decode(encoded), torch.float32)
        if item.kind is Kind.EXPERTS and item.name.endswith(("gate_up", "down")):
            packed = pack_mxfp4(value)
            assert torch.equal(back, unpack_mxfp4(packed.blocks, scales=packed.scales, dtype=torch.float32))
        elif name == "q8_0" and len(item.shape) == 2 and item.kind is not Kind.ROUTER and "bias" not in item.name:
            # Half a step of 2 / 254 of the largest of 32 numbers, and float16's rounding of the scale.
            largest = value.float().unflatten(-1, (-1, 32)).abs().amax(dim=-1, keepdim=True)
            error = (back - value.float()).unflatten(-1, (-1, 32)).abs()
            assert bool((error <= largest * (0.5 / 127 + 2**-11)).all())
        else:
            assert torch.equal(back, value.float()), item.name


def test_gate_is_the_even_rows() -> None:
    layout = gguf_layout()
    item = next(item for item in weights_of(CONFIG) if item.name.endswith("gate_up_bias"))
    value = torch.arange(3 * 64).view(3, 64).float()
    gate, up = layout.codec(item).encode(value, item, torch.float32)
    assert torch.equal(gate, value[:, 0::2])
    assert torch.equal(up, value[:, 1::2])
    assert [part.name for part in layout.parts(item)] == ["blk.0.ffn_gate_exps.bias", "blk.0.ffn_up_exps.bias"]


def test_numbers_out_of_range_are_refused() -> None:
    big = torch.full((1, 32), 1e5)
    with pytest.raises(InvalidInputError, match="bf16 or q8_0"):
        Single(torch.float16, "F16").encode(big, weight((1, 32)), torch.float32)
    with pytest.raises(InvalidInputError, match="bf16"):
        quantize_q8_0(big * 1e6)


def test_shapes_and_names_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="48 inputs"):
        num_blocks(weight((1, 48)))
    with pytest.raises(InvalidInputError, match="bf16, f16, q8_0"):
        gguf_layout("q4_0")
