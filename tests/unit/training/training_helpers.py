"""A trainer as `ossia.training.run` makes it, on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from ossia.harmony.tokenizer import Tokenizer
from ossia.training.config import TrainConfig
from ossia.training.initial import build_model
from ossia.training.sources import make_source
from ossia.training.trainer import Trainer


def make_trainer(config: TrainConfig, tokenizer: Tokenizer, folder: Path) -> Trainer:
    return Trainer(
        build_model(
            config.model,
            init=config.init,
            seed=config.data.seed,
            device=torch.device("cpu"),
            precision=config.trainer.run.precision,
        ),
        source=make_source(config.data, tokenizer=tokenizer, identity=config.identity),
        config=config.trainer,
        folder=folder,
    )
