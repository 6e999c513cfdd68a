"""The batches of a pre-training recipe."""

from __future__ import annotations

from ossia.harmony.tokenizer import Tokenizer
from ossia.training.config import DataConfig, Identity
from ossia.training.data.batches.examples import ExampleSource
from ossia.training.data.batches.packing import PackedExamples
from ossia.training.data.batches.stream import BatchSource


def make_source(config: DataConfig, *, tokenizer: Tokenizer, identity: Identity) -> BatchSource:
    """Make the batches that a recipe asks for.

    Raises:
        InvalidInputError: a corpus is absent, empty or damaged, or the mix names something unknown.
    """
    return PackedExamples(
        ExampleSource(config, tokenizer=tokenizer, identity=identity),
        length=config.sequence_length,
        rows=config.rows,
        seed=config.seed,
        padding=tokenizer.endoftext,
    )
