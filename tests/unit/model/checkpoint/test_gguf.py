"""GGUF files read back with the `gguf` package."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from torch import Tensor

from ossia.core.errors import InvalidInputError, MissingExtraError, StorageError
from ossia.core.paths import PACKAGE_ROOT
from ossia.harmony.hf_tokenizer import load_tokenizer, write_tokenizer_json
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint import gguf as exporter
from ossia.model.checkpoint import load_model, save_checkpoint
from ossia.model.checkpoint.gguf import token_table, write_gguf
from ossia.model.config import ModelConfig
from ossia.model.transformer import Transformer

NANO = PACKAGE_ROOT / "nano"
MakeConfig = Callable[..., ModelConfig]
MakeModel = Callable[..., Transformer]


@pytest.fixture
def small_folder(make_config: MakeConfig, make_model: MakeModel, tmp_path: Path) -> Path:
    """A small model with nano's vocabulary."""
    config = dataclasses.replace(make_config(), vocab_size=8192)
    save_checkpoint(make_model(config, packed_experts=True), tmp_path / "m", format="hf-mxfp4")
    write_tokenizer_json(load_tokenizer(NANO), tmp_path / "m" / "tokenizer.json")
    return tmp_path / "m"


def read(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def numbers(tensor: gguf.ReaderTensor) -> np.ndarray[Any, Any]:
    return dequantize(tensor.data, tensor.tensor_type)


@pytest.mark.parametrize("kind", ["bf16", "f16", "q8_0"])
def test_tensors_read_back_are_ours(small_folder: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out.gguf"
    write_gguf(small_folder, path, dense=kind)
    model: dict[str, Tensor] = load_model(small_folder, dtype=torch.float32, packed_experts=False).state_dict()
    _, tensors = read(path)
    assert len(tensors) == 3 + 2 * 19
    gate_up = model["layers.1.mlp.experts.gate_up"].numpy()
    assert np.array_equal(numbers(tensors["blk.1.ffn_gate_exps.weight"]), gate_up[:, 0::2])
    assert np.array_equal(numbers(tensors["blk.1.ffn_up_exps.weight"]), gate_up[:, 1::2])
    assert np.array_equal(numbers(tensors["blk.0.ffn_down_exps.weight"]), model["layers.0.mlp.experts.down"].numpy())
    bias = model["layers.0.mlp.experts.gate_up_bias"].numpy()
    assert np.array_equal(numbers(tensors["blk.0.ffn_up_exps.bias"]), bias[:, 1::2])
    for ours, theirs in (
        ("layers.0.mlp.router.weight", "blk.0.ffn_gate_inp.weight"),
        ("layers.1.attn.sinks", "blk.1.attn_sinks.weight"),
        ("layers.1.mlp_norm.weight", "blk.1.post_attention_norm.weight"),
        ("layers.0.attn.out.bias", "blk.0.attn_output.bias"),
        ("norm.weight", "output_norm.weight"),
    ):
        assert tensors[theirs].tensor_type.name == "F32"
        assert np.array_equal(numbers(tensors[theirs]), model[ours].numpy()), theirs
    # H = 4, K = 2, C = 8: rows of q, k and v.
    qkv = model["layers.1.attn.qkv.weight"].numpy()
    # Half a step of the largest of 32 normal numbers, at most 5 / 254; half the distance of float16's denormals.
    bound = {"bf16": 0.0, "f16": 2.0**-25, "q8_0": 0.02}[kind]
    for name, ours in (
        ("blk.1.attn_q.weight", qkv[:32]),
        ("blk.1.attn_k.weight", qkv[32:48]),
        ("blk.1.attn_v.weight", qkv[48:]),
        ("output.weight", model["lm_head.weight"].numpy()),
        ("token_embd.weight", model["embed_tokens.weight"].numpy()),
    ):
        assert tensors[name].tensor_type.name == kind.upper()
        assert np.abs(numbers(tensors[name]) - ours).max() <= bound, name


def test_metadata(small_folder: Path, tmp_path: Path) -> None:
    (small_folder / "chat_template.jinja").write_text("{{ messages }}")
    write_gguf(small_folder, tmp_path / "out.gguf")
    fields, _ = read(tmp_path / "out.gguf")
    wanted = {
        "general.architecture": "gpt-oss",
        "general.name": "m",
        "general.file_type": 38,
        "general.quantization_version": 2,
        "gpt-oss.block_count": 2,
        "gpt-oss.context_length": 512,
        "gpt-oss.embedding_length": 64,
        "gpt-oss.feed_forward_length": 32,
        "gpt-oss.expert_feed_forward_length": 32,
        "gpt-oss.attention.head_count": 4,
        "gpt-oss.attention.head_count_kv": 2,
        "gpt-oss.attention.key_length": 8,
        "gpt-oss.attention.value_length": 8,
        "gpt-oss.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "gpt-oss.attention.sliding_window": 5,
        "gpt-oss.expert_count": 3,
        "gpt-oss.expert_used_count": 2,
        "gpt-oss.vocab_size": 8192,
        "gpt-oss.rope.freq_base": 150000.0,
        "gpt-oss.rope.scaling.type": "yarn",
        "gpt-oss.rope.scaling.factor": 32.0,
        "gpt-oss.rope.scaling.original_context_length": 16,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-4o",
        "tokenizer.ggml.bos_token_id": 8176,
        "tokenizer.ggml.eos_token_id": 8180,
        "tokenizer.ggml.padding_token_id": 8177,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert {name: fields.get(name) for name in wanted} == wanted
    source = json.loads((NANO / "tokenizer.json").read_text())
    tokens = fields["tokenizer.ggml.tokens"]
    assert all(tokens[number] == letters for letters, number in source["model"]["vocab"].items())
    assert fields["tokenizer.ggml.merges"] == [" ".join(merge) for merge in source["model"]["merges"]]
    kinds = fields["tokenizer.ggml.token_type"]
    assert [kinds[number] for number in (0, 8175, 8176, 8191)] == [1, 1, 3, 3]


def test_tensors_are_aligned_and_the_file_ends_with_the_last(small_folder: Path, tmp_path: Path) -> None:
    write_gguf(small_folder, tmp_path / "out.gguf", dense="q8_0")
    _, tensors = read(tmp_path / "out.gguf")
    assert all(tensor.data_offset % 32 == 0 for tensor in tensors.values())
    last = max(tensors.values(), key=lambda tensor: tensor.data_offset)
    size = (tmp_path / "out.gguf").stat().st_size
    assert size == last.data_offset + -(-last.n_bytes // 32) * 32


def test_padding_ids_have_names_of_their_own() -> None:
    table = token_table(Tokenizer.o200k_harmony())
    assert len(table.tokens) == len(set(table.tokens)) == 201_088
    assert table.tokens[200_002] == "<|return|>"
    assert len(table.merges) == 199_998 - 256


def test_memory_stays_small(tmp_path: Path) -> None:
    """nano's tensors take 24 MB; what Python allocates beside torch is the header, and what torch does is one chunk."""
    before = tracemalloc.is_tracing()
    assert not before
    tracemalloc.start()
    try:
        write_gguf(NANO, tmp_path / "nano.gguf")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20
    assert (tmp_path / "nano.gguf").stat().st_size > 24 << 20


def test_what_llama_cpp_would_compute_otherwise_is_refused(
    make_config: MakeConfig, make_model: MakeModel, tmp_path: Path
) -> None:
    config = dataclasses.replace(make_config(), layer_types=("full_attention", "sliding_attention"))
    save_checkpoint(make_model(config, packed_experts=True), tmp_path / "m", format="hf-mxfp4")
    with pytest.raises(InvalidInputError, match="layer_types"):
        write_gguf(tmp_path / "m", tmp_path / "out.gguf")
    with pytest.raises(InvalidInputError, match="swiglu_limit is 5"):
        exporter.check_config(dataclasses.replace(make_config(), swiglu_limit=5.0))


def test_dimensions_without_whole_blocks_are_refused(
    make_config: MakeConfig, make_model: MakeModel, tmp_path: Path
) -> None:
    config = dataclasses.replace(make_config(expert_hidden=48), vocab_size=8192)
    save_checkpoint(make_model(config), tmp_path / "m", format="hf-bf16")
    write_tokenizer_json(load_tokenizer(NANO), tmp_path / "m" / "tokenizer.json")
    with pytest.raises(InvalidInputError, match="48 inputs"):
        write_gguf(tmp_path / "m", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_folder_is_no_target(small_folder: Path, tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "folder"):
        with pytest.raises(InvalidInputError, match=r"ends in \.gguf"):
            write_gguf(small_folder, target)


def test_a_full_disk_leaves_the_old_file(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "out.gguf"
    target.write_bytes(b"old")
    monkeypatch.setattr(exporter, "transfer", full)
    with pytest.raises(StorageError, match="No space left"):
        write_gguf(small_folder, target)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out.gguf"]


def test_without_the_package(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"ossia\[gguf\]"):
        write_gguf(small_folder, tmp_path / "out.gguf")
