"""Writes safetensors files a tensor at a time.

All names, shapes and dtypes are known before the first byte, so the headers come first and every chunk of rows goes
straight to its place: no shard is ever held in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ossia.model.checkpoint.layout import Part
from ossia.model.checkpoint.reader import DTYPE_NAMES, INDEX_NAME, SINGLE_NAME

MAX_SHARD_BYTES = 5_000_000_000
"""Tensor bytes a file, as the hub's own files have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file to be written: `offsets` are from the file's beginning, in the order of the tensors."""

    name: str
    header: bytes
    offsets: dict[str, int]
    num_bytes: int


def plan_shards(
    parts: Iterable[Part], *, dtype: torch.dtype, max_shard_bytes: int = MAX_SHARD_BYTES, pattern: str
) -> list[Shard]:
    """Distributes tensors over files, in order; one that is larger than the limit has a file to itself.

    Args:
        parts: the tensors; those without a dtype are floats.
        dtype: of floats.
        max_shard_bytes: most bytes of tensors in a file.
        pattern: names of the files if there are several, with "{i}" and "{n}": the number of one, and how many.
    """
    groups: list[list[Part]] = []
    room = 0
    for part in parts:
        size = part.num_bytes(dtype)
        if not groups or size > room:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(part)
        room -= size
    if len(groups) == 1:
        return [_lay_out(SINGLE_NAME, groups[0], dtype)]
    return [_lay_out(pattern.format(i=i, n=len(groups)), group, dtype) for i, group in enumerate(groups, start=1)]


def index_json(shards: Sequence[Shard]) -> dict[str, object]:
    """The content of model.safetensors.index.json."""
    total = sum(shard.num_bytes - len(shard.header) for shard in shards)
    return {
        "metadata": {"total_size": total},
        "weight_map": {name: shard.name for shard in shards for name in sorted(shard.offsets)},
    }


class ShardWriter:
    """The sink of a transfer into files below `folder`; a context manager, so that the files are closed.

    Attributes:
        dtype: of floats.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], *, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        with ExitStack() as files:
            for shard in shards:
                file = files.enter_context((folder / shard.name).open("wb"))
                file.write(shard.header)
                self._places |= {name: (file, offset) for name, offset in shard.offsets.items()}
            if len(shards) > 1:
                (folder / INDEX_NAME).write_text(json.dumps(index_json(shards), indent=2) + "\n", encoding="utf-8")
            self._files = files.pop_all()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def put(self, name: str, start: int, rows: Tensor) -> None:
        """Write rows at their place; they may be on any device and need not be contiguous."""
        file, offset = self._places[name]
        if not rows.numel():
            return
        flat = rows.detach().cpu().contiguous()
        file.seek(offset + start * flat.nbytes // flat.shape[0])
        file.write(flat.view(-1).view(torch.uint8).numpy().data)


def _lay_out(name: str, parts: Sequence[Part], float_dtype: torch.dtype) -> Shard:
    typed = [(part, part.dtype or float_dtype) for part in parts]
    # Wider dtypes first, as safetensors does it, so that every tensor is aligned to its elements.
    typed.sort(key=lambda pair: -pair[1].itemsize)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for part, dtype in typed:
        starts[part.name], end = end, end + part.num_bytes(dtype)
        offsets = [starts[part.name], end]
        entries[part.name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(part.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    absolute = {name: len(header) + start for name, start in starts.items()}
    return Shard(name=name, header=header, offsets=absolute, num_bytes=len(header) + end)
