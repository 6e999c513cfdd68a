from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ossia.core.errors import InvalidInputError
from ossia.kernels.mxfp4 import pack_mxfp4, unpack_mxfp4
from ossia.model.checkpoint import convert, load_model
from ossia.model.transformer import Transformer

Save = Callable[[str], Path]
MakeModel = Callable[..., Transformer]


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".safetensors", ".json")}


def test_original_and_back_gives_the_same_files(saved: Save, tmp_path: Path) -> None:
    source = saved("hf-mxfp4")
    convert(source, tmp_path / "there", format="original")
    convert(tmp_path / "there", tmp_path / "back", format="hf-mxfp4", max_shard_bytes=30_000)
    assert weights(tmp_path / "back") == weights(source)


def test_the_originals_tensors(saved: Save, make_model: MakeModel, tmp_path: Path) -> None:
    convert(saved("hf-mxfp4"), tmp_path / "o", format="original")
    file, model = load_file(tmp_path / "o" / "model.safetensors"), make_model(packed_experts=True).state_dict()
    assert torch.equal(file["block.1.attn.qkv.weight"], model["layers.1.attn.qkv.weight"])
    assert torch.equal(file["block.0.mlp.mlp1_weight.blocks"], model["layers.0.mlp.experts.gate_up_blocks"])
    assert {tensor.dtype for tensor in file.values()} == {torch.bfloat16, torch.uint8}
    raw = json.loads((tmp_path / "o" / "config.json").read_text())
    assert (raw["num_experts"], raw["experts_per_token"], raw["initial_context_length"]) == (3, 2, 16)
    assert (raw["rope_ntk_alpha"], raw["rope_ntk_beta"], raw["rope_scaling_factor"]) == (1.0, 32.0, 32.0)


def test_unpacking_is_exact_and_packing_again_gives_the_same_numbers(saved: Save, tmp_path: Path) -> None:
    source = saved("hf-mxfp4")
    convert(source, tmp_path / "dense", format="hf-bf16")
    convert(tmp_path / "dense", tmp_path / "packed", format="hf-mxfp4")
    a, b, c = (
        load_model(folder, packed_experts=False).state_dict()
        for folder in (source, tmp_path / "dense", tmp_path / "packed")
    )
    for name in a:
        assert torch.equal(a[name], b[name]), name
        assert torch.equal(a[name], c[name]), name


def test_packing_rounds_as_the_kernel_does(saved: Save, make_model: MakeModel, tmp_path: Path) -> None:
    convert(saved("hf-bf16"), tmp_path / "packed", format="hf-mxfp4")
    dense, loaded = make_model().state_dict(), load_model(tmp_path / "packed", packed_experts=False).state_dict()
    name = "layers.0.mlp.experts.gate_up"
    packed = pack_mxfp4(dense[name])
    assert torch.equal(loaded[name], unpack_mxfp4(packed.blocks, scales=packed.scales, dtype=torch.bfloat16))
    assert not torch.equal(loaded[name], dense[name])


def test_tokenizer_files_and_own_keys_come_along(saved: Save, tmp_path: Path) -> None:
    source = saved("hf-mxfp4")
    for name in ("tokenizer.json", "chat_template.jinja", "o200k_ids.json", "unrelated.log"):
        (source / name).write_text(name)
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw | {"ossia": {"name": "x"}}))
    convert(source, source / "original", format="original")
    shutil.rmtree(tmp_path / "unused", ignore_errors=True)
    convert(source / "original", tmp_path / "back", format="hf-bf16")
    assert {path.name for path in (source / "original").iterdir()} >= {"tokenizer.json", "o200k_ids.json"}
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert not (tmp_path / "back" / "unrelated.log").exists()
    assert json.loads((tmp_path / "back" / "config.json").read_text())["ossia"] == {"name": "x"}


def test_not_onto_itself(saved: Save) -> None:
    source = saved("hf-mxfp4")
    before = weights(source)
    with pytest.raises(InvalidInputError, match="choose another folder"):
        convert(source, source, format="hf-bf16")
    assert weights(source) == before
