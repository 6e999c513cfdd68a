"""A whole training run: recipe in, model folder out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ossia.training.config import TrainConfig
from ossia.training.initial import build_model
from ossia.training.package import package_model
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

    Args:
        config: the recipe.
        folder: the run's own folder: tokenizer, checkpoints, metrics.jsonl, and at last the model.
        device: where to train; a GPU if there is one.
        on_log: called with each report.
        stop_after_seconds: stop this part of the run earlier (its model is packaged as it is; a later call goes on).

    Returns:
        The folder of the packaged model.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = prepare_tokenizer(config, folder)
    if config.init is None:
        config = replace(config, model=with_special_ids(config, tokenizer))
    trainer = Trainer(
        build_model(config.model, init=config.init, seed=config.data.seed, device=device),
        source=make_source(config.data, tokenizer=tokenizer, identity=config.identity),
        config=config.trainer,
        folder=folder,
        num_workers=config.data.num_workers,
    )
    trainer.train(on_log=on_log, stop_after_seconds=stop_after_seconds)
    model_folder = folder / "model"
    package_model(trainer.master_weights(), model_folder, config=config, tokenizer=tokenizer)
    return model_folder
