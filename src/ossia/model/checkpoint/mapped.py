"""Loads a model whose weights stay in their files: what lies there as memory would have it is mapped, not copied.

Pages come in when they are first touched, are shared by all processes that map the file, and can be dropped by the
system, which reads them again. The mapping is private: writing to a weight copies its page for this process and leaves
the file alone. While a model is mapped, its files must not be truncated; replacing them by renaming, as all that writes
models here does, is safe.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ossia.model.checkpoint import memory
from ossia.model.checkpoint.layout import SPLIT, Layout, Weight, weights_of
from ossia.model.checkpoint.source import Checkpoint
from ossia.model.checkpoint.stream import Progress, transfer
from ossia.model.transformer import Transformer


class MappedModel(NamedTuple):
    """A model, and how many bytes of it are pages of files."""

    model: Transformer
    mapped_bytes: int


def load_mapped(folder: Path | str, *, progress: Progress | None = None) -> MappedModel:
    """Load a model for a CPU: bfloat16, experts packed if the file has them so.

    Mapped is every tensor that the file holds in the same layout: all but the q, k and v of Hugging Face's formats,
    which are one matrix in memory.

    Args:
        folder: of any of the three formats.
        progress: called after each weight that is copied.

    Raises:
        CheckpointError: as `load_model`.
    """
    checkpoint = Checkpoint.open(Path(folder))
    config, layout = checkpoint.config, checkpoint.layout
    sink = memory.PACKED_EXPERTS if layout.is_packed else memory.DENSE
    model = Transformer(config, dtype=torch.bfloat16, device="meta", packed_experts=layout.is_packed)
    tensors: dict[str, Tensor] = {}
    copied: list[Weight] = []
    mapped_bytes = 0
    for weight in weights_of(config):
        if can_map(weight, checkpoint=checkpoint, sink=sink):
            for part, source in zip(sink.parts(weight), layout.parts(weight), strict=True):
                tensors[part.name] = checkpoint.get(source.name)
                mapped_bytes += tensors[part.name].nbytes
            continue
        for part in sink.parts(weight):
            tensors[part.name] = torch.empty(part.shape, dtype=part.dtype or torch.bfloat16)
        sources = [checkpoint.get(part.name) for part in layout.parts(weight)]
        if layout.codec(weight) is SPLIT and all(source.dtype == torch.bfloat16 for source in sources):
            torch.cat(sources, out=tensors[weight.name])  # the general way would copy twice
            checkpoint.release()
        else:
            copied.append(weight)
    transfer(
        copied,
        source=checkpoint,
        source_layout=layout,
        sink=_Into(tensors),
        sink_layout=sink,
        progress=progress,
    )
    model.load_state_dict(tensors, assign=True)
    checkpoint.files.close()
    return MappedModel(model.eval(), mapped_bytes)


def can_map(weight: Weight, *, checkpoint: Checkpoint, sink: Layout) -> bool:
    """Whether a weight can be used where it lies: the same layout and dtype, and aligned to its elements."""
    codec = sink.codec(weight)
    if checkpoint.layout.codec(weight) is not codec:
        return False
    infos = [checkpoint.files.infos[part.name] for part in checkpoint.layout.parts(weight)]
    dtypes = [part.dtype or torch.bfloat16 for part in sink.parts(weight)]
    return all(
        info.dtype == dtype and info.start % dtype.itemsize == 0 and info.num_bytes
        for info, dtype in zip(infos, dtypes, strict=True)
    )


class _Into:
    """Tensors by name as the sink of a transfer."""

    dtype = torch.bfloat16

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def put(self, name: str, start: int, rows: Tensor) -> None:
        self._tensors[name][start : start + rows.shape[0]].copy_(rows)
