"""What `ossia eval` does not measure: weights before packing, bytes a token, bits a byte of text, and experts' loads.

python -m recipes.ablations.measure dense RUN
python -m recipes.ablations.measure text MODEL --out FILE
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from recipes.ablations.stages import DENSE, HERE

from ossia.cli.train.options import parse_overrides
from ossia.core.errors import MissingFileError
from ossia.core.files import write_text
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint.load import load_model, read_config
from ossia.model.loading import read_identity, read_json_if_any
from ossia.model.transformer import Transformer
from ossia.training.checkpoints import Checkpoints
from ossia.training.config import DataConfig, Identity, TrainConfig, TrainerConfig, load_recipe
from ossia.training.data.batches.conversations import Example
from ossia.training.data.batches.examples import ExampleSource, read_corpus
from ossia.training.data.batches.packing import Batch, pack_row, stack_rows
from ossia.training.loss import count_learned
from ossia.training.package import package_model
from ossia.training.trainer import Trainer
from ossia.training.vocabulary import with_special_ids

NUM_TEXTS = 300
TEXT_CHARACTERS = 800
"""Of so many documents, spread evenly over the corpora, so many characters are read."""
NUM_CONVERSATIONS = 300
ROWS = 8
LAST_REPORTS = 5
"""Loads are a mean over the reports of so many steps, the last of a run."""
DEAD = 0.05
"""An expert with less than this share of an even load is called dead."""


class Loads(NamedTuple):
    """A layer's experts at the end of a run, as shares of an even load."""

    least: float
    greatest: float
    num_dead: int


def export_dense(run: Path, *, recipe: TrainConfig) -> Path:
    """Write the last checkpoint's weights as `run/dense`, with experts in bfloat16, as they were trained.

    Raises:
        MissingFileError: the run has no checkpoint.
    """
    tokenizer = load_tokenizer(run / "tokenizer")
    config = replace(recipe, model=with_special_ids(recipe, tokenizer))
    model = Transformer(config.model, dtype=torch.float32, device=torch.device("cpu"))
    masters = {f"master.{name}": torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    if Checkpoints(run).load(masters) is None:
        raise MissingFileError(f"{run} holds no checkpoint; run the training again")
    weights = {name.removeprefix("master."): tensor for name, tensor in masters.items()}
    package_model(weights, run / DENSE, config=config, tokenizer=tokenizer, format="hf-bf16")
    return run / DENSE


def sample_texts(data: DataConfig) -> list[str]:
    """The beginnings of documents, spread evenly over the corpora of a recipe; the same ones for every vocabulary."""
    documents = [text for path in data.corpora.values() for text in read_corpus(path)]
    step = max(1, len(documents) // NUM_TEXTS)
    return [text[:TEXT_CHARACTERS] for text in documents[::step][:NUM_TEXTS]]


def sample_conversations(data: DataConfig, *, identity: Identity) -> list[str]:
    """Conversations of the tasks as text, without control tokens; the same ones for every vocabulary."""
    tasks = {name: share for name, share in data.mix.items() if name not in data.corpora}
    full = Tokenizer.o200k_harmony()
    source = ExampleSource(replace(data, corpora={}, mix=tasks, declined=()), tokenizer=full, identity=identity)
    rng = random.Random(0)
    drawn = [source.draw(rng).ids for _ in range(NUM_CONVERSATIONS)]
    return [full.decode([token for token in ids if not full.is_special(token)]) for ids in drawn]


def bytes_per_token(texts: Sequence[str], tokenizer: Tokenizer) -> float:
    """UTF-8 bytes over tokens."""
    return sum(len(text.encode()) for text in texts) / sum(len(tokenizer.encode(text)) for text in texts)


def bits_per_byte(folder: Path, texts: Sequence[str]) -> float:
    """How well a model predicts texts, whatever its vocabulary: the cross-entropy of all tokens but each text's first,
    and of the end, over the bytes of these tokens. Weights are those of the files, in float32."""
    tokenizer = load_tokenizer(folder)
    examples = [[*tokenizer.encode(text), tokenizer.endoftext] for text in texts]
    model = load_model(folder, dtype=torch.float32, packed_experts=False)
    batches = _rows(examples, padding=tokenizer.endoftext)
    with tempfile.TemporaryDirectory() as nowhere:
        trainer = Trainer(model, source=_Listed(batches), config=TrainerConfig(), folder=Path(nowhere))
        nats = trainer.evaluate(batches) * sum(float(count_learned(batch.targets)) for batch in batches)
    num_bytes = sum(len(tokenizer.decode_bytes(ids[1:-1])) for ids in examples)
    return nats / math.log(2) / num_bytes


class _Listed:
    """Batches that are there already."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def batch(self, number: int) -> Batch:
        return self._batches[number % len(self._batches)]


def _rows(examples: Sequence[list[int]], *, padding: int) -> list[Batch]:
    """An example a row, similar lengths together."""
    ordered = sorted(examples, key=len)
    batches: list[Batch] = []
    for start in range(0, len(ordered), ROWS):
        part = ordered[start : start + ROWS]
        length = max(len(part[-1]) - 1, 1)
        draws = [iter([Example(ids, [True] * len(ids))]) for ids in part]
        rows = [pack_row(lambda draw=draw: next(draw, None), length=length, padding=padding) for draw in draws]
        batches.append(stack_rows(rows))
    return batches


def read_loads(run: Path) -> list[Loads]:
    """The loads of each layer's experts at the end of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    loads = torch.tensor([row["loads"] for row in rows[-LAST_REPORTS:]]).mean(dim=0)
    return [Loads(float(layer.min()), float(layer.max()), int((layer < DEAD).sum())) for layer in loads]


def measure_text(folder: Path, *, recipe: TrainConfig) -> dict[str, Any]:
    """Bytes a token of conversations and of text, and bits a byte of text; no text without corpora."""
    tokenizer = load_tokenizer(folder)
    own = read_identity(read_json_if_any(folder / "config.json"))
    identity = Identity(model_identity=own.model_identity, knowledge_cutoff=own.knowledge_cutoff)
    measured: dict[str, Any] = {
        "parameters": _count_parameters(folder),
        "bytes_per_token_conversations": bytes_per_token(
            sample_conversations(recipe.data, identity=identity), tokenizer
        ),
    }
    if recipe.data.corpora:
        texts = sample_texts(recipe.data)
        measured["bytes_per_token_text"] = bytes_per_token(texts, tokenizer)
        measured["bits_per_byte_text"] = bits_per_byte(folder, texts)
    return measured


def _count_parameters(folder: Path) -> int:
    model = Transformer(read_config(folder), dtype=torch.float32, device=torch.device("meta"))
    return sum(parameter.numel() for parameter in model.parameters())


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Measures of the ablations beside `ossia eval`.")
    parser.add_argument("what", choices=("dense", "text"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], help="as of ossia train pretrain")
    args = parser.parse_args(argv)
    recipe = load_recipe(str(HERE / "pretrain.toml"), overrides=parse_overrides(args.set))
    if args.what == "dense":
        print(export_dense(args.folder, recipe=recipe))
        return
    text = json.dumps(measure_text(args.folder, recipe=recipe), indent=1) + "\n"
    print(text)
    if args.out is not None:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
