"""Supervised fine-tuning: a model and a file of conversations in, a model folder out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ossia.core.errors import InvalidInputError
from ossia.core.files import write_text
from ossia.harmony.content import Effort
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint.load import read_config, resolve_model
from ossia.model.config import ModelConfig
from ossia.model.loading import Identity, read_identity, read_json_if_any
from ossia.training.data.batches.packing import Batch
from ossia.training.data.chat.batches import ChatBatches, Encoder, fit_rows
from ossia.training.data.chat.file import BadRow, BadRowChoice, GoodRow, read_chat_file
from ossia.training.data.chat.rows import ChatRow
from ossia.training.initial import build_model, load_init_tokenizer
from ossia.training.memory import MORE_GPUS, memory_explained
from ossia.training.package import read_taught_tasks, repackage_model
from ossia.training.parallel import World, join_world
from ossia.training.sft_config import SftConfig
from ossia.training.trainer import StepReport, Trainer

RUN_FILE = "sft.json"
HELD_OUT_FILE = "held-out.jsonl"
_NUM_LOOKS = 10
"""About so often a run looks at the held-out loss."""
_NAMED = 5
"""So many differing settings of another run are named."""
_LEAST_TO_HOLD_OUT = 10
"""Files of fewer conversations are learned whole."""


class SftData(NamedTuple):
    """A file made ready.

    Attributes:
        batches: what is learned.
        held_out: batches of the conversations that are not.
        num_rows: conversations learned.
        num_held_out: conversations held out.
        skipped: rows left out, and why.
        steps: of the whole run.
    """

    batches: ChatBatches
    held_out: list[Batch]
    num_rows: int
    num_held_out: int
    skipped: tuple[BadRow, ...]
    steps: int


class SftProgress(NamedTuple):
    """News of a run.

    Attributes:
        report: of the trainer.
        held_out_loss: where it was looked at.
    """

    report: StepReport
    held_out_loss: float | None


class SftResult(NamedTuple):
    """What a run came to.

    Attributes:
        folder: the model.
        data: what it learned from.
        before, after: held-out loss; NaN if nothing was held out.
        is_first: whether this process is the one that reports.
    """

    folder: Path
    data: SftData
    before: float
    after: float
    is_first: bool = True


Show = Callable[[SftProgress, float], None]
"""Called at each log, with the share of the run that is done."""


def finetune(
    config: SftConfig,
    folder: Path,
    *,
    device: torch.device | None = None,
    on_data: Callable[[SftData], None] | None = None,
    on_log: Show | None = None,
) -> SftResult:
    """Fine-tune as the recipe says, resuming what `folder` holds, and package the model in `folder/model`.

    Under torchrun every process calls this; the first one reports and packages.

    Args:
        config: the recipe.
        folder: the run's own folder: checkpoints, metrics.jsonl, held-out.jsonl, and at last the model.
        device: where to train; this process's GPU if there is one.
        on_data: called once the file is read.
        on_log: called with each report.

    Raises:
        InvalidInputError: the file is bad, or `folder` holds another run.
        ModelNotFoundError, CheckpointError: the model to begin with cannot be read.
        TrainingError: the loss is not a number, or the GPU has too little memory.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was written, and no model.
    """
    source = resolve_model(config.init)
    shape = read_config(source)
    tokenizer = load_init_tokenizer(config.init, vocab_size=shape.vocab_size)
    about = read_json_if_any(source / "config.json")
    identity = read_identity(about)
    if not config.data.keep_mix:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, keep_mix=read_taught_tasks(about)))
    with join_world(device) as world:
        data = prepare_data(config, tokenizer=tokenizer, identity=identity)
        if world.is_first:  # not earlier: a file that has to be mended first has no claim on the folder
            claim_folder(config, folder)
        world.wait_for_all()
        if on_data is not None and world.is_first:
            on_data(data)
        trainer = _make_trainer(config, data, shape=shape, folder=folder, world=world)
        looks = _HeldOut(trainer, data, path=folder / HELD_OUT_FILE if world.is_first else None)
        looks.look()

        def show(report: StepReport, done: float) -> None:
            loss = looks.look() if looks.is_due(report.step) else None
            if on_log is not None and world.is_first:
                on_log(SftProgress(report, loss), done)

        trainer.train(on_log=show)  # every process looks at the held-out loss
        looks.look()
        weights = trainer.master_weights()
        if world.is_first:
            repackage_model(weights, folder / "model", init=config.init, name=config.name)
    return SftResult(folder / "model", data, looks.first, looks.last, world.is_first)


def _make_trainer(config: SftConfig, data: SftData, *, shape: ModelConfig, folder: Path, world: World) -> Trainer:
    run = dataclasses.replace(config.trainer.run, steps=data.steps)
    with memory_explained("before the first step", advice=MORE_GPUS):
        return Trainer(
            build_model(shape, init=config.init, seed=config.data.seed, device=world.device, precision=run.precision),
            source=data.batches,
            config=dataclasses.replace(config.trainer, run=run),
            folder=folder,
            num_workers=config.data.num_workers,
            mesh=world.mesh,
        )


# ---- data ----


def make_encoder(config: SftConfig, *, tokenizer: Tokenizer, identity: Identity) -> Encoder:
    """How a run turns conversations into examples."""
    return Encoder(tokenizer, identity, config.weights, tuple(map(Effort.parse, config.data.efforts)))


def prepare_data(config: SftConfig, *, tokenizer: Tokenizer, identity: Identity) -> SftData:
    """Read the file, part what is held out, and pack the rest.

    Raises:
        InvalidInputError: the file is absent or holds nothing to learn; or, unless bad rows are skipped, one is no
            conversation or too long.
    """
    settings = config.data
    on_error = BadRowChoice(settings.on_error)
    file = read_chat_file(settings.file, on_error=on_error)
    encoder = make_encoder(config, tokenizer=tokenizer, identity=identity)
    rows, too_long = fit_rows(file.rows, encoder=encoder, length=settings.sequence_length)
    if too_long and (on_error is BadRowChoice.STOP or not rows):
        line, reason = too_long[0]
        hint = "" if on_error is BadRowChoice.SKIP else ". Or leave such rows out with --on-error skip"
        raise InvalidInputError(f"{file.path}, line {line}: {reason}{hint}", param="data.sequence_length")
    learned, held_out = hold_out(rows, share=settings.val_share, seed=settings.seed)
    batches = ChatBatches(
        learned,
        encoder=encoder,
        length=settings.sequence_length,
        num_rows=settings.rows,
        seed=settings.seed,
        task_share=settings.keep_tasks,
        task_mix=settings.keep_mix,
    )
    checks: list[Batch] = []
    if held_out:
        packed = ChatBatches(held_out, encoder=encoder, length=settings.sequence_length, num_rows=1, seed=settings.seed)
        checks = [packed.batch(number) for number in range(packed.num_packed)]
    return SftData(
        batches=batches,
        held_out=checks,
        num_rows=len(learned),
        num_held_out=len(held_out),
        skipped=tuple(sorted((*file.skipped, *too_long))),
        steps=max(1, math.ceil(settings.epochs * batches.batches_per_epoch)),
    )


def hold_out(rows: list[GoodRow], *, share: float, seed: int) -> tuple[list[ChatRow], list[ChatRow]]:
    """Conversations to learn, and a share of them to hold out: at least one, if there is a share and enough of them."""
    count = 0
    if share > 0 and len(rows) >= _LEAST_TO_HOLD_OUT:
        count = max(1, round(share * len(rows)))
    chosen = frozenset(random.Random(f"{seed} held out").sample(range(len(rows)), count))
    learned = [row for i, (_, row) in enumerate(rows) if i not in chosen]
    return learned, [row for i, (_, row) in enumerate(rows) if i in chosen]


# ---- the run ----


def claim_folder(config: SftConfig, folder: Path) -> None:
    """Make a folder this run's own, or see that it is.

    Raises:
        InvalidInputError: it holds a run with other settings or another file, which would be mixed up with this one.
    """
    path = folder / RUN_FILE
    digest = hashlib.sha256(Path(config.data.file).read_bytes()).hexdigest()
    own = json.loads(json.dumps({**dataclasses.asdict(config), "data_sha256": digest}, default=dict))
    there = read_json_if_any(path)
    if there and there != own:
        differing = sorted(_differences(there, own))
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        raise InvalidInputError(
            f"{folder} holds another run, which differs in {', '.join(differing[:_NAMED])}{more}; take another --out, "
            "or delete it",
            param="out",
        )
    if not there:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(own, indent=2) + "\n")


def _differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [] if one == other else [prefix]
    keys = {*one, *other}
    return [found for key in keys for found in _differences(one.get(key), other.get(key), f"{prefix}.{key}".strip("."))]


class _HeldOut:
    """Looks at the held-out loss. All processes look; the one that has a path writes down what it sees."""

    def __init__(self, trainer: Trainer, data: SftData, *, path: Path | None) -> None:
        self._trainer = trainer
        self._batches = data.held_out
        self._path = path
        every = trainer.config.run.log_every
        self._every = every * max(1, round(data.steps / _NUM_LOOKS / every))
        self._seen: dict[int, float] = {}
        self._earlier: dict[int, float] = {}
        if path is not None and path.is_file():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self._earlier = {row["step"]: row["loss"] for row in rows if row["step"] < trainer.step}

    @property
    def first(self) -> float:
        """Before anything was learned, or else the earliest that is known."""
        seen = self._earlier | self._seen
        return seen[min(seen)] if seen else math.nan

    @property
    def last(self) -> float:
        return self._seen[max(self._seen)] if self._seen else math.nan

    def is_due(self, step: int) -> bool:
        return step % self._every == 0

    def look(self) -> float | None:
        """The loss at this step; None if nothing is held out."""
        if not self._batches:
            return None
        step = self._trainer.step
        if step not in self._seen:
            self._seen[step] = self._trainer.evaluate(self._batches)
            seen = sorted((self._earlier | self._seen).items())
            if self._path is not None:
                write_text(self._path, "".join(json.dumps({"step": at, "loss": loss}) + "\n" for at, loss in seen))
        return self._seen[step]
