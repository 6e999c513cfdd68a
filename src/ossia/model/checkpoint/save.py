"""Writes a model folder: `save_checkpoint`, from a model or from another checkpoint."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossia.model.checkpoint import hf, memory
from ossia.model.checkpoint.layout import Layout, weights_of
from ossia.model.checkpoint.original import dtypes_json
from ossia.model.checkpoint.reader import INDEX_NAME, read_json
from ossia.model.checkpoint.source import CONFIG_NAME, Checkpoint, require_format
from ossia.model.checkpoint.staging import staged
from ossia.model.checkpoint.stream import Progress, Source, transfer
from ossia.model.checkpoint.writer import MAX_SHARD_BYTES, ShardWriter, plan_shards
from ossia.model.config import ModelConfig
from ossia.model.transformer import Transformer

GENERATION_NAME = "generation_config.json"
DTYPES_NAME = "dtypes.json"

_SHARD_PATTERNS = {"original": "model--{i:05d}-of-{n:05d}.safetensors"}
_HF_PATTERN = "model-{i:05d}-of-{n:05d}.safetensors"
_SMALL_FILES_BYTES = 1 << 20  # config and index, for the estimate of needed space


class TensorsOf:
    """A model in memory as the source of a transfer."""

    def __init__(self, model: Transformer) -> None:
        self._tensors = model.state_dict()

    def get(self, name: str) -> Tensor:
        return self._tensors[name]

    def release(self) -> None:
        """Nothing to give back: the model owns its tensors."""


class Origin(NamedTuple):
    """What `save_checkpoint` writes from."""

    config: ModelConfig
    source: Source
    layout: Layout
    raw_config: dict[str, Any]
    generation_config: dict[str, Any] | None


def save_checkpoint(
    model: Transformer | Checkpoint,
    folder: Path | str,
    *,
    format: str,  # noqa: A002 - the word that users type
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write weights and config as one of the formats; floats become bfloat16, experts MXFP4 or bfloat16.

    All is written aside and renamed at the end: a failure leaves the folder as it was. Other files in the folder stay;
    old weights go. MXFP4 that stays MXFP4 keeps its very bytes.

    Args:
        model: a model in memory, or an opened checkpoint.
        folder: where to; made if need be.
        format: "hf-mxfp4", "hf-bf16" or "original".
        max_shard_bytes: most bytes of tensors in a file.
        progress: called after each weight.

    Raises:
        InvalidInputError: the format is not known, or cannot hold this model.
        StorageError: it could not be written.
    """
    layout, folder, origin = require_format(format), Path(folder), _origin(model)
    weights = list(weights_of(origin.config))
    shards = plan_shards(
        (part for weight in weights for part in layout.parts(weight)),
        dtype=torch.bfloat16,
        max_shard_bytes=max_shard_bytes,
        pattern=_SHARD_PATTERNS.get(format, _HF_PATTERN),
    )
    documents = _documents(origin, layout)
    num_bytes = sum(shard.num_bytes for shard in shards) + _SMALL_FILES_BYTES
    with staged(folder, num_bytes=num_bytes, is_stale=_is_stale) as new:
        with ShardWriter(new, shards, dtype=torch.bfloat16) as writer:
            transfer(
                weights,
                source=origin.source,
                source_layout=origin.layout,
                sink=writer,
                sink_layout=layout,
                progress=progress,
            )
        for name, content in documents.items():
            (new / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _origin(model: Transformer | Checkpoint) -> Origin:
    if isinstance(model, Checkpoint):
        path = model.folder / GENERATION_NAME
        generation = read_json(path) if path.is_file() else None
        return Origin(model.config, model, model.layout, model.raw_config, generation)
    is_packed = any(name.endswith("_blocks") for name, _ in model.named_buffers())
    layout = memory.PACKED_EXPERTS if is_packed else memory.DENSE
    return Origin(model.config, TensorsOf(model), layout, {}, None)


def _documents(origin: Origin, layout: Layout) -> dict[str, Any]:
    """The JSON files beside the weights. Keys of the old config.json that we do not know are kept within a family."""
    config = origin.config
    if layout.name == "original":
        own = {name: value for name, value in origin.raw_config.items() if name == "ossia"}
        return {CONFIG_NAME: own | config.to_original(), DTYPES_NAME: dtypes_json(weights_of(config))}
    raw = dict(origin.raw_config)
    for name in ("quantization_config", "torch_dtype", "rope_parameters"):  # replaced below, under newer names
        raw.pop(name, None)
    if "model_type" not in raw:
        raw = {name: value for name, value in raw.items() if name == "ossia"}
    return {
        CONFIG_NAME: raw | hf.config_json(config, is_packed=layout.is_packed),
        GENERATION_NAME: origin.generation_config or hf.generation_config_json(config),
    }


def _is_stale(name: str) -> bool:
    """Weights and their index: a folder must not keep those of the model that is replaced."""
    return name in (INDEX_NAME, DTYPES_NAME) or fnmatch(name, "*.safetensors")
