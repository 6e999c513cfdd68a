from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.mxfp4 import pack_mxfp4, unpack_mxfp4
from ossia.kernels.rope import RopeTables
from ossia.model.attention import CachedAttention, KVCache, PackedAttention
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.transformer import Layer, Transformer, init_weights


def make_config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "sliding_window": 5,
        "max_position_embeddings": 64,
        "rope": RopeConfig(factor=4.0, original_max_position_embeddings=16),
        "eos_token_ids": (1,),
        "pad_token_id": 0,
    }
    return ModelConfig(**(fields | changes))


def make_model(*, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
    """A model in which every tensor matters."""
    model = Transformer(make_config(**changes), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.4 * noise)
    return model


def run(model: Transformer, ids: list[int], **options: Any) -> Tensor:
    attention = PackedAttention([0, len(ids)])
    return model(torch.tensor(ids), positions=torch.arange(len(ids)), attention=attention, **options)


IDS = [5, 61, 3, 3, 12, 40, 7, 22, 9, 18, 33, 2, 50]


def test_parameter_names_and_shapes() -> None:
    state = Transformer(make_config(num_hidden_layers=1), device="meta").state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "embed_tokens.weight": (67, 32),
        "layers.0.attn_norm.weight": (32,),
        "layers.0.attn.sinks": (4,),
        "layers.0.attn.qkv.weight": (128, 32),
        "layers.0.attn.qkv.bias": (128,),
        "layers.0.attn.out.weight": (32, 64),
        "layers.0.attn.out.bias": (32,),
        "layers.0.mlp_norm.weight": (32,),
        "layers.0.mlp.router.weight": (6, 32),
        "layers.0.mlp.router.bias": (6,),
        "layers.0.mlp.experts.gate_up": (6, 128, 32),
        "layers.0.mlp.experts.gate_up_bias": (6, 128),
        "layers.0.mlp.experts.down": (6, 32, 64),
        "layers.0.mlp.experts.down_bias": (6, 32),
        "norm.weight": (32,),
        "lm_head.weight": (67, 32),
    }


def test_packed_sequences_do_not_see_each_other() -> None:
    model = make_model()
    positions = torch.cat((torch.arange(4), torch.arange(0), torch.arange(9)))
    with torch.inference_mode():
        together = model(torch.tensor(IDS), positions=positions, attention=PackedAttention(torch.tensor([0, 4, 4, 13])))
        apart = torch.cat((run(model, IDS[:4]), run(model, IDS[4:])))
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pieces", [[1] * 13, [13], [6, 1, 1, 5], [2, 11]])
def test_the_cache_changes_nothing(pieces: list[int]) -> None:
    model = make_model()
    cache = KVCache(model.config, capacity=1, dtype=torch.float32)
    outs = []
    with torch.inference_mode():
        for piece in torch.tensor(IDS).split(pieces):
            attention = CachedAttention(cache, num_tokens=len(piece))
            positions = torch.arange(cache.length, cache.length + len(piece))
            outs.append(model(piece, positions=positions, attention=attention))
            attention.commit()
        wanted = run(model, IDS)
    torch.testing.assert_close(torch.cat(outs), wanted, rtol=1e-4, atol=1e-4)
    assert cache.length == len(IDS)


def test_truncating_the_cache_goes_back() -> None:
    model = make_model()
    cache = KVCache(model.config, dtype=torch.float32)

    def step(ids: list[int]) -> Tensor:
        attention = CachedAttention(cache, num_tokens=len(ids))
        positions = torch.arange(cache.length, cache.length + len(ids))
        out = model(torch.tensor(ids), positions=positions, attention=attention)
        attention.commit()
        return out

    with torch.inference_mode():
        step(IDS[:6])
        step([44, 45])
        cache.truncate(6)
        got = step(IDS[6:])
        torch.testing.assert_close(got, run(model, IDS)[6:], rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match="allowed: 0 to the 13"):
        cache.truncate(14)


def test_an_uncommitted_pass_is_forgotten() -> None:
    model = make_model()
    cache = KVCache(model.config, dtype=torch.float32)
    model(torch.tensor([1, 2]), positions=torch.arange(2), attention=CachedAttention(cache, num_tokens=2))
    assert cache.length == 0


@pytest.mark.parametrize("lengths", [[], [0], [1, 3], [0, 3, 2]])
def test_impossible_sequence_bounds_are_refused(lengths: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="cu_seqlens"):
        PackedAttention(lengths)


def test_logits_are_float32() -> None:
    model = make_model(dtype=torch.bfloat16)
    hidden = run(model, IDS)
    assert hidden.dtype == torch.bfloat16
    assert model.logits(hidden[-1:]).dtype == torch.float32
    assert model.logits(hidden[-1:]).shape == (1, 67)


@torch.no_grad()
def test_bfloat16_is_near_float32() -> None:
    """Two layers of some ten roundings at 2^-8 each, which partly add up."""
    model = make_model(num_hidden_layers=2)
    wide = model.logits(run(model, IDS))
    narrow = model.to(torch.bfloat16)
    got = narrow.logits(run(narrow, IDS))
    assert float((got - wide).abs().mean() / wide.abs().mean()) < 0.05


def test_casting_keeps_rope_exact() -> None:
    model = make_model().to(torch.bfloat16)
    assert model.rope(torch.device("cpu")).cos.dtype == torch.float32


