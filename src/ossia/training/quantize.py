"""Quantization-aware training: the forward pass sees the experts as they will be packed.

The optimizer keeps float32 masters beside the parameters that forward and backward see. Here a parameter of an expert
is not its master rounded to bfloat16 but its master rounded to MXFP4, values that bfloat16 and float32 hold exactly.
The gradient with respect to the rounded matrix is applied to the master as it is: the straight-through estimator
(Bengio et al. 2013, arXiv 1308.3432), without an operation in the graph. Packing the masters gives the very values
that the last forward pass saw.
"""

from __future__ import annotations

from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.mxfp4 import BLOCK, round_mxfp4
from ossia.model.config import ModelConfig
from ossia.training.trainer_config import QuantizeConfig

MATRICES = (".experts.gate_up", ".experts.down")


def is_expert_matrix(name: str) -> bool:
    """Whether a parameter of this name is packed as MXFP4."""
    return name.endswith(MATRICES)


def round_experts(name: str, master: Tensor) -> Tensor:
    """What the forward pass sees of a master: matrices of experts as MXFP4 keeps them, the rest as it is."""
    return round_mxfp4(master) if is_expert_matrix(name) else master


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
