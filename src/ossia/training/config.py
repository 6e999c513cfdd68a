"""What a training run is told: one frozen dataclass a component, read from a TOML recipe."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ossia.core.config import build_config
from ossia.core.errors import InvalidInputError
from ossia.model.config import ModelConfig


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float) or not value > 0:
            raise InvalidInputError(f"{name} must be a positive number, got {value!r}", param=name)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What batches are made of.

    Attributes:
        sequence_length: tokens in a row; several examples are packed into one and cannot see each other.
        rows: rows in a batch, so that a step sees `rows * sequence_length` tokens.
        num_workers: processes that make examples while the model trains; 0 makes them in the training process.
        seed: everything drawn follows from it and from the step.
        corpora: JSONL files (`.xz` allowed) of natural text, by name; a row's text is its `text`, or its `question`
            and `answer`.
        mix: how often each source is drawn, by task name, corpus name, or "out_of_scope" for the questions of corpora.
        max_turns: conversations have up to so many questions.
    """

    sequence_length: int = 1024
    rows: int = 128
    num_workers: int = 0
    seed: int = 0
    corpora: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    mix: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    max_turns: int = 3

    def __post_init__(self) -> None:
        _require_positive(self, "sequence_length", "rows", "max_turns")
        if not self.mix or min(self.mix.values()) < 0 or not sum(self.mix.values()) > 0:
            raise InvalidInputError("data.mix must give at least one source a positive weight", param="data.mix")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Muon on matrices, AdamW on the rest, under one schedule: linear warm-up, constant, linear to zero.

    Attributes:
        muon_lr, adamw_lr: peak learning rates.
        warmup: share of the run spent warming up.
        decay: share of the run, at its end, over which the rates fall to zero.
        weight_decay: decoupled, on matrices only.
        max_grad_norm: gradients are scaled down to this norm.
    """

    muon_lr: float = 0.01
    adamw_lr: float = 3e-3
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup: float = 0.02
    decay: float = 0.4
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "muon_lr", "adamw_lr", "max_grad_norm")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights of the terms beside cross-entropy.

    Attributes:
        balance: load-balancing loss of the router (Switch Transformer, arXiv 2101.03961, equation 4).
        router_z: square of the router's log-sum-exp (ST-MoE, arXiv 2202.08906, equation 5).
    """

    balance: float = 0.01
    router_z: float = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long a run goes on and what it writes.

    Attributes:
        steps: optimizer steps of the whole run.
        max_minutes: the schedule ends by then at the latest, over all resumed parts together; None for no limit.
        log_every, checkpoint_every: in steps.
        compile: whether to use torch.compile; None means on a GPU only.
    """

    steps: int = 1000
    max_minutes: float | None = None
    log_every: int = 20
    checkpoint_every: int = 500
    compile: bool | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "steps", "log_every", "checkpoint_every")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What the trained model's system message says by default, and how its vocabulary is sized."""

    model_identity: str
    knowledge_cutoff: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A whole run."""

    name: str
    model: ModelConfig
    identity: Identity
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    run: RunConfig = RunConfig()


def load_recipe(name_or_path: str, *, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a recipe: a path to a TOML file, or the name of one in `recipes/` of the current folder.

    Args:
        name_or_path: where the recipe is.
        overrides: values by dotted key ("run.steps"), which replace those of the file.

    Raises:
        InvalidInputError: there is no such recipe, it is not TOML, or a key is unknown or of a wrong type.
    """
    raw = _read_toml(name_or_path)
    for dotted, value in (overrides or {}).items():
        section, _, key = dotted.rpartition(".")
        target = raw
        for part in section.split(".") if section else ():
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise InvalidInputError(f"cannot set {dotted}: {part} is no table of the recipe", param=dotted)
        target[key] = value
    unknown = set(raw) - {"name", "model", "identity", "data", "optimizer", "loss", "run"}
    if unknown:
        raise InvalidInputError(f"unknown section in the recipe: {', '.join(sorted(unknown))}", param="recipe")
    return TrainConfig(
        name=str(raw.get("name", Path(name_or_path).stem)),
        model=ModelConfig.from_hf({"model_type": "gpt_oss", **raw.get("model", {})}),
        identity=build_config(Identity, raw.get("identity", {}), section="identity"),
        data=build_config(DataConfig, raw.get("data", {}), section="data"),
        optimizer=build_config(OptimizerConfig, raw.get("optimizer", {}), section="optimizer"),
        loss=build_config(LossConfig, raw.get("loss", {}), section="loss"),
        run=build_config(RunConfig, raw.get("run", {}), section="run"),
    )


def _read_toml(name_or_path: str) -> dict[str, Any]:
    candidates = [Path(name_or_path), Path("recipes") / f"{name_or_path}.toml"]
    for path in candidates:
        if path.is_file():
            try:
                return tomllib.loads(path.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise InvalidInputError(f"{path} is not a TOML recipe: {error}", param="recipe") from error
    raise InvalidInputError(
        f"no recipe '{name_or_path}': looked for {' and '.join(str(path) for path in candidates)}", param="recipe"
    )
