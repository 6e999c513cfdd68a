from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ossia.model.attention import CachedAttention, KVCache
from ossia.model.checkpoint import load_model, save_checkpoint
from ossia.model.checkpoint.mapped import load_mapped
from ossia.model.config import ModelConfig
from ossia.model.transformer import Transformer
from ossia.model.update import update_weights

Save = Callable[[str], Path]


@pytest.mark.parametrize("name", ["hf-mxfp4", "hf-bf16", "original"])
def test_the_same_model_as_loaded(saved: Save, name: str) -> None:
    folder = saved(name)
    mapped, mapped_bytes = load_mapped(folder)
    loaded = load_model(folder, packed_experts=name != "hf-bf16")
    ours, theirs = mapped.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert all(
        ours[key].dtype == theirs[key].dtype and ours[key].is_contiguous() for key in theirs if "gate" not in key
    )
    assert 0 < mapped_bytes <= sum(tensor.nbytes for tensor in theirs.values())
    ids, positions = torch.tensor([3, 1, 4]), torch.arange(3)
    outputs = [
        model(ids, positions=positions, attention=CachedAttention(KVCache(model.config), num_tokens=3))
        for model in (mapped, loaded)
    ]
    assert torch.equal(*outputs)


def test_only_fused_projections_are_copied(saved: Save) -> None:
    for name, is_whole in (("hf-mxfp4", False), ("original", True)):
        model, mapped_bytes = load_mapped(saved(name))
        tensors = model.state_dict()
        copied = sum(tensor.nbytes for key, tensor in tensors.items() if ".qkv." in key)
        assert mapped_bytes == sum(tensor.nbytes for tensor in tensors.values()) - (0 if is_whole else copied)


def test_a_write_stays_in_this_process(saved: Save) -> None:
    folder = saved("hf-mxfp4")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model, _ = load_mapped(folder)
    weights = load_model(saved("hf-bf16"), dtype=torch.float32, packed_experts=False).state_dict()
    update_weights(model, weights)
    with torch.no_grad():
        assert torch.equal(model.lm_head.weight, weights["lm_head.weight"].bfloat16())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_replaced_file_leaves_the_model_alone(saved: Save) -> None:
    folder = saved("hf-mxfp4")
    model, _ = load_mapped(folder)
    wanted = model.lm_head.weight.detach().clone()
    for path in folder.glob("*.safetensors"):
        other = path.with_suffix(".new")
        other.write_bytes(bytes(path.stat().st_size))
        other.replace(path)
    assert torch.equal(model.lm_head.weight, wanted)


def test_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    """A file of 200 MB adds little to the memory of a process that maps it."""
    code = """
import resource, sys, torch
from pathlib import Path
from ossia.model.checkpoint.mapped import load_mapped
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model, mapped = load_mapped(Path(sys.argv[1]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(mapped, (after - before) << 10)
"""
    folder = _large_model(tmp_path)
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    mapped, grown = map(int, result.stdout.split())
    assert mapped > 150 << 20
    assert grown < 40 << 20


def _large_model(folder: Path) -> Path:
    config = ModelConfig(
        vocab_size=200_000,
        hidden_size=256,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=4,
    )
    model = Transformer(config, packed_experts=True)
    for tensor in model.state_dict().values():
        tensor.zero_()
    save_checkpoint(model, folder / "m", format="hf-mxfp4")
    return folder / "m"
