"""RMSNorm (arXiv 1910.07467): scale a vector to unit root mean square, then by a learned weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension: x [..., D], weight [D] -> [..., D] in x's dtype, computed in float32."""
    if x.dtype == weight.dtype == torch.float32:
        return functional.rms_norm(x, weight.shape, weight, eps)
    return rms_norm_torch(x, weight=weight, eps=eps)


def rms_norm_torch(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    """The reference: x / sqrt(mean(x^2) + eps) * weight, all of it in float32, rounded once at the end."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)
