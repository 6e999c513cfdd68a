from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ossia.core.errors import InvalidInputError, StorageError
from ossia.kernels.mxfp4 import pack_mxfp4
from ossia.model.checkpoint import Checkpoint, load_model, save_checkpoint
from ossia.model.checkpoint.writer import ShardWriter
from ossia.model.config import PUBLISHED
from ossia.model.transformer import Transformer

Save = Callable[[str], Path]
MakeModel = Callable[..., Transformer]


def read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_are_readable_by_safetensors(saved: Save, make_model: MakeModel) -> None:
    folder = saved("hf-bf16")
    index = read_json(folder / "model.safetensors.index.json")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    tensors = {name: tensor for shard in shards for name, tensor in load_file(folder / shard).items()}
    assert index["weight_map"] == {name: shard for shard in shards for name in load_file(folder / shard)}
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    model = make_model().state_dict()
    q = tensors["model.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(q, model["layers.1.attn.qkv.weight"][:32])
    gate_up = tensors["model.layers.0.mlp.experts.gate_up_proj"]
    assert torch.equal(gate_up, model["layers.0.mlp.experts.gate_up"].transpose(1, 2))


def test_one_file_needs_no_index(make_model: MakeModel, tmp_path: Path) -> None:
    save_checkpoint(make_model(), tmp_path, format="original")
    assert sorted(contents(tmp_path)) == ["config.json", "dtypes.json", "model.safetensors"]


def test_float32_models_are_rounded_and_packed(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(dtype=torch.float32)
    save_checkpoint(model, tmp_path, format="hf-mxfp4")
    weights, file = model.state_dict(), load_file(tmp_path / "model.safetensors")
    packed = pack_mxfp4(weights["layers.0.mlp.experts.down"])
    assert torch.equal(file["model.layers.0.mlp.experts.down_proj_blocks"], packed.blocks)
    assert torch.equal(file["lm_head.weight"], weights["lm_head.weight"].bfloat16())


def test_configs_of_the_published_models(tmp_path: Path) -> None:
    """As the hub's files have them; nothing is written but the plan, for the weights would take 13 GB."""
    from ossia.model.checkpoint.hf import config_json, generation_config_json

    config = PUBLISHED["openai/gpt-oss-20b"]
    raw = config_json(config, is_packed=True)
    assert raw["quantization_config"] == {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    }
    assert "quantization_config" not in config_json(config, is_packed=False)
    assert (raw["architectures"], raw["model_type"]) == (["GptOssForCausalLM"], "gpt_oss")
    assert generation_config_json(config) == {
        "bos_token_id": 199998,
        "do_sample": True,
        "eos_token_id": [200002, 199999, 200012],
        "pad_token_id": 199999,
    }


def test_a_model_with_other_ids_ends_at_its_own(saved: Save) -> None:
    assert read_json(saved("hf-bf16") / "generation_config.json") == {"do_sample": True, "eos_token_id": [7]}


def test_a_checkpoint_is_a_source_too(saved: Save, tmp_path: Path) -> None:
    source = saved("hf-mxfp4")
    save_checkpoint(Checkpoint.open(source), tmp_path / "copy", format="hf-mxfp4", max_shard_bytes=30_000)
    assert contents(tmp_path / "copy") == contents(source)


def test_unknown_formats(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'gguf' is not known; allowed are hf-mxfp4, hf-bf16, original"):
        save_checkpoint(make_model(), tmp_path / "x", format="gguf")
    assert not (tmp_path / "x").exists()


def test_sizes_that_mxfp4_cannot_hold(
    make_model: MakeModel, make_config: Callable[..., object], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="hf-bf16"):
        save_checkpoint(make_model(make_config(hidden=20)), tmp_path / "x", format="hf-mxfp4")
    assert not (tmp_path / "x").exists()


def test_old_weights_go_and_other_files_stay(saved: Save, make_model: MakeModel) -> None:
    folder = saved("hf-bf16")
    (folder / "tokenizer.json").write_text("{}")
    save_checkpoint(make_model(seed=1), folder, format="hf-mxfp4")
    assert sorted(contents(folder)) == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    load_model(folder)


def test_a_failing_disk_leaves_the_old_model(
    saved: Save, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("hf-mxfp4")
    before, put, calls = contents(folder), ShardWriter.put, []

    def full(self: ShardWriter, name: str, start: int, rows: torch.Tensor) -> None:
        calls.append(name)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, name, start, rows)

    monkeypatch.setattr(ShardWriter, "put", full)
    with pytest.raises(StorageError, match=r"No space left on device; what was there is untouched"):
        save_checkpoint(make_model(seed=1), folder, format="hf-bf16")
    assert contents(folder) == before
