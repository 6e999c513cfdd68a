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


PRECISIONS = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long a run goes on and what it writes.

    Attributes:
        steps: optimizer steps of the whole run.
        max_minutes: the schedule ends by then at the latest, over all resumed parts together; None for no limit. With
            a limit the learning rates depend on the machine's speed, so such a run cannot be repeated to the bit.
            A first step that compiles does not count.
        log_every, checkpoint_every: in steps.
        compile: whether to use torch.compile; None means on a GPU only.
        precision: of the parameters that forward and backward see and of Muon's iteration: "float32", "bfloat16", or
            "auto": bfloat16 on a GPU, float32 on a CPU. Processors with products of bfloat16 (AVX512_BF16, AMX) train
            several times faster in it; others slower. The optimizer's masters are float32 in any case.
        activation_checkpointing: keep each layer's input only and compute the rest again in the backward pass, which
            spares memory and costs one more forward pass.
        tensorboard: whether to write events for TensorBoard too; None means if it is installed.
    """

    steps: int = 1000
    max_minutes: float | None = None
    log_every: int = 20
    checkpoint_every: int = 500
    compile: bool | None = None
    precision: str = "auto"
    activation_checkpointing: bool = False
    tensorboard: bool | None = None

    def __post_init__(self) -> None:
        require_positive(self, "steps", "log_every", "checkpoint_every")
        if self.precision not in PRECISIONS:
            raise InvalidInputError(
                f"run.precision is {self.precision!r}; allowed: {', '.join(PRECISIONS)}", param="run.precision"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """Which steps are left out; `training/guard.py` states the rule.

    Attributes:
        window: losses that the running median is taken of.
        warmup: with fewer losses known, only what is not finite is left out.
        spread: how many median distances from the median a loss may lie above it.
        margin: share of the median by which a loss may always exceed it.
        max_skipped: as many steps left out in a row stop the run.
    """

    window: int = 64
    warmup: int = 32
    spread: float = 10.0
    margin: float = 0.2
    max_skipped: int = 10

    def __post_init__(self) -> None:
        require_positive(self, "window", "spread", "margin", "max_skipped")
        if not 0 <= self.warmup <= self.window:
            raise InvalidInputError(
                f"guard.warmup is {self.warmup}; allowed: from 0 to guard.window, {self.window}", param="guard.warmup"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AverageConfig:
    """A moving average of the weights, which then is what the run exports.

    Attributes:
        decay: weight of the past, below 1; 0 exports the last weights. About 1 / (1 - decay) steps are averaged.
        start: share of the run from which on it is taken.
    """

    decay: float = 0.0
    start: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise InvalidInputError(f"average.decay is {self.decay}; allowed: from 0 to below 1", param="average.decay")


QUANTIZED = ("mxfp4",)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeConfig:
    """Quantization-aware training.

    Attributes:
        experts: "mxfp4": the forward pass sees the experts' matrices rounded to MXFP4; None: as they are.
        start: share of the run from which on.
    """

    experts: str | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.experts is not None and self.experts not in QUANTIZED:
            raise InvalidInputError(
                f"quantize.experts is {self.experts!r}; allowed: {', '.join(QUANTIZED)}", param="quantize.experts"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """All that `Trainer` is told beside the model and its batches."""

    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    run: RunConfig = RunConfig()
    guard: GuardConfig = GuardConfig()
    average: AverageConfig = AverageConfig()
    quantize: QuantizeConfig = QuantizeConfig()


SECTIONS: Mapping[str, type] = {
    "optimizer": OptimizerConfig,
    "loss": LossConfig,
    "run": RunConfig,
    "guard": GuardConfig,
    "average": AverageConfig,
    "quantize": QuantizeConfig,
}
TRAINER_SECTIONS = tuple(SECTIONS)
"""Names of a recipe's sections that `build_trainer_config` reads."""


def build_trainer_config(raw: Mapping[str, Any]) -> TrainerConfig:
    """Take the shared sections of a recipe; those of other names are left to the caller.

    Raises:
        InvalidInputError: a key of them is unknown, or a value is of a wrong type or out of range.
    """
    return TrainerConfig(
        **{name: build_config(kind, raw.get(name, {}), section=name) for name, kind in SECTIONS.items()}
    )
