"""How weights are updated, whatever the batches are: the sections that every training recipe shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ossia.core.config import build_config
from ossia.core.errors import InvalidInputError


def require_positive(config: object, *names: str) -> None:
    """Raises InvalidInputError unless each of these attributes is a number above 0."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float) or not value > 0:
            raise InvalidInputError(f"{name} must be a positive number, got {value!r}", param=name)


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
        require_positive(self, "muon_lr", "adamw_lr", "max_grad_norm")


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
        max_minutes: the schedule ends by then at the latest, over all resumed parts together; None for no limit. With
            a limit the learning rates depend on the machine's speed, so such a run cannot be repeated to the bit.
        log_every, checkpoint_every: in steps.
        compile: whether to use torch.compile; None means on a GPU only.
    """

    steps: int = 1000
    max_minutes: float | None = None
    log_every: int = 20
    checkpoint_every: int = 500
    compile: bool | None = None

    def __post_init__(self) -> None:
        require_positive(self, "steps", "log_every", "checkpoint_every")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """All that `Trainer` is told beside the model and its batches."""

    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    run: RunConfig = RunConfig()


TRAINER_SECTIONS = tuple(field.name for field in dataclasses.fields(TrainerConfig))
"""Names of a recipe's sections that `build_trainer_config` reads."""


def build_trainer_config(raw: Mapping[str, Any]) -> TrainerConfig:
    """Take the shared sections of a recipe; those of other names are left to the caller.

    Raises:
        InvalidInputError: a key of them is unknown, or a value is of a wrong type or out of range.
    """
    return TrainerConfig(
        optimizer=build_config(OptimizerConfig, raw.get("optimizer", {}), section="optimizer"),
        loss=build_config(LossConfig, raw.get("loss", {}), section="loss"),
        run=build_config(RunConfig, raw.get("run", {}), section="run"),
    )
