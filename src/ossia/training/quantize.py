"""Quantization-aware training: the forward pass sees the experts as they will be packed.

The optimizer keeps float32 masters beside the parameters that forward and backward see. Here a parameter of an expert
is not its master rounded to bfloat16 but its master rounded to MXFP4, values that bfloat16 and float32 hold exactly.
The gradient with respect to the rounded matrix is applied to the master as it is: the straight-through estimator
(Bengio et al. 2013, arXiv 1308.3432), without an operation in the graph. Packing the masters gives the very values
that the last forward pass saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.mxfp4 import BLOCK, round_mxfp4
from ossia.model.config import ModelConfig
from ossia.training.trainer_config import QuantizeConfig

MATRICES = (".experts.gate_up", ".experts.down")
TOGETHER = 1 << 25
"""Numbers rounded at once; it takes some eight times their memory for a moment."""


def is_expert_matrix(name: str) -> bool:
    """Whether a parameter of this name is packed as MXFP4."""
    return name.endswith(MATRICES)


def round_experts(names: Sequence[str], masters: Sequence[Tensor]) -> list[Tensor]:
    """What the forward pass sees of masters: matrices of experts as MXFP4 keeps them, the rest as it is.

    Those of one shape are rounded together, up to `TOGETHER` numbers: a small model's are many launches otherwise.
    """
    seen = list(masters)
    by_shape: dict[torch.Size, list[int]] = {}
    for place, (name, master) in enumerate(zip(names, masters, strict=True)):
        if is_expert_matrix(name):
            by_shape.setdefault(master.shape, []).append(place)
    for shape, places in by_shape.items():
        size = max(1, TOGETHER // max(1, shape.numel()))
        for start in range(0, len(places), size):
            some = places[start : start + size]
            rounded = round_mxfp4(torch.stack([masters[place] for place in some]))
            for place, values in zip(some, rounded.unbind(0), strict=True):
                seen[place] = values
    return seen


def is_active(config: QuantizeConfig, progress: float) -> bool:
    """Whether the forward pass sees rounded experts at this share of the run."""
    return config.experts is not None and progress >= config.start


def check_quantizable(config: QuantizeConfig, model: ModelConfig) -> None:
    """Raises InvalidInputError if the model's experts cannot be packed."""
    if config.experts is not None and (model.hidden_size % BLOCK or model.intermediate_size % BLOCK):
        raise InvalidInputError(
            f"quantize.experts needs hidden_size and intermediate_size to be multiples of {BLOCK}, but got "
            f"{model.hidden_size} and {model.intermediate_size}",
            param="quantize.experts",
        )
