"""New weights in place."""

from __future__ import annotations

import pytest
import torch

from ossia.core.errors import TensorMismatchError
from ossia.kernels.mxfp4 import unpack_mxfp4
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.transformer import Experts, Transformer, init_weights
from ossia.model.update import update_weights


def make_model(*, seed: int = 0, packed: bool = False, dtype: torch.dtype = torch.float32) -> Transformer:
    config = ModelConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        max_position_embeddings=64,
        rope=RopeConfig(theta=10000.0, factor=1.0),
        eos_token_ids=(1,),
        pad_token_id=0,
    )
    model = Transformer(config, dtype=dtype, packed_experts=packed)
    if not packed:
        init_weights(model, seed=seed)
    return model


def weights_of(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_values_change_and_addresses_stay() -> None:
    held, new = make_model(seed=0, dtype=torch.bfloat16), make_model(seed=1)
    addresses = {name: parameter.data_ptr() for name, parameter in held.named_parameters()}
    update_weights(held, weights_of(new))
    for name, parameter in held.named_parameters():
        assert parameter.data_ptr() == addresses[name]
        torch.testing.assert_close(parameter, dict(new.named_parameters())[name].bfloat16(), rtol=0, atol=0)


def test_packed_experts_are_rounded() -> None:
    held, new = make_model(packed=True), make_model(seed=1)
    update_weights(held, weights_of(new))
    for packed, dense in zip(held.modules(), new.modules(), strict=True):
        if isinstance(packed, Experts) and isinstance(dense, Experts):
            got = unpack_mxfp4(packed.gate_up_blocks, scales=packed.gate_up_scales, dtype=torch.float32)  # pyright: ignore
            # At most a quarter of a block's largest magnitude is lost, where it is just below 8 and stored as 6.
            assert (got - dense.gate_up).abs().max() <= dense.gate_up.abs().max() / 4  # pyright: ignore
            assert not torch.equal(got, dense.gate_up)  # pyright: ignore
    torch.testing.assert_close(held.norm.weight, new.norm.weight)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_what_does_not_fit_changes_nothing(fault: str) -> None:
    held, weights = make_model(seed=0), weights_of(make_model(seed=1))
    before = {name: parameter.detach().clone() for name, parameter in held.named_parameters()}
    if fault == "missing":
        del weights["norm.weight"]
    elif fault == "unknown":
        weights["norm.bias"] = torch.zeros(32)
    else:
        weights["norm.weight"] = torch.zeros(31)
    with pytest.raises(TensorMismatchError, match="norm"):
        update_weights(held, weights)
    for name, parameter in held.named_parameters():
        assert torch.equal(parameter, before[name])
