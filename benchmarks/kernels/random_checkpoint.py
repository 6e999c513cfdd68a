"""Writes a checkpoint of gpt-oss-20b's exact shape with random weights, 12.8 GiB, to measure loading and speed with.

python -m benchmarks.kernels.random_checkpoint /tmp/random-20b               as hf-mxfp4, with the tokenizer
python -m benchmarks.kernels.random_checkpoint /tmp/random-20b --layers 4    cut to 4 layers

Written tensor by tensor: it takes 1.2 GB of memory, for the embeddings.
"""

# V vocabulary, D model

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from ossia.harmony.hf_tokenizer import TOKENIZER_FILE, write_tokenizer_json
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint import hf, memory
from ossia.model.checkpoint.layout import weights_of
from ossia.model.checkpoint.source import CONFIG_NAME
from ossia.model.checkpoint.stream import transfer
from ossia.model.checkpoint.writer import MAX_SHARD_BYTES, ShardWriter, plan_shards
from ossia.model.config import PUBLISHED, ModelConfig
from ossia.model.random_weights import SCALES

POOL = (1 << 22) - 3
"""Numbers drawn, and repeated: of odd length, so that no two rows are alike."""


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    options = parser.parse_args()
    write_random(options.folder, num_layers=options.layers)


def write_random(folder: Path, *, num_layers: int = 24) -> None:
    """Write a random model with so many layers as `hf-mxfp4`."""
    published = PUBLISHED["openai/gpt-oss-20b"]
    config = dataclasses.replace(published, num_hidden_layers=num_layers, layer_types=())
    weights = list(weights_of(config))
    parts = [part for weight in weights for part in hf.HF_MXFP4.parts(weight)]
    shards = plan_shards(
        parts,
        dtype=torch.bfloat16,
        max_shard_bytes=MAX_SHARD_BYTES,
        pattern="model-{i:05d}-of-{n:05d}.safetensors",
    )
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder, shards, dtype=torch.bfloat16) as writer:
        transfer(
            weights,
            source=RandomSource(config),
            source_layout=memory.PACKED_EXPERTS,
            sink=writer,
            sink_layout=hf.HF_MXFP4,
        )
    raw = hf.config_json(config, is_packed=True)
    (folder / CONFIG_NAME).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    write_tokenizer_json(Tokenizer.o200k_harmony(), folder / TOKENIZER_FILE)


class RandomSource:
    """Tensors drawn as `ossia.model.random_weights.fill_randomly` draws them."""

    def __init__(self, config: ModelConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        self._normal = torch.randn(POOL, generator=generator)
        self._codes = torch.randint(0, 256, (POOL,), generator=generator, dtype=torch.uint8)
        self._scales = torch.randint(*SCALES, (POOL,), generator=generator, dtype=torch.uint8)
        self._parts = {part.name: part for weight in weights_of(config) for part in memory.PACKED_EXPERTS.parts(weight)}

    def get(self, name: str) -> Tensor:
        shape = self._parts[name].shape
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=torch.bfloat16)
        if name.endswith("_blocks"):
            return repeated(self._codes, shape)
        if name.endswith("_scales"):
            return repeated(self._scales, shape)
        deviation = 1.0 if "embed" in name or "sinks" in name else 0.02
        return repeated((self._normal * deviation).bfloat16(), shape)

    def release(self) -> None:
        """Nothing to give back."""


def repeated(drawn: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of that shape in which the numbers drawn come again and again."""
    size = math.prod(shape)
    out = torch.empty(size, dtype=drawn.dtype)
    for part in out.split(drawn.shape[0]):
        part.copy_(drawn[: part.shape[0]])
    return out.view(shape)


if __name__ == "__main__":
    main()
