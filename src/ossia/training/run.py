"""A whole training run: recipe in, model folder out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ossia.core.errors import VocabularyError
from ossia.harmony.hf_tokenizer import load_tokenizer, write_tokenizer_folder
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.config import ModelConfig
from ossia.training.config import TrainConfig
from ossia.training.package import package_model
from ossia.training.trainer import Progress, Trainer
from ossia.training.vocabulary import choose_vocabulary


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
    config = replace(config, model=with_special_ids(config, tokenizer))
    trainer = Trainer(config, tokenizer=tokenizer, folder=folder, device=device)
    trainer.train(on_log=on_log, stop_after_seconds=stop_after_seconds)
    model_folder = folder / "model"
    package_model(trainer.master_weights(), model_folder, config=config, tokenizer=tokenizer)
    return model_folder


def prepare_tokenizer(config: TrainConfig, folder: Path) -> Tokenizer:
    """The run's tokenizer: the one in `folder/tokenizer`, else chosen for the mix and written there.

    Raises:
        VocabularyError: the tokenizer there has another size than the recipe's model.
    """
    tokenizer_folder = folder / "tokenizer"
    if (tokenizer_folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(tokenizer_folder)
        if tokenizer.vocab_size != config.model.vocab_size:
            raise VocabularyError(
                f"{tokenizer_folder} has {tokenizer.vocab_size} tokens, the recipe's model {config.model.vocab_size}; "
                "delete the folder to choose anew"
            )
        return tokenizer
    vocabulary = choose_vocabulary(config.data, identity=config.identity, size=config.model.vocab_size)
    tokenizer = Tokenizer(vocabulary)
    write_tokenizer_folder(tokenizer, tokenizer_folder)
    return tokenizer


def with_special_ids(config: TrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model's config with the ids at which this tokenizer's generation stops."""
    return replace(
        config.model,
        eos_token_ids=(tokenizer.return_, tokenizer.call, tokenizer.endoftext),
        pad_token_id=tokenizer.endoftext,
    )
