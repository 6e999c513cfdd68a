"""A checkpoint folder, opened: which format it is, its config, and its tensors checked against both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ossia.core.errors import InvalidInputError, MissingFileError, UnsupportedModelError
from ossia.model.checkpoint.hf import HF_BF16, HF_BF16_AS_BLOCKS, HF_MXFP4
from ossia.model.checkpoint.layout import Layout, weights_of
from ossia.model.checkpoint.original import ORIGINAL
from ossia.model.checkpoint.reader import TensorFiles, read_json
from ossia.model.checkpoint.stream import check_tensors
from ossia.model.config import ModelConfig

CONFIG_NAME = "config.json"
ORIGINAL_FOLDER = "original"
FORMATS: dict[str, Layout] = {layout.name: layout for layout in (HF_MXFP4, HF_BF16, ORIGINAL)}
"""The formats by the names that users type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model folder whose headers have been read and found in order.

    Attributes:
        folder: the folder that holds the weights.
        raw_config: its config.json as it stands.
    """

    folder: Path
    config: ModelConfig
    raw_config: dict[str, Any]
    layout: Layout
    files: TensorFiles

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Opens a folder of any of the three formats. A folder that has only `original/` below it opens that.

        Raises:
            MissingFileError: the folder, its config.json or a file with weights is absent or half downloaded.
            CorruptFileError: a file is not whole.
            TensorMismatchError: a tensor is missing, unexpected, or of a wrong shape or dtype.
            UnsupportedModelError: a model of another architecture, or quantized in another way.
        """
        folder = weights_folder(folder)
        raw = read_json(folder / CONFIG_NAME)
        config = parse_config(raw, where=folder / CONFIG_NAME)
        files = TensorFiles.open(folder)
        layout = ORIGINAL if is_original(raw) else _hf_layout(raw, files, folder)
        check_tensors(files.infos, weights=weights_of(config), layout=layout, where=folder)
        return cls(folder=folder, config=config, raw_config=raw, layout=layout, files=files)

    def get(self, name: str) -> Tensor:
        return self.files.get(name)

    def release(self) -> None:
        self.files.release()


def weights_folder(folder: Path) -> Path:
    """The folder itself, or its `original/` if that is all that was fetched.

    Raises:
        MissingFileError: there is no such folder, or it has no config.json.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}; give a model folder, 'nano', or a model that was pulled")
    if (folder / CONFIG_NAME).is_file():
        return folder
    if (folder / ORIGINAL_FOLDER / CONFIG_NAME).is_file():
        return folder / ORIGINAL_FOLDER
    raise MissingFileError(f"{folder / CONFIG_NAME} is missing; a model folder needs it beside its weights")


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder, whichever its format.

    Raises:
        MissingFileError: there is no such folder or no config.json in it.
        CorruptFileError: config.json cannot be read.
        UnsupportedModelError: it describes another architecture.
    """
    path = weights_folder(folder) / CONFIG_NAME
    return parse_config(read_json(path), where=path)


def parse_config(raw: dict[str, Any], *, where: Path) -> ModelConfig:
    """A config.json's content, in either family's words; errors name the file."""
    try:
        return ModelConfig.from_original(raw) if is_original(raw) else ModelConfig.from_hf(raw)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{where}: {error}") from error
    except InvalidInputError as error:
        raise UnsupportedModelError(f"{where} describes an impossible model: {error}") from error


def is_original(raw: dict[str, Any]) -> bool:
    """Whether a config.json is OpenAI's own: it names no model type and counts `num_experts`."""
    return "model_type" not in raw and "num_experts" in raw


def _hf_layout(raw: dict[str, Any], files: TensorFiles, folder: Path) -> Layout:
    """By the tensors themselves: fine-tuning tools leave `quantization_config` behind, or forget it."""
    method = (raw.get("quantization_config") or {}).get("quant_method")
    if method not in (None, "mxfp4"):
        raise UnsupportedModelError(
            f"{folder / CONFIG_NAME}: the weights are quantized with '{method}'; allowed are mxfp4 or none (bfloat16)"
        )
    if not any(name.endswith("_proj_blocks") for name in files.infos):
        return HF_BF16
    return HF_MXFP4 if any(name.endswith("_proj_scales") for name in files.infos) else HF_BF16_AS_BLOCKS


def require_format(name: str) -> Layout:
    """The layout of that name.

    Raises:
        InvalidInputError: there is no such format.
    """
    if name not in FORMATS:
        raise InvalidInputError(f"format {name!r} is not known; allowed are {', '.join(FORMATS)}", param="format")
    return FORMATS[name]
