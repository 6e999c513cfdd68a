"""Recipes of reinforcement learning, as TOML or as a model and task names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ossia.core.config import build_config
from ossia.core.errors import InvalidInputError
from ossia.training.config import OptimizerConfig
from ossia.training.recipe import read_recipe, require_sections, set_values
from ossia.training.rl.config import (
    RATES,
    GateConfig,
    PolicyConfig,
    RewardConfig,
    RLConfig,
    RLRunConfig,
    RolloutConfig,
    ValidationConfig,
)

SECTIONS = ("name", "init", "tasks", "rollout", "reward", "policy", "gate", "validation", "optimizer", "run")


def load_rl_recipe(name_or_path: str, *, overrides: Mapping[str, Any] | None = None) -> RLConfig:
    """Read a recipe: a path to a TOML file, or the name of one in `recipes/` of the current folder.

    Args:
        name_or_path: where the recipe is.
        overrides: values by dotted key ("run.steps"), which replace those of the file.

    Raises:
        InvalidInputError: there is no such recipe, it is not TOML, or a key is unknown, absent or of a wrong type.
    """
    return make_config(read_recipe(name_or_path, overrides=overrides), name=Path(name_or_path).stem)


def make_config(raw: Mapping[str, Any], *, name: str) -> RLConfig:
    """The config of a recipe's tables; `name` if it names none. Raises as `load_rl_recipe`."""
    require_sections(raw, SECTIONS)
    init = raw.get("init")
    if not isinstance(init, str) or not init:
        raise InvalidInputError(
            f'init is {init!r}; name the model to begin with: init = "nano", or --model nano', param="init"
        )
    rates = {field: getattr(RATES, field) for field in RATES.__dataclass_fields__}
    return RLConfig(
        name=str(raw.get("name", name)),
        init=init,
        tasks=_weights(raw.get("tasks", {})),
        rollout=build_config(RolloutConfig, raw.get("rollout", {}), section="rollout"),
        reward=build_config(RewardConfig, raw.get("reward", {}), section="reward"),
        policy=build_config(PolicyConfig, raw.get("policy", {}), section="policy"),
        gate=build_config(GateConfig, raw.get("gate", {}), section="gate"),
        validation=build_config(ValidationConfig, raw.get("validation", {}), section="validation"),
        optimizer=build_config(OptimizerConfig, {**rates, **raw.get("optimizer", {})}, section="optimizer"),
        run=build_config(RLRunConfig, raw.get("run", {}), section="run"),
    )


def from_tasks(model: str, tasks: Sequence[str], *, overrides: Mapping[str, Any] | None = None) -> RLConfig:
    """The config without a recipe: a model, and tasks drawn evenly. Raises as `load_rl_recipe`."""
    raw = {"init": model, "tasks": dict.fromkeys(tasks, 1.0)}
    return make_config(set_values(raw, overrides or {}), name=f"{Path(model).name}-rl")


def _weights(raw: object) -> dict[str, float]:
    if not isinstance(raw, Mapping):
        raise InvalidInputError(f"[tasks] must be a table of task names and weights, got {raw!r}", param="tasks")
    weights: dict[str, float] = {}
    for task, weight in raw.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            raise InvalidInputError(f"tasks.{task} must be a number, got {weight!r}", param=f"tasks.{task}")
        weights[str(task)] = float(weight)
    return weights
