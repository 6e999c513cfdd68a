"""What a run of supervised fine-tuning is told: one frozen dataclass a component, from a recipe or from defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ossia.core.config import build_config
from ossia.core.errors import InvalidInputError
from ossia.harmony.content import Effort
from ossia.training.data.batches.conversations import ChannelWeights
from ossia.training.data.chat.file import BadRowChoice
from ossia.training.recipe import read_recipe, require_sections, set_values
from ossia.training.trainer_config import TRAINER_SECTIONS, TrainerConfig, build_trainer_config, require_positive

SECTIONS = ("name", "init", "data", "weights", *TRAINER_SECTIONS)
RATES: Mapping[str, Any] = MappingProxyType({"muon_lr": 2e-3, "adamw_lr": 6e-4, "weight_decay": 0.0, "warmup": 0.05})
"""A fifth of what nano was pre-trained with: what it knows should bend, not break."""
ADAMW_SHARE = 0.3
"""AdamW's rate to Muon's, as in pre-training."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChatDataConfig:
    """What is learned from.

    Attributes:
        file: JSON lines, a conversation each.
        on_error: "stop" at a row that is no conversation or does not fit, or "skip" it.
        sequence_length: tokens of a row of a batch, which holds several examples that do not see each other.
        rows: rows of a batch.
        epochs: passes over the file; fractions are allowed.
        val_share: share of the conversations that are held out and never learned, to see whether more is learned than
            the rows by heart.
        seed: another one gives other batches, and holds out other rows.
        efforts: of a row that says no reasoning effort, one of these is drawn in each pass.
        keep_tasks: share of the rows of each batch that hold examples of Ossia's own tasks, against forgetting.
        keep_mix: how often each task is drawn there; empty for what the model's config.json says that it was taught, or
            all alike where it says nothing.
        num_workers: processes that make batches ahead.
    """

    file: str
    on_error: str = "stop"
    sequence_length: int = 512
    rows: int = 4
    epochs: float = 3.0
    val_share: float = 0.1
    seed: int = 0
    efforts: tuple[str, ...] = ("low", "medium", "high")
    keep_tasks: float = 0.0
    keep_mix: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    num_workers: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "sequence_length", "rows", "epochs")
        if self.on_error not in {choice.value for choice in BadRowChoice}:
            raise InvalidInputError(f"on_error is {self.on_error!r}; use 'stop' or 'skip'", param="data.on_error")
        for name, value in (("val_share", self.val_share), ("keep_tasks", self.keep_tasks)):
            if not 0 <= value < 1:
                raise InvalidInputError(f"{name} is {value}; use a number from 0 to below 1", param=f"data.{name}")
        if self.num_workers < 0:
            raise InvalidInputError(f"num_workers is {self.num_workers}; use 0 or more", param="data.num_workers")
        if not self.efforts:
            raise InvalidInputError("efforts is empty; name at least one of low, medium, high", param="data.efforts")
        for effort in self.efforts:
            Effort.parse(effort)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SftConfig:
    """A whole run of fine-tuning.

    Attributes:
        name: of the model that comes of it.
        init: the model to begin with: "nano", a hub id that was pulled, or a folder.
        data: what is learned from.
        weights: how much each kind of message counts.
        trainer: how weights are updated. `run.steps` follows from `data.epochs`.
    """

    name: str
    init: str
    data: ChatDataConfig
    weights: ChannelWeights
    trainer: TrainerConfig


def load_sft_config(
    *, recipe: str | None = None, data: str | None = None, overrides: Mapping[str, Any] | None = None
) -> SftConfig:
    """Read a recipe, or take the defaults.

    Args:
        recipe: a path to a TOML file, or the name of one in `recipes/` of the current folder.
        data: the file to learn from, in place of the recipe's.
        overrides: values by dotted key ("data.epochs"), which replace those of the file.

    Raises:
        InvalidInputError: there is no such recipe, it is not TOML, or a key is unknown, absent or of a wrong type.
    """
    raw = {} if recipe is None else read_recipe(recipe)
    given = {} if data is None else {"data.file": data}
    raw = set_values(raw, {**given, **(overrides or {})})
    require_sections(raw, SECTIONS)
    table = raw.get("data", {})
    if isinstance(table, Mapping) and "file" not in table:
        raise InvalidInputError("no file to learn from is named; give --data FILE.jsonl", param="data.file")
    if isinstance(raw.get("run"), Mapping) and "steps" in raw["run"]:
        raise InvalidInputError("run.steps follows from the file; set data.epochs instead", param="run.steps")
    init = raw.get("init", "nano")
    if not isinstance(init, str):
        raise InvalidInputError(f"init must name a model, got {init!r}", param="init")
    run = {"log_every": 10, "checkpoint_every": 100, **raw.get("run", {})}
    tables = {"run": run, "optimizer": {**RATES, **raw.get("optimizer", {})}}
    return SftConfig(
        name=str(raw.get("name", f"{Path(init).name}-sft")),
        init=init,
        data=build_config(ChatDataConfig, table, section="data"),
        weights=build_config(ChannelWeights, raw.get("weights", {}), section="weights"),
        trainer=build_trainer_config({**raw, **tables}),
    )
