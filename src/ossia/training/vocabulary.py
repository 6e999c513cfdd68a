"""Choosing the tokens of a small model: those of o200k that its own training mix uses most."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ossia.core.errors import InvalidInputError, VocabularyError
from ossia.harmony.hf_tokenizer import load_tokenizer, write_tokenizer_folder
from ossia.harmony.prune import count_tokens, prune_vocabulary
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import Vocabulary
from ossia.model.config import ModelConfig
from ossia.tasks.words import load_words
from ossia.training.config import DataConfig, Identity, TrainConfig
from ossia.training.data.batches.examples import GPT_OSS_IDENTITY, ExampleSource
from ossia.training.initial import load_init_tokenizer

FORCED = (
    "assistant", "user", "system", "developer", "tool", "analysis", "commentary", "final", " to", "functions", "json",
    " json", "Reasoning", " low", " medium", " high", "Current", " date", "Knowledge", " cutoff", " Valid", " channels",
    GPT_OSS_IDENTITY,
    *(f" {letter}" for letter in string.ascii_letters),
)  # fmt: skip
"""Strings whose tokens are kept whatever their counts: the format's own words and single letters after a space."""

NUM_EXAMPLES = 60_000
"""Examples of the mix whose tokens are counted."""


CHOICES = ("frequency", "rank")
"""How tokens may be chosen: those that the mix uses most, or the first ones of o200k."""


def choose_vocabulary(
    config: DataConfig, *, identity: Identity, size: int, num_examples: int = NUM_EXAMPLES, seed: int = 0
) -> Vocabulary:
    """Count tokens over a sample of the training mix and keep the most frequent, `size` with the specials.

    The word list counts too, once a word in two ways to write it, so that words of the held-out kind have tokens.
    """
    full = Tokenizer.o200k_harmony()

    def texts() -> Iterator[str]:
        source = ExampleSource(config, tokenizer=full, identity=identity)
        rng = random.Random(seed)
        for _ in range(num_examples):
            yield full.decode([token for token in source.draw(rng).ids if not full.is_special(token)])
        for word in load_words().train:
            yield f" {word}"
            yield f" '{word}'"

    return prune_vocabulary(count_tokens(texts(), full), size=size, forced=FORCED)


def first_vocabulary(*, size: int) -> Vocabulary:
    """The first tokens of o200k, whatever the mix, beside the same forced ones: what choosing by use is measured by."""
    return prune_vocabulary({}, size=size, forced=FORCED)


def prepare_tokenizer(
    config: TrainConfig, folder: Path, *, num_examples: int = NUM_EXAMPLES, by: str = "frequency"
) -> Tokenizer:
    """The run's tokenizer: that of the model it begins with, else the one in `folder/tokenizer`, else a new one.

    A new one is written to `folder/tokenizer`.

    Args:
        config: the recipe.
        folder: of the run.
        num_examples: so many examples of the mix are counted for a new one.
        by: how the tokens of a new one are chosen, one of CHOICES.

    Raises:
        VocabularyError: the tokenizer there has another size than the recipe's model.
        InvalidInputError: `by` is none of CHOICES.
    """
    if by not in CHOICES:
        raise InvalidInputError(f"tokens cannot be chosen by {by!r}; allowed: {', '.join(CHOICES)}", param="by")
    if config.init is not None:
        return load_init_tokenizer(config.init, vocab_size=config.model.vocab_size)
    tokenizer_folder = folder / "tokenizer"
    if (tokenizer_folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(tokenizer_folder)
        if tokenizer.vocab_size != config.model.vocab_size:
            raise VocabularyError(
                f"{tokenizer_folder} has {tokenizer.vocab_size} tokens, the recipe's model {config.model.vocab_size}; "
                "delete the folder to choose anew"
            )
        return tokenizer
    size = config.model.vocab_size
    if by == "rank":
        vocabulary = first_vocabulary(size=size)
    else:
        vocabulary = choose_vocabulary(config.data, identity=config.identity, size=size, num_examples=num_examples)
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
