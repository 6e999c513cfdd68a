"""A whole training run: recipe in, model folder out."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from ossia.core.errors import MissingFileError
from ossia.training.config import TrainConfig
from ossia.training.initial import build_model
from ossia.training.memory import MORE_GPUS, memory_explained
from ossia.training.package import package_model
from ossia.training.parallel import join_world
from ossia.training.plot import has_matplotlib, plot_run
from ossia.training.sources import make_source
from ossia.training.trainer import Progress, Trainer
from ossia.training.vocabulary import prepare_tokenizer, with_special_ids


def train(
    config: TrainConfig,
    folder: Path,
    *,
    device: torch.device | None = None,
    on_log: Progress | None = None,
    stop_after_seconds: float | None = None,
) -> Path:
    """Train as the recipe says, resuming what `folder` holds, and package the model in `folder/model`.

    Under torchrun every process calls this; the first one reports, packages and draws.

    Args:
        config: the recipe.
        folder: the run's own folder: tokenizer, checkpoints, metrics.jsonl, metrics.png, and at last the model.
        device: where to train; this process's GPU if there is one.
        on_log: called with each report.
        stop_after_seconds: stop this part of the run earlier (its model is packaged as it is; a later call goes on).

    Returns:
        The folder of the packaged model.

    Raises:
        OssiaError: as `Trainer` and `Trainer.train`.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was written, and no model.
    """
    with join_world(device) as world:
        if not world.is_first:
            world.wait_for_all()
        tokenizer = prepare_tokenizer(config, folder)  # the first process chooses a vocabulary, the others then read it
        if world.is_first:
            world.wait_for_all()
        if config.init is None:
            config = replace(config, model=with_special_ids(config, tokenizer))
        with memory_explained("before the first step", advice=MORE_GPUS):
            trainer = Trainer(
                build_model(
                    config.model,
                    init=config.init,
                    seed=config.data.seed,
                    device=world.device,
                    precision=config.trainer.run.precision,
                ),
                source=make_source(config.data, tokenizer=tokenizer, identity=config.identity),
                config=config.trainer,
                folder=folder,
                num_workers=config.data.num_workers,
                mesh=world.mesh,
            )
        trainer.train(on_log=on_log if world.is_first else None, stop_after_seconds=stop_after_seconds)
        weights = trainer.master_weights()
        model_folder = folder / "model"
        if world.is_first:
            package_model(weights, model_folder, config=config, tokenizer=tokenizer)
            if has_matplotlib():
                with suppress(MissingFileError):  # stopped before its first report
                    plot_run(folder)
    return model_folder
