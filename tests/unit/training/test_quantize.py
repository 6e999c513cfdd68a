from __future__ import annotations

import pytest
import torch

from ossia.kernels.mxfp4 import round_mxfp4
from ossia.training import quantize
from ossia.training.quantize import is_expert_matrix, round_experts


@pytest.mark.parametrize("together", [1, 2 * 2 * 3 * 64, quantize.TOGETHER])
def test_experts_are_rounded_each_as_by_itself(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many at once: one, two, or all of a shape. A process may have none of a layer's experts."""
    monkeypatch.setattr(quantize, "TOGETHER", together)
    torch.manual_seed(0)
    masters = {"embed_tokens.weight": torch.randn(5, 64), "layers.0.mlp.experts.gate_up_bias": torch.randn(2, 64)}
    for layer in range(5):
        masters[f"layers.{layer}.mlp.experts.gate_up"] = torch.randn(2, 3, 64) * 10.0**layer
        masters[f"layers.{layer}.mlp.experts.down"] = torch.randn(2, 7, 32)
    masters["layers.5.mlp.experts.down"] = torch.randn(0, 7, 32)
    seen = round_experts(list(masters), list(masters.values()))
    assert len(seen) == len(masters)
    for (name, master), values in zip(masters.items(), seen, strict=True):
        assert torch.equal(values, round_mxfp4(master) if is_expert_matrix(name) else master), name
