"""Builds a `Transformer` from a folder, and the other questions one asks of models on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ossia.model.checkpoint import memory
from ossia.model.checkpoint.layout import weights_of
from ossia.model.checkpoint.pull import pull
from ossia.model.checkpoint.resolve import resolve_model
from ossia.model.checkpoint.source import Checkpoint, read_config
from ossia.model.checkpoint.stream import Progress, transfer
from ossia.model.config import ModelConfig
from ossia.model.transformer import Transformer

__all__ = ["UNPACK_BELOW", "decide_packed", "load_model", "pull", "read_config", "resolve_model"]

UNPACK_BELOW = 1 << 30
"""Bytes of a whole model unpacked, below which a CPU does better with dense experts."""


def load_model(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    packed_experts: bool | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """Load a model of any of the three formats.

    Beside the model itself, a few chunks of `stream.CHUNK_BYTES` are in memory at most.

    Args:
        folder: the model folder.
        device: where the weights go.
        dtype: of all weights but packed experts.
        packed_experts: whether experts are MXFP4 in memory; None decides by `decide_packed`. True packs a bfloat16
            checkpoint, which rounds it.
        progress: called after each weight.

    Raises:
        MissingFileError, CorruptFileError, TensorMismatchError, UnsupportedModelError: as `Checkpoint.open`.
        InvalidInputError: packed experts were asked for, and a dimension is not a multiple of 32.
    """
    checkpoint = Checkpoint.open(Path(folder))
    config, device = checkpoint.config, torch.device(device)
    if packed_experts is None:
        packed_experts = decide_packed(config, is_packed=checkpoint.layout.is_packed, dtype=dtype, device=device)
    model = Transformer(config, dtype=dtype, device=device, packed_experts=packed_experts)
    transfer(
        weights_of(config),
        source=checkpoint,
        source_layout=checkpoint.layout,
        sink=TensorsInto(model, dtype=dtype),
        sink_layout=memory.PACKED_EXPERTS if packed_experts else memory.DENSE,
        progress=progress,
    )
    checkpoint.files.close()
    return model.eval()


def decide_packed(config: ModelConfig, *, is_packed: bool, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether to keep experts packed: if the file has them so, unless it is a small model on a CPU.

    Unpacking an expert at every use costs a CPU more than it saves; a GPU has kernels for packed experts, and a large
    model has no room.
    """
    if not is_packed:
        return False
    num_bytes = sum(weight.num_elements for weight in weights_of(config)) * dtype.itemsize
    return device.type != "cpu" or num_bytes >= UNPACK_BELOW


class TensorsInto:
    """A model in memory as the sink of a transfer."""

    def __init__(self, model: nn.Module, *, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._tensors: Mapping[str, Tensor] = model.state_dict()

    def put(self, name: str, start: int, rows: Tensor) -> None:
        self._tensors[name][start : start + rows.shape[0]].copy_(rows)
