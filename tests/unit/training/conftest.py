from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ossia.harmony.tokenizer import Tokenizer
from ossia.tasks.words import WordSplit
from ossia.training import vocabulary
from ossia.training.config import TrainConfig, load_recipe
from ossia.training.vocabulary import choose_vocabulary, with_special_ids

RECIPE = Path(__file__).parents[3] / "recipes" / "tiny.toml"
SHRUNK: dict[str, Any] = {
    "model.vocab_size": 640,
    "model.hidden_size": 32,
    "model.intermediate_size": 32,
    "model.num_attention_heads": 2,
    "model.head_dim": 16,
    "model.sliding_window": 16,
    "data.sequence_length": 160,
    "data.rows": 2,
    "run.steps": 4,
    "run.log_every": 1,
    "run.checkpoint_every": 2,
}


@pytest.fixture(scope="session")
def recipe() -> TrainConfig:
    """recipes/tiny.toml, shrunk so that a step takes milliseconds."""
    return load_recipe(str(RECIPE), overrides=SHRUNK)


@pytest.fixture(scope="session")
def tokenizer(recipe: TrainConfig) -> Tokenizer:
    """Chosen from 200 examples of the recipe's mix and a word list of three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "load_words", lambda: WordSplit(train=("banana", "cherry", "plum"), held_out=()))
        chosen = choose_vocabulary(
            recipe.data, identity=recipe.identity, size=recipe.model.vocab_size, num_examples=200
        )
    return Tokenizer(chosen)


@pytest.fixture(scope="session")
def config(recipe: TrainConfig, tokenizer: Tokenizer) -> TrainConfig:
    """The recipe as `train` completes it: stop ids of this tokenizer."""
    return replace(recipe, model=with_special_ids(recipe, tokenizer))
