"""What a pre-training run is told: one frozen dataclass a component, read from a TOML recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ossia.core.config import build_config
from ossia.core.errors import InvalidInputError
from ossia.model.config import ModelConfig
from ossia.training.recipe import read_recipe, require_sections
from ossia.training.trainer_config import (
    TRAINER_SECTIONS,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    TrainerConfig,
    build_trainer_config,
    require_positive,
)

__all__ = [
    "DataConfig",
    "Identity",
    "LossConfig",
    "OptimizerConfig",
    "RunConfig",
    "TrainConfig",
    "TrainerConfig",
    "load_recipe",
]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What batches are made of.

    Attributes:
        sequence_length: tokens in a row; several examples are packed into one and cannot see each other.
        rows: rows in a batch, so that a step sees `rows * sequence_length` tokens.
        num_workers: processes that make batches while the model trains; 0 makes them in the training process. The
            batches are the same.
        seed: batch k follows from it and from k.
        corpora: natural text by name: a folder of `ossia data build`, or a JSONL file (`.xz` allowed), of which a row's
            text is its `text`, or its `question` and `answer`.
        mix: how often each source is drawn, by task name or corpus name.
        declined: corpora whose questions nano learns to decline; a first line that ends in a question mark is one.
        max_turns: conversations have up to so many questions.
    """

    sequence_length: int = 1024
    rows: int = 128
    num_workers: int = 0
    seed: int = 0
    corpora: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    mix: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    declined: tuple[str, ...] = ()
    max_turns: int = 3

    def __post_init__(self) -> None:
        require_positive(self, "sequence_length", "rows", "max_turns")
        if self.num_workers < 0:
            raise InvalidInputError(f"num_workers must be 0 or more, got {self.num_workers}", param="data.num_workers")
        if not self.mix or min(self.mix.values()) < 0 or not sum(self.mix.values()) > 0:
            raise InvalidInputError("data.mix must give at least one source a positive weight", param="data.mix")
        if unknown := set(self.declined) - set(self.corpora):
            raise InvalidInputError(
                f"data.declined names {', '.join(sorted(unknown))}; allowed: names of data.corpora "
                f"({', '.join(sorted(self.corpora)) or 'there are none'})",
                param="data.declined",
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What the trained model's system message says by default."""

    model_identity: str
    knowledge_cutoff: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A whole run of pre-training.

    Attributes:
        name: of the run and of the model that comes of it.
        model: the shape; with `init`, that model's.
        identity: what the model says it is.
        data: what batches are made of.
        init: the model to begin with, "nano", a hub id that was pulled, or a folder; its tokenizer is kept. None begins
            with random weights, and with a vocabulary chosen for the mix.
        trainer: how weights are updated.
    """

    name: str
    model: ModelConfig
    identity: Identity
    data: DataConfig
    init: str | None = None
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)


def load_recipe(name_or_path: str, *, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a recipe of pre-training: a path to a TOML file, or the name of one in `recipes/` of the current folder.

    Args:
        name_or_path: where the recipe is.
        overrides: values by dotted key ("run.steps"), which replace those of the file.

    Raises:
        InvalidInputError: there is no such recipe, it is not TOML, or a key is unknown or of a wrong type.
        ModelNotFoundError, CheckpointError: `init` names no model that can be read.
    """
    raw = read_recipe(name_or_path, overrides=overrides)
    require_sections(raw, ("name", "init", "model", "identity", "data", *TRAINER_SECTIONS))
    init = raw.get("init")
    if init is not None and not isinstance(init, str):
        raise InvalidInputError(f"init must name a model, got {init!r}", param="init")
    start = _read_start(init, raw) if init is not None else None
    model = start[0] if start is not None else ModelConfig.from_hf({"model_type": "gpt_oss", **raw.get("model", {})})
    return TrainConfig(
        name=str(raw.get("name", Path(name_or_path).stem)),
        model=model,
        identity=start[1]
        if start is not None and "identity" not in raw
        else build_config(Identity, raw.get("identity", {}), section="identity"),
        data=build_config(DataConfig, raw.get("data", {}), section="data"),
        init=init,
        trainer=build_trainer_config(raw),
    )


def _read_start(init: str, raw: Mapping[str, Any]) -> tuple[ModelConfig, Identity]:
    """Shape and identity of the model that a run begins with."""
    if "model" in raw:
        raise InvalidInputError(
            f"the recipe has init = {init!r} and a [model] section; a model that one begins with has its own shape, so "
            "remove one of them",
            param="model",
        )
    from ossia.model.checkpoint.load import read_config, resolve_model
    from ossia.model.loading import read_identity, read_json_if_any

    folder = resolve_model(init)
    own = read_identity(read_json_if_any(folder / "config.json"))
    return read_config(folder), Identity(model_identity=own.model_identity, knowledge_cutoff=own.knowledge_cutoff)
