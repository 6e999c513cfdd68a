"""New weights for a model that is in use: values change, addresses stay."""

# E experts, D model, F expert hidden, G = 2F

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ossia.core.errors import TensorMismatchError
from ossia.kernels.mxfp4 import Mxfp4, pack_mxfp4
from ossia.model.transformer import Experts, Transformer

PACKED = ("gate_up", "down")


@torch.no_grad()
def update_weights(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Write a dense model's weights into a model of the same shape, in place.

    A weight that is the model's own tensor already costs nothing, so a model that shares its parameters with a trainer
    is up to date without a copy. Packed experts are rounded to MXFP4.

    Args:
        model: dense or packed, of any dtype, on any device.
        weights: by the parameter names of a dense `Transformer`, each and no other.

    Raises:
        TensorMismatchError: a weight is missing, unknown or of another shape; nothing was changed.
    """
    packed = {
        f"{module_name}.{name}": Mxfp4(getattr(module, f"{name}_blocks"), getattr(module, f"{name}_scales"))
        for module_name, module in model.named_modules()
        if isinstance(module, Experts) and module.is_packed
        for name in PACKED
    }
    dense = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in dense.items()}
    shapes |= {name: (*held.scales.shape[:-1], held.scales.shape[-1] * 32) for name, held in packed.items()}
    check_weights(weights, shapes)
    for name, held in dense.items():
        copy_if_other(held, weights[name])
    for name, held in packed.items():
        new = pack_mxfp4(weights[name])
        held.blocks.copy_(new.blocks)
        held.scales.copy_(new.scales)


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare weights with what a model wants.

    Raises:
        TensorMismatchError: they differ; the message names the first that does.
    """
    for name in sorted(weights.keys() ^ shapes.keys()):
        fault = "is missing" if name in shapes else "is not a weight of this model"
        raise TensorMismatchError(f"{name} {fault}; give all parameters of a dense model of the same config")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise TensorMismatchError(
                f"{name} has the shape {list(weights[name].shape)}, but this model wants {list(shape)}; "
                "give the weights of a model of the same config"
            )


def copy_if_other(held: Tensor, new: Tensor) -> None:
    """Copy `new` into `held`, unless they are the same memory."""
    if held.data_ptr() != new.data_ptr() or held.dtype != new.dtype:
        held.copy_(new)
