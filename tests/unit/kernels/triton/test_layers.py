"""Whole layers on the GPU against the model in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.gpu import expert_layer
from ossia.kernels.gpu import layers as gpu_layers
from ossia.kernels.gpu.layers import GpuLayers, PagedGroup, StepInputs
from ossia.kernels.paged_attention import paged_attention_torch
from ossia.model.attention import PackedAttention
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.transformer import Transformer

pytestmark = pytest.mark.slow  # emulated, where there is no GPU
PAGE = 16


def small_config(**changes: object) -> ModelConfig:
    sizes = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 20,
        "max_position_embeddings": 512,
        "rope": RopeConfig(factor=4.0),
    }
    return ModelConfig(**(sizes | changes))  # type: ignore[arg-type]  # a mapping of mixed types


@torch.no_grad()
def random_model(config: ModelConfig, *, seed: int) -> Transformer:
    """bfloat16 with packed experts, weights so large that every part matters."""
    model = Transformer(config, dtype=torch.bfloat16, packed_experts=True)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        wide = "embed" in name or "sinks" in name or "norm" in name
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.0 if wide else 0.1))
    for name, buffer in model.named_buffers():
        low, high = (118, 122) if name.endswith("scales") else (0, 256)
        buffer.copy_(torch.randint(low, high, buffer.shape, generator=generator, dtype=torch.uint8))
    return model


def float_twin(model: Transformer) -> Transformer:
    twin = Transformer(model.config, dtype=torch.float32, packed_experts=True)
    twin.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    return twin


class Pages:
    """A cache whose sequences own their pages in a scrambled order, and the inputs of steps over it."""

    def __init__(self, config: ModelConfig, *, num_seqs: int, length: int, device: torch.device) -> None:
        self.config, self.device = config, device
        columns = -(-length // PAGE)
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(2 * num_seqs * columns, generator=generator).int() + 1
        self.tables = order.view(2, num_seqs, columns)
        shape = (1 + order.numel(), PAGE, config.num_key_value_heads, config.head_dim)
        self.layers = [
            tuple(torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
            for _ in range(config.num_hidden_layers)
        ]

    def step(self, tokens: list[list[int]], starts: list[int], *, num_padding: int = 0) -> StepInputs:
        """Each sequence's next tokens, from its start on; padding sequences have one token and hold none."""
        positions = [start + i for start, ids in zip(starts, tokens, strict=True) for i in range(len(ids))]
        owners = [n for n, ids in enumerate(tokens) for _ in ids]
        groups = []
        for table in self.tables:
            slots = [int(table[n, p // PAGE]) * PAGE + p % PAGE for n, p in zip(owners, positions, strict=True)]
            rows = torch.cat((table, torch.zeros(num_padding, table.shape[1], dtype=torch.int32)))
            groups.append(PagedGroup(self._ints(rows, torch.int32), self._ints(slots + [0] * num_padding)))
        counts = [len(ids) for ids in tokens] + [1] * num_padding
        ends = [start + len(ids) for start, ids in zip(starts, tokens, strict=True)] + [0] * num_padding
        return StepInputs(
            token_ids=self._ints([i for ids in tokens for i in ids] + [0] * num_padding),
            positions=self._ints(positions + [0] * num_padding),
            cu_seqlens_q=self._ints([sum(counts[:n]) for n in range(len(counts) + 1)], torch.int32),
            context_lens=self._ints(ends, torch.int32),
            full=groups[0],
            sliding=groups[1],
            max_queries=max(counts),
        )

    def _ints(self, values: object, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=self.device).contiguous()


def expected_hidden(model: Transformer, tokens: list[list[int]]) -> list[Tensor]:
    """float32 [length, D] of each sequence."""
    ends = [0]
    for ids in tokens:
        ends.append(ends[-1] + len(ids))
    flat = torch.tensor([i for ids in tokens for i in ids])
    positions = torch.cat([torch.arange(len(ids)) for ids in tokens])
    with torch.inference_mode():
        hidden = model(flat, positions=positions, attention=PackedAttention(ends))
    return list(hidden.split([len(ids) for ids in tokens]))


def random_tokens(lengths: list[int], vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in lengths]


def relative_error(out: Tensor, expected: Tensor) -> float:
    return float((out.cpu().float() - expected).norm() / expected.norm())


# bfloat16's roundings of the stream and of each layer's input: a few times 2^-9 of the norm over two layers.
BOUND = 2e-2


@pytest.mark.parametrize(("num_seqs", "num_padding"), [(1, 0), (3, 2), (7, 4)])
def test_decoding_matches_float32(device: torch.device, num_seqs: int, num_padding: int) -> None:
    steps = 23 if device.type == "cuda" or num_seqs == 1 else 3
    assert_decoding_matches_float32(device, num_seqs=num_seqs, num_padding=num_padding, steps=steps)


def assert_decoding_matches_float32(device: torch.device, *, num_seqs: int, num_padding: int, steps: int) -> None:
    config = small_config()
    model = random_model(config, seed=1)
    tokens = random_tokens([23] * num_seqs, config.vocab_size)
    expected = expected_hidden(float_twin(model), tokens)
    pages = Pages(config, num_seqs=num_seqs, length=40, device=device)
    layers = GpuLayers(model, kv_layers=pages.layers, device=device)
    for step in range(steps):
        inputs = pages.step([ids[step : step + 1] for ids in tokens], [step] * num_seqs, num_padding=num_padding)
        hidden = layers.decode(inputs)
        for n in range(num_seqs):
            assert relative_error(hidden[n], expected[n][step]) < BOUND, (step, n)
    logits = layers.logits(hidden[:num_seqs].clone())
    wide = hidden[:num_seqs].float() @ layers.lm_head.float().T
    torch.testing.assert_close(logits, wide, rtol=1e-3, atol=1e-3)


def test_decoding_by_the_kernels_for_many_matches_float32(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_layer, "MANY_FROM", 1)
    assert_decoding_matches_float32(device, num_seqs=6, num_padding=4, steps=2)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[23], [9, 200, 31], [300, 290]])
def test_prompts_in_chunks_match_float32(lengths: list[int]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    assert_prompts_match_float32(torch.device("cuda:0"), lengths)


@pytest.mark.parametrize("many_from", [1, 1000])
def test_prompts_around_the_attention_match_float32(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, many_from: int
) -> None:
    """All but the Triton kernel of attention, for which the reference stands in."""

    def attend(q: Tensor, *, keys: Tensor, values: Tensor, blocks: object, out: Tensor, **options: Tensor) -> None:
        del blocks
        H, C = out.shape[1:]
        plain = q[:, : H * C].reshape(-1, H, C).float()
        out.copy_(paged_attention_torch(plain, keys.float(), values.float(), **options))  # type: ignore[arg-type]

    monkeypatch.setattr(gpu_layers, "prefill_attention", attend)
    monkeypatch.setattr(expert_layer, "MANY_FROM", many_from)
    assert_prompts_match_float32(device, [9, 31, 22])


def assert_prompts_match_float32(device: torch.device, lengths: list[int]) -> None:
    config = small_config()
    model = random_model(config, seed=3)
    tokens = random_tokens(lengths, config.vocab_size)
    expected = expected_hidden(float_twin(model), tokens)
    pages = Pages(config, num_seqs=len(lengths), length=320, device=device)
    layers = GpuLayers(model, kv_layers=pages.layers, device=device)
    firsts = [length * 2 // 3 for length in lengths]  # a long chunk, a shorter one, then one token each
    for begins, ends in (
        ([0] * len(lengths), firsts),
        (firsts, [length - 1 for length in lengths]),
        ([length - 1 for length in lengths], lengths),
    ):
        parts = [ids[begin:end] for ids, begin, end in zip(tokens, begins, ends, strict=True)]
        hidden = layers.forward(pages.step(parts, begins))
        rows = iter(hidden.split([len(part) for part in parts]))
        for n, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            error = (next(rows).cpu().float() - expected[n][begin:end]).norm(dim=-1) / expected[n][begin:end].norm(
                dim=-1
            )
            # A token whose expert choice is nearly a tie may take another one after bfloat16's rounding.
            assert error.median() < BOUND
            assert (error < 2 * BOUND).float().mean() > 0.9


def test_dense_experts_are_refused(device: torch.device) -> None:
    config = small_config()
    pages = Pages(config, num_seqs=1, length=16, device=device)
    model = Transformer(config, dtype=torch.bfloat16)
    with pytest.raises(InvalidInputError, match="packed_experts=True"):
        GpuLayers(model, kv_layers=pages.layers, device=device)


def test_the_packed_experts_are_released(device: torch.device) -> None:
    model = random_model(small_config(), seed=2)
    pages = Pages(model.config, num_seqs=1, length=16, device=device)
    GpuLayers(copy.deepcopy(model), kv_layers=pages.layers, device=device)
    GpuLayers(model, kv_layers=pages.layers, device=device)
    assert all(layer.mlp.experts.gate_up_blocks.numel() == 0 for layer in model.layers)
