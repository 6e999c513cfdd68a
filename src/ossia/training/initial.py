"""What a run begins with: random weights, or those of a model that is there already."""

from __future__ import annotations

import torch

from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint.load import load_model, resolve_model
from ossia.model.config import ModelConfig
from ossia.model.loading import find_tokenizer
from ossia.model.transformer import Transformer, init_weights


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of the parameters that forward and backward see, by `RunConfig.precision`; masters are float32 in any case."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def build_model(
    config: ModelConfig, *, init: str | None, seed: int, device: torch.device, precision: str = "auto"
) -> Transformer:
    """A dense model to train.

    Args:
        config: its shape, where it begins with random weights.
        init: the model whose weights it begins with; packed experts are dequantised. bfloat16 holds what the published
            formats hold exactly, so the optimizer's float32 masters begin with the very values of the files. None for
            random weights.
        seed: of random weights.
        device: where to.
        precision: as of `RunConfig`.

    Raises:
        ModelNotFoundError, CheckpointError: `init` names no model that can be read.
    """
    dtype = training_dtype(precision, device)
    if init is None:
        model = Transformer(config, dtype=dtype, device=device)
        init_weights(model, seed=seed)
        return model
    return load_model(resolve_model(init), device=device, dtype=dtype, packed_experts=False).train()


def load_init_tokenizer(init: str, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of the model that a run begins with. Raises as `find_tokenizer`."""
    return find_tokenizer(resolve_model(init), vocab_size=vocab_size)
