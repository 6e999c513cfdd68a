"""What the commands that talk to a model need of its folder: weights, tokenizer, identity and sampling defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ossia.core.errors import CorruptFileError, InvalidInputError, MissingFileError
from ossia.core.paths import models_home

if TYPE_CHECKING:
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.model.config import ModelConfig
    from ossia.model.transformer import Transformer

UNPACK_BELOW = 1 << 30
"""Bytes: a model that is this small unpacked is unpacked, since plain matrices are faster to multiply with."""
SMALL_MODEL_THREADS = 4
"""The matrices of a small model are over before more threads have met."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a model's system message says of itself."""

    model_identity: str
    knowledge_cutoff: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingDefaults:
    """What generation_config.json recommends; without one, sampling from the model's own distribution."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that is ready to be talked to."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    identity: Identity
    sampling: SamplingDefaults

    @property
    def context_length(self) -> int:
        """How many tokens, prompt and answer together, the model can see."""
        return self.model.config.max_position_embeddings


def load(name_or_path: str, *, device: str = "auto") -> LoadedModel:
    """Load a model and all that belongs to it. Imports torch.

    Args:
        name_or_path: "nano", a hub id that was pulled, or a model folder.
        device: "cpu", "cuda", "cuda:1", or "auto": the GPU if there is one.

    Raises:
        ModelNotFoundError: the name leads to nothing on this machine.
        CheckpointError: the folder cannot be read.
        InvalidInputError: torch knows no such device, or cannot reach it.
    """
    import torch

    from ossia.harmony.hf_tokenizer import load_tokenizer
    from ossia.model.checkpoint.load import load_model, resolve_model

    folder = resolve_model(name_or_path)
    config = read_config(folder)
    place = choose_device(device)
    # bfloat16 products are slow on many processors, but only a small model can afford the bytes of float32.
    dtype = torch.float32 if place.type == "cpu" and is_small(config) else torch.bfloat16
    if place.type == "cpu" and is_small(config) and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), SMALL_MODEL_THREADS))
    raw = read_json_if_any(folder / "config.json")
    return LoadedModel(
        name=name_or_path,
        model=load_model(folder, device=place, dtype=dtype, packed_experts=False if is_small(config) else None),
        tokenizer=load_tokenizer(folder),
        identity=read_identity(raw),
        sampling=read_sampling(read_json_if_any(folder / "generation_config.json")),
    )


class FoundConfig(NamedTuple):
    """A model's config, and the folder that holds the model (None for a published one that is not on this machine)."""

    config: ModelConfig
    folder: Path | None


def find_config(name_or_path: str) -> FoundConfig:
    """Find a model's config; those of the published models are built in, so they need no folder.

    Raises:
        ModelNotFoundError: the name leads to nothing on this machine.
        CheckpointError: the config cannot be read.
    """
    from ossia.model.config import PUBLISHED

    if name_or_path in PUBLISHED and not Path(name_or_path).exists():
        folder = models_home() / name_or_path
        return FoundConfig(PUBLISHED[name_or_path], folder if folder.is_dir() else None)
    from ossia.model.checkpoint.load import resolve_model

    folder = resolve_model(name_or_path)
    return FoundConfig(read_config(folder), folder)


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder, in the words of Hugging Face or of OpenAI's original layout.

    Raises:
        MissingFileError: there is no config.json.
        CheckpointError: it cannot be read, or describes another architecture.
    """
    from ossia.model.config import ModelConfig

    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; a model folder needs it")
    raw = read_json_if_any(path)
    # OpenAI's own file names no model type and counts "num_experts"; Hugging Face's has "num_local_experts".
    is_original = "model_type" not in raw and "num_experts" in raw
    return ModelConfig.from_original(raw) if is_original else ModelConfig.from_hf(raw)


def is_small(config: ModelConfig) -> bool:
    """Whether the model takes little memory even in float32 with its experts unpacked."""
    from ossia.model.config import num_parameters

    return 4 * num_parameters(config) <= UNPACK_BELOW


def choose_device(name: str) -> Any:
    """The torch device of that name; "auto" is the first GPU, or the CPU.

    Raises:
        InvalidInputError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"device {name!r} is not known; use cpu, cuda, cuda:1 or auto", param="device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInputError(
            f"device {name!r} is not here: torch sees {torch.cuda.device_count()} GPUs; use --device cpu",
            param="device",
        )
    return device


def read_identity(config: Mapping[str, Any]) -> Identity:
    """The identity that a model's config.json gives under `ossia`, else that of the published models."""
    from ossia.harmony.content import DEFAULT_IDENTITY, DEFAULT_KNOWLEDGE_CUTOFF

    own = config.get("ossia")
    if not isinstance(own, Mapping) or "model_identity" not in own:
        return Identity(model_identity=DEFAULT_IDENTITY, knowledge_cutoff=DEFAULT_KNOWLEDGE_CUTOFF)
    cutoff = own.get("knowledge_cutoff")
    return Identity(model_identity=str(own["model_identity"]), knowledge_cutoff=None if cutoff is None else str(cutoff))


def read_sampling(config: Mapping[str, Any]) -> SamplingDefaults:
    """What a generation_config.json says, in Transformers' words: `do_sample: false` is greedy."""
    if config.get("do_sample") is False:
        return SamplingDefaults(temperature=0.0)
    return SamplingDefaults(
        temperature=float(config.get("temperature") or 1.0), top_p=float(config.get("top_p") or 1.0)
    )


def read_json_if_any(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one if there is no file.

    Raises:
        CorruptFileError: the file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise CorruptFileError(f"{path} cannot be read as JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} should hold a JSON object; fetch the model again")
    return value
