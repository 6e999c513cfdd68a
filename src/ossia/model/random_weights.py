"""Models of exact shapes with random weights, for measuring speed where the real weights are not at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.harmony.tokenizer import Tokenizer
from ossia.model.config import ModelConfig
from ossia.model.loading import Identity, LoadedModel, SamplingDefaults
from ossia.model.transformer import Transformer

SCALES = (119, 122)
"""Bounds of the experts' scale bytes, the upper one excluded: weights of about 0.02 to 0.1."""
_POOL = 1 << 22


def random_model(config: ModelConfig, *, name: str, tokenizer: Tokenizer, device: torch.device | str) -> LoadedModel:
    """A model in bfloat16 with packed experts, as a published checkpoint is loaded.

    Args:
        config: the shape.
        name: what to call it.
        tokenizer: of the shape's vocabulary.
        device: where its weights are drawn.
    """
    model = Transformer(config, dtype=torch.bfloat16, device=device, packed_experts=True)
    fill_randomly(model)
    return LoadedModel(
        name=name,
        model=model.eval(),
        tokenizer=tokenizer,
        identity=Identity(model_identity="", knowledge_cutoff=None),
        sampling=SamplingDefaults(),
    )


@torch.no_grad()
def fill_randomly(model: Transformer) -> None:
    """Draw weights with which routing spreads over the experts as random inputs spread it.

    Norms are 1, embeddings and sinks N(0, 1), all else N(0, 0.02); packed bytes are uniform. With smaller embeddings
    the router's bias would send every token to the same experts, and a speed would mean nothing. On a CPU large tensors
    repeat one drawn block: drawing 20 billion numbers there takes longer than measuring.
    """
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        else:
            deviation = 1.0 if "embed" in name or "sinks" in name else 0.02
            _draw(parameter, deviation)
    for name, buffer in model.named_buffers():
        low, high = SCALES if name.endswith("scales") else (0, 256)
        if buffer.is_cuda:
            buffer.random_(low, high)
        else:
            _repeat(buffer, torch.randint(low, high, (_size(buffer),), dtype=torch.uint8))


def _draw(parameter: Tensor, deviation: float) -> None:
    """In place on a GPU, where a float32 copy of the embeddings would not fit beside the 20b in 16 GB."""
    if parameter.is_cuda:
        parameter.normal_(0.0, deviation)
    else:
        _repeat(parameter, torch.randn(_size(parameter)) * deviation)


def _size(tensor: Tensor) -> int:
    """How many numbers to draw on a CPU: at most a block of a prime length, so that no two rows are alike."""
    return min(tensor.numel(), _POOL - 3)


def _repeat(tensor: Tensor, drawn: Tensor) -> None:
    flat = tensor.view(-1)
    for part in flat.split(drawn.numel()):
        part.copy_(drawn[: part.numel()])
