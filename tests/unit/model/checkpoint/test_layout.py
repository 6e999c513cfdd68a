from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.kernels.mxfp4 import Mxfp4
from ossia.model.checkpoint import memory
from ossia.model.checkpoint.hf import HF_BF16, HF_MXFP4
from ossia.model.checkpoint.layout import PACKED, SPLIT, TRANSPOSED, Kind, Weight, weights_of
from ossia.model.checkpoint.original import ORIGINAL, dtypes_json
from ossia.model.config import PUBLISHED, ModelConfig, num_parameters
from ossia.model.transformer import Transformer

CONFIG = PUBLISHED["openai/gpt-oss-20b"]


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("is_packed", [False, True])
def test_weights_are_those_of_the_transformer(config: ModelConfig, is_packed: bool) -> None:
    layout = memory.PACKED_EXPERTS if is_packed else memory.DENSE
    parts = {part.name: part.shape for weight in weights_of(config) for part in layout.parts(weight)}
    model = Transformer(config, device="meta", packed_experts=is_packed)
    assert parts == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(weight.num_elements for weight in weights_of(config)) == num_parameters(config)


def test_hub_names_and_shapes_of_the_20b() -> None:
    parts = {part.name: (part.shape, part.dtype) for weight in weights_of(CONFIG) for part in HF_MXFP4.parts(weight)}
    assert len(parts) == 459  # the number of tensors in the published model
    layer = "model.layers.23."
    assert parts[f"{layer}self_attn.k_proj.weight"] == ((512, 2880), None)
    assert parts[f"{layer}mlp.experts.gate_up_proj_blocks"] == ((32, 5760, 90, 16), torch.uint8)
    assert parts[f"{layer}mlp.experts.down_proj_scales"] == ((32, 2880, 90), torch.uint8)
    assert parts[f"{layer}mlp.experts.gate_up_proj_bias"] == ((32, 5760), None)
    dense = {part.name: part.shape for weight in weights_of(CONFIG) for part in HF_BF16.parts(weight)}
    assert dense[f"{layer}mlp.experts.gate_up_proj"] == (32, 2880, 5760)


def test_original_names_and_shapes_of_the_20b() -> None:
    parts = {part.name: part.shape for weight in weights_of(CONFIG) for part in ORIGINAL.parts(weight)}
    assert len(parts) == 24 * 15 + 3
    assert parts["block.0.attn.qkv.weight"] == (5120, 2880)
    assert parts["block.0.mlp.mlp1_weight.blocks"] == (32, 5760, 90, 16)
    dtypes = dtypes_json(weights_of(CONFIG))
    assert dtypes.keys() == parts.keys()
    assert [dtypes[f"block.3.mlp.mlp2_{end}"] for end in ("weight.blocks", "weight.scales", "bias")] == [
        "FP4",
        "UE8",
        "BF16",
    ]


def test_every_layout_names_every_weight_once() -> None:
    for layout in (HF_BF16, HF_MXFP4, ORIGINAL, memory.DENSE, memory.PACKED_EXPERTS):
        names = [part.name for weight in weights_of(CONFIG) for part in layout.parts(weight)]
        assert len(names) == len(set(names))
        assert not any("{" in name for name in names)


def weight(shape: tuple[int, ...], groups: tuple[int, ...] = ()) -> Weight:
    return Weight(name="w", pattern="w", layer=None, shape=shape, kind=Kind.EXPERTS, groups=groups)


@given(st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(1, 4))
def test_split_and_transposed_are_undone_by_decoding(groups: list[int], width: int) -> None:
    w = torch.arange(sum(groups) * width).view(-1, width).float()
    parts = SPLIT.encode(w, weight(tuple(w.shape), tuple(groups)), torch.float32)
    assert [part.shape[0] for part in parts] == groups
    assert torch.equal(SPLIT.decode(parts), w)  # pyright: ignore[reportArgumentType]
    cube = w.view(1, *w.shape)
    (turned,) = TRANSPOSED.encode(cube, weight(tuple(cube.shape)), torch.float32)
    assert turned.shape == (1, width, w.shape[0])
    assert torch.equal(TRANSPOSED.decode((turned,)), cube)  # pyright: ignore[reportArgumentType]


def test_packed_bytes_pass_untouched() -> None:
    """Packing what was unpacked could choose other codes for the same numbers; bytes must not change."""
    blocks = torch.randint(0, 256, (2, 3, 1, 16), dtype=torch.uint8)
    value = Mxfp4(blocks, torch.full((2, 3, 1), 3, dtype=torch.uint8))
    assert PACKED.encode(value, weight((2, 3, 32)), torch.bfloat16) is value


def test_mxfp4_wants_multiples_of_32() -> None:
    with pytest.raises(InvalidInputError, match=r"36 inputs.*multiples of 32.*hf-bf16"):
        HF_MXFP4.parts(Weight(name="layers.0.mlp.experts.down", pattern="layers.{n}.mlp.experts.down", layer=0,
                              shape=(2, 8, 36), kind=Kind.EXPERTS))  # fmt: skip
