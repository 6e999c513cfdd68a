from __future__ import annotations

import json
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ossia.model.checkpoint.layout import Part
from ossia.model.checkpoint.reader import read_header
from ossia.model.checkpoint.writer import ShardWriter, index_json, plan_shards

PATTERN = "part-{i}-of-{n}.safetensors"
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
dtypes = st.sampled_from([None, torch.uint8, torch.float32])


@given(parts=st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=8), limit=st.integers(1, 400))
def test_any_plan_holds_each_tensor_once(parts: list[tuple[tuple[int, ...], torch.dtype | None]], limit: int) -> None:
    named = [Part(f"t{i}", shape, dtype) for i, (shape, dtype) in enumerate(parts)]
    shards = plan_shards(named, dtype=torch.bfloat16, max_shard_bytes=limit, pattern=PATTERN)
    assert sorted(name for shard in shards for name in shard.offsets) == sorted(part.name for part in named)
    sizes = {part.name: part.num_bytes(torch.bfloat16) for part in named}
    for shard in shards:
        held = sum(sizes[name] for name in shard.offsets)
        assert shard.num_bytes == len(shard.header) + held
        assert held <= limit or len(shard.offsets) == 1
    if len(shards) == 1:
        assert shards[0].name == "model.safetensors"
    else:
        assert all(shard.name == PATTERN.format(i=i, n=len(shards)) for i, shard in enumerate(shards, start=1))
    assert index_json(shards)["metadata"] == {"total_size": sum(sizes.values())}


def test_rows_may_come_in_any_order_and_stride(tmp_path: Path) -> None:
    """An odd number of bytes lies before wider numbers if nothing sorts them: safetensors wants them aligned."""
    bytes_, floats = torch.arange(7, dtype=torch.uint8), torch.randn(3, 4).bfloat16()
    parts = [Part("bytes", (7,), torch.uint8), Part("floats", (4, 3), None)]
    shards = plan_shards(parts, dtype=torch.bfloat16, pattern=PATTERN)
    with ShardWriter(tmp_path, shards, dtype=torch.bfloat16) as writer:
        writer.put("floats", 2, floats.T[2:])
        writer.put("bytes", 0, bytes_)
        writer.put("floats", 0, floats.T[:2])
        writer.put("floats", 4, floats.T[4:])
    file = load_file(tmp_path / "model.safetensors")
    assert torch.equal(file["bytes"], bytes_)
    assert torch.equal(file["floats"], floats.T)
    infos = read_header(tmp_path / "model.safetensors")
    assert all(info.start % info.dtype.itemsize == 0 for info in infos.values())


def test_the_index_names_each_tensors_file(tmp_path: Path) -> None:
    parts = [Part("a", (4,), None), Part("b", (4,), None)]
    shards = plan_shards(parts, dtype=torch.float32, max_shard_bytes=16, pattern=PATTERN)
    with ShardWriter(tmp_path, shards, dtype=torch.float32):
        pass
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": "part-1-of-2.safetensors", "b": "part-2-of-2.safetensors"}
