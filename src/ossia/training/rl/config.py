"""What a run of reinforcement learning is told: one frozen dataclass a component, read from a TOML recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import Effort
from ossia.training.config import OptimizerConfig

_FREE: Mapping[str, float] = MappingProxyType({})
EXPERTS = ("frozen", "mxfp4", "dense")
SCALES = ("mean", "std")


def at_least(config: object, name: str, least: float) -> None:
    """Raises InvalidInputError unless the attribute is a number of at least that."""
    value = getattr(config, name)
    if not isinstance(value, int | float) or math.isnan(value) or value < least:
        raise InvalidInputError(f"{name} is {value!r}; allowed: at least {least}", param=name)


def one_of(config: object, name: str, allowed: tuple[str, ...]) -> None:
    """Raises InvalidInputError unless the attribute is one of these."""
    value = getattr(config, name)
    if value not in allowed:
        raise InvalidInputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}", param=name)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    """How episodes are made.

    Attributes:
        problems: problems a step.
        samples: answers to each of them: a group.
        efforts: with which efforts problems are asked, in turn.
        max_tokens: tokens that an episode may write in all; one that is cut off earns nothing.
        max_turns: turns of the model, for problems with tools.
        max_num_seqs: answers that the engine makes at once.
        max_tool_episodes: episodes with a tool of their own, a Python kernel, at once.
        replay_routing: have the trainer send each token to the experts that the engine sent it to.
        kv_cache_bytes: memory of the engine's cache; None for its own choice.
    """

    problems: int = 12
    samples: int = 8
    efforts: tuple[str, ...] = ("low", "medium", "high")
    max_tokens: int = 512
    max_turns: int = 4
    max_num_seqs: int = 64
    max_tool_episodes: int = 4
    replay_routing: bool = True
    kv_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("problems", "max_tokens", "max_turns", "max_num_seqs", "max_tool_episodes"):
            at_least(self, name, 1)
        at_least(self, "samples", 2)
        if not self.efforts:
            raise InvalidInputError("rollout.efforts is empty; name at least one effort", param="rollout.efforts")
        for effort in self.efforts:
            Effort.parse(effort)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """What an episode earns: 1 if its answer is right and was parsed without repair, else 0, less the length's price.

    Attributes:
        length_price: by effort, what a right answer loses if it is as long as `rollout.max_tokens`; shorter ones lose
            their share. Wrong answers pay nothing, or the model would learn to be wrong briefly.
    """

    length_price: Mapping[str, float] = dataclasses.field(default_factory=lambda: _FREE)

    def __post_init__(self) -> None:
        for effort, price in self.length_price.items():
            Effort.parse(effort)
            if not 0 <= price < 1:
                raise InvalidInputError(
                    f"reward.length_price.{effort} is {price}; allowed: from 0 to below 1, so that a right answer "
                    "always earns more than a wrong one",
                    param="reward.length_price",
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig:
    """What is maximised; see `loss.policy_loss` for the equation and its sources.

    Attributes:
        scale: "mean" takes the group's mean from a reward (Dr. GRPO), "std" divides by the deviation as well (GRPO).
        updates: optimizer steps on the episodes of one step; 1 is on policy.
        clip_low, clip_high: the ratio of new to old probability counts within [1 - clip_low, 1 + clip_high] (DAPO's
            clip-higher; equal ones are PPO's). It matters from the second update on.
        max_importance: the weight of trainer against engine probability is cut off here; math.inf leaves it.
        kl: weight of the divergence from the model that the run began with; 0 spares that model's memory.
        experts: what becomes of the experts' matrices. "frozen": they stay as they are, packed values too, and
            everything else is trained; the cheapest. "mxfp4": trained, and trainer and engine run them rounded as they
            will be shipped (quantization-aware, straight through). "dense": trained as they are; packaging then rounds
            what was learned.
    """

    scale: str = "mean"
    updates: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.28
    max_importance: float = 2.0
    kl: float = 0.0
    experts: str = "frozen"

    def __post_init__(self) -> None:
        one_of(self, "scale", SCALES)
        one_of(self, "experts", EXPERTS)
        at_least(self, "updates", 1)
        at_least(self, "kl", 0)
        at_least(self, "max_importance", 1)
        for name in ("clip_low", "clip_high"):
            at_least(self, name, 0)
        if self.clip_low > 1:
            raise InvalidInputError(f"clip_low is {self.clip_low}; allowed: from 0 to 1", param="policy.clip_low")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """How far trainer and engine may disagree on the same tokens, in natural logarithms of probability.

    Attributes:
        max_mean: bound of the mean absolute difference over a step's sampled tokens; None for that of `gate_bounds`.
        max_single: bound of each single one, likewise.
    """

    max_mean: float | None = None
    max_single: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_mean", "max_single"):
            if getattr(self, name) is not None:
                at_least(self, name, 0)


def gate_bounds(config: GateConfig, *, is_float32: bool) -> GateConfig:
    """The bounds that hold, by the precision in which trainer and engine run.

    float32: 1e-4 and 1e-2, where nano's differ by 2e-7 on average and 3e-5 at most. bfloat16, which keeps 8 bits: 0.02
    and 1.0; on a GPU, where the engine's kernels are others than the trainer's, one step of nano had 8e-4 and 0.02.
    """
    mean, single = (1e-4, 1e-2) if is_float32 else (0.02, 1.0)
    return GateConfig(
        max_mean=mean if config.max_mean is None else config.max_mean,
        max_single=single if config.max_single is None else config.max_single,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """How the best weights are found: by greedy answers to held-out problems, the same ones each time.

    Attributes:
        problems: of each task, asked at each effort of `rollout.efforts`.
        every: steps between; the weights of the beginning and of the end are validated, too.
        seed: draws the problems.
    """

    problems: int = 64
    every: int = 10
    seed: int = 20_000

    def __post_init__(self) -> None:
        at_least(self, "problems", 1)
        at_least(self, "every", 1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RLRunConfig:
    """How long a run goes on and what it writes.

    Attributes:
        steps: of the whole run; the learning rates' schedule ends there.
        seed: problems, dates and samples of step k follow from it and from k.
        tokens_per_forward: tokens that the trainer takes at once, if no single episode is longer.
        checkpoint_every: in steps.
        tensorboard: write events for TensorBoard as well, if it is installed.
    """

    steps: int = 100
    seed: int = 0
    tokens_per_forward: int = 8192
    checkpoint_every: int = 10
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "tokens_per_forward", "checkpoint_every"):
            at_least(self, name, 1)


RATES = OptimizerConfig(
    muon_lr=1e-3, adamw_lr=1e-4, momentum=0.9, betas=(0.9, 0.95), weight_decay=0.0, warmup=0.05, decay=0.5
)
"""Small, as rewards are few bits; falling from half of the run on, for a constant rate was seen to waver."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RLConfig:
    """A whole run.

    Attributes:
        name: of the run and of the model that comes of it.
        init: the model to begin with: "nano", a hub id that was pulled, or a folder.
        tasks: how often each task is drawn.
    """

    name: str
    init: str
    tasks: Mapping[str, float]
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    policy: PolicyConfig = PolicyConfig()
    gate: GateConfig = GateConfig()
    validation: ValidationConfig = ValidationConfig()
    optimizer: OptimizerConfig = RATES
    run: RLRunConfig = RLRunConfig()

    def __post_init__(self) -> None:
        if not self.tasks or min(self.tasks.values()) < 0 or not sum(self.tasks.values()) > 0:
            raise InvalidInputError("[tasks] must give at least one task a positive weight", param="tasks")
