"""What a model is made of: parameters and bytes by kind, and the formats that a folder holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ossia.core.errors import ModelNotFoundError
from ossia.model.checkpoint.layout import Kind, Layout, can_pack, weights_of
from ossia.model.checkpoint.resolve import resolve_model
from ossia.model.checkpoint.source import CONFIG_NAME, FORMATS, ORIGINAL_FOLDER, Checkpoint, read_config, weights_folder
from ossia.model.config import PUBLISHED, ModelConfig, num_parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundFormat:
    """One checkpoint of a folder.

    Attributes:
        name: the format.
        folder: the model folder or its `original/`.
        num_bytes: of all tensors.
        float_dtypes: those of all that is not MXFP4.
    """

    name: str
    folder: Path
    num_bytes: int
    float_dtypes: tuple[torch.dtype, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What can be said of a model without loading it.

    Attributes:
        name: as it was asked for.
        folder: None for a published model that is not on this machine.
        num_parameters: all of them; num_active_parameters: those that a token is multiplied with.
        parameters: by kind.
        num_bytes: by format, then by kind, as written here: bfloat16, and MXFP4 experts where the format has them.
            A format that cannot hold the model is left out.
        found: the checkpoints in the folder.
    """

    name: str
    config: ModelConfig
    folder: Path | None
    num_parameters: int
    num_active_parameters: int
    parameters: Mapping[Kind, int]
    num_bytes: Mapping[str, Mapping[Kind, int]]
    found: tuple[FoundFormat, ...]


def describe(name_or_path: str | Path) -> ModelInfo:
    """Describe a model on this machine, or one of the two published ones wherever they are.

    Raises:
        ModelNotFoundError: the name leads to nothing.
        CheckpointError: the folder does not hold a whole model.
    """
    try:
        folder = resolve_model(name_or_path)
    except ModelNotFoundError:
        if str(name_or_path) not in PUBLISHED:
            raise
        folder = None
    config = PUBLISHED[str(name_or_path)] if folder is None else read_config(folder)
    parameters: Counter[Kind] = Counter()
    for weight in weights_of(config):
        parameters[weight.kind] += weight.num_elements
    return ModelInfo(
        name=str(name_or_path),
        config=config,
        folder=folder,
        num_parameters=num_parameters(config),
        num_active_parameters=num_parameters(config, active=True),
        parameters=parameters,
        num_bytes={
            name: bytes_by_kind(config, layout)
            for name, layout in FORMATS.items()
            if not layout.is_packed or can_pack(config)
        },
        found=() if folder is None else find_formats(folder),
    )


def bytes_by_kind(config: ModelConfig, layout: Layout) -> Mapping[Kind, int]:
    """How many bytes a model's tensors take in a format, floats being bfloat16.

    Raises:
        InvalidInputError: the format cannot hold the model.
    """
    num_bytes: Counter[Kind] = Counter()
    for weight in weights_of(config):
        num_bytes[weight.kind] += sum(part.num_bytes(torch.bfloat16) for part in layout.parts(weight))
    return num_bytes


def find_formats(folder: Path) -> tuple[FoundFormat, ...]:
    """The checkpoints in a model folder: its own, and that of its `original/`.

    Raises:
        CheckpointError: one of them is not whole.
    """
    first = weights_folder(folder)
    second = folder / ORIGINAL_FOLDER
    folders = [first, second] if first != second and (second / CONFIG_NAME).is_file() else [first]
    return tuple(_found(Checkpoint.open(path)) for path in folders)


def _found(checkpoint: Checkpoint) -> FoundFormat:
    infos = checkpoint.files.infos.values()
    dtypes = sorted({info.dtype for info in infos} - {torch.uint8}, key=str)
    return FoundFormat(
        name=checkpoint.layout.name,
        folder=checkpoint.folder,
        num_bytes=sum(info.num_bytes for info in infos),
        float_dtypes=tuple(dtypes),
    )