class Recording:
    """Routes as the model would, and remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
        top, indices = logits.topk(num_active, dim=-1)
        weights = top.softmax(dim=-1)
        self.seen.append((layer, logits, indices, weights))
        return indices, weights


class Replaying:
    def __init__(self, choices: list[tuple[Tensor, Tensor]]) -> None:
        self.choices = choices

    def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
        return self.choices[layer]


def test_router_backends_record_and_replay() -> None:
    model = make_model()
    plain, recorder = run(model, IDS), Recording()
    torch.testing.assert_close(run(model, IDS, router=recorder), plain)
    assert [layer for layer, *_ in recorder.seen] == [0, 1, 2, 3]
    assert all(logits.shape == (13, 6) and logits.requires_grad for _, logits, _, _ in recorder.seen)
    choices = [(indices, weights) for _, _, indices, weights in recorder.seen]
    torch.testing.assert_close(run(model, IDS, router=Replaying(choices)), plain)
    others = [((indices + 1) % 6, weights) for indices, weights in choices]
    assert not torch.allclose(run(model, IDS, router=Replaying(others)), plain, rtol=0.01)


class RunningLayers:
    """Runs whole layers, the module's own way, and remembers which."""

    def __init__(self, model: Transformer, num_tokens: int) -> None:
        self.seen: list[int] = []
        self.attention = PackedAttention([0, num_tokens])
        self.rope = model.rope(torch.device("cpu"))

    def run_layer(self, layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
        self.seen.append(layer.attn.index)
        rope = RopeTables(self.rope.cos[positions].unsqueeze(1), self.rope.sin[positions].unsqueeze(1))
        return layer(x, rope=rope, attention=self.attention, router=None)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
        return self.attention.attend(layer, q, k, v, sinks=sinks, window=window)


def test_a_backend_that_runs_layers_is_given_them() -> None:
    model = make_model()
    backend = RunningLayers(model, len(IDS))
    positions = torch.arange(len(IDS))
    out = model(torch.tensor(IDS), positions=positions, attention=backend)
    assert torch.equal(out, run(model, IDS))
    assert backend.seen == [0, 1, 2, 3]
    # A router backend wants to be asked, so the layers are run the ordinary way.
    recorder = Recording()
    assert torch.equal(model(torch.tensor(IDS), positions=positions, attention=backend, router=recorder), out)
    assert len(backend.seen) == len(recorder.seen) == 4


def test_every_parameter_gets_a_gradient() -> None:
    model = make_model()
    model.logits(run(model, list(range(60)))).logsumexp(dim=-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_training_after_generating() -> None:
    """Tables first made in inference mode must serve autograd, too."""
    meta = Transformer(make_config(), device="meta")
    model = meta.to_empty(device="cpu").float()
    init_weights(model)
    with torch.inference_mode():
        run(model, IDS)
    model.logits(run(model, IDS)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_packed_experts_compute_what_their_values_say() -> None:
    dense = make_model()
    packed = Transformer(dense.config, dtype=torch.float32, packed_experts=True)
    state = dense.state_dict()
    for layer in range(4):
        for name in ("gate_up", "down"):
            key = f"layers.{layer}.mlp.experts.{name}"
            blocks, scales = pack_mxfp4(state.pop(key))
            state |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
            with torch.no_grad():
                values = unpack_mxfp4(blocks, scales=scales, dtype=torch.float32)
                dense.get_parameter(key).copy_(values)
    packed.load_state_dict(state)
    assert not any("blocks" in name for name, _ in packed.named_parameters())
    with torch.inference_mode():
        for ids in (IDS, IDS[:1]):
            torch.testing.assert_close(run(packed, ids), run(dense, ids))


def test_sizes_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="multiples of 32, but got 32 and 40"):
        Transformer(make_config(intermediate_size=40), packed_experts=True)


@torch.no_grad()
def test_initial_weights() -> None:
    model = Transformer(make_config(hidden_size=256, num_hidden_layers=8), dtype=torch.float32)
    init_weights(model, seed=3)
    layer = model.layers[5]
    assert (layer.attn_norm.weight == 1).all()
    assert not layer.attn.sinks.any()
    assert not layer.mlp.experts.gate_up_bias.any()
    # 5 % is ten standard errors and more of the deviation of this many values.
    assert float(layer.attn.qkv.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(layer.mlp.experts.gate_up.std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.lm_head.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(layer.mlp.experts.down.std()) == pytest.approx(0.005, rel=0.05)
    assert float(layer.attn.out.weight.std()) == pytest.approx(0.005, rel=0.05)


def test_a_seed_gives_one_model() -> None:
    models = [Transformer(make_config(), dtype=torch.float32) for _ in range(3)]
    for model, seed in zip(models, (4, 4, 5), strict=True):
        init_weights(model, seed=seed)
    a, b, c = (model.state_dict() for model in models)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])


def test_packed_models_cannot_be_initialised() -> None:
    with pytest.raises(InvalidInputError, match="packed_experts=False"):
        init_weights(Transformer(make_config(), packed_experts=True))


def test_one_step_of_learning() -> None:
    """Gradients lead downhill: fitting one short text from random weights."""
    model = Transformer(make_config(num_hidden_layers=2), dtype=torch.float32)
    init_weights(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model.logits(run(model, IDS[:-1])), torch.tensor(IDS[1:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < 3 < losses[0]
