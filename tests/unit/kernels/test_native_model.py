"""Whole steps on the C++ kernels against the torch model, at every level of instructions that this CPU can run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels import native
from ossia.kernels.attention import attention_torch
from ossia.kernels.mxfp4 import pack_mxfp4
from ossia.kernels.native_model import NativeBatch, NativeCache, NativeModel
from ossia.model.attention import CachedAttention, KVCache
from ossia.model.checkpoint.load import load_model, resolve_model
from ossia.model.config import ModelConfig
from ossia.model.transformer import Transformer, init_weights

LEVELS = ("generic", "avx2", "avx512", "amx", "neon")

PLAIN = ModelConfig(
    vocab_size=77,
    hidden_size=50,
    intermediate_size=38,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    num_local_experts=5,
    num_experts_per_tok=2,
    sliding_window=5,
    swiglu_limit=0.6,
    max_position_embeddings=512,
    eos_token_ids=(1,),
    pad_token_id=None,
)
"""No size is a multiple of a vector."""

ROUND = dataclasses.replace(
    PLAIN,
    hidden_size=96,
    intermediate_size=64,
    head_dim=32,
    num_key_value_heads=1,
    num_local_experts=3,
    num_experts_per_tok=3,
    sliding_window=70,
)
"""Sizes that packed experts can have; 96 is no multiple of 64, which halves a tile. All experts are at work, so that
rounding can tip no choice."""

CHOOSY = dataclasses.replace(ROUND, num_local_experts=24, num_experts_per_tok=2)
"""So many experts that in steps of 49 to 144 tokens each gets few."""

# Relative to a row's norm. All float32: sums in another order, through 3 layers. 16-bit activations and bfloat16 ones:
# their rounding (2^-16 of a block's largest, 2^-9 of each) through 3 layers of several products each.
FLOAT_BOUND, FEW_BOUND, MANY_BOUND = 2e-5, 5e-4, 3e-2


@pytest.fixture(autouse=True)
def _library() -> Iterator[None]:
    if not native.ensure():
        pytest.skip(f"the C++ kernels are not in use: {native.info().reason}")
    before = native.info().level
    yield
    native.set_level(before)


def use_level(level: str) -> None:
    if level not in native.info().levels:
        pytest.skip(f"this CPU cannot run {level}")
    native.set_level(level)


def make_model(config: ModelConfig, *, packed: bool = False, dtype: torch.dtype = torch.float32) -> Transformer:
    """Random weights of sizes at which every part of a layer counts."""
    dense = Transformer(config, dtype=torch.float32)
    init_weights(dense, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else parameter * 5 + (parameter == 0) * noise)
    model = Transformer(config, dtype=dtype, packed_experts=packed)
    state = dense.state_dict()
    if packed:
        for name in [key for key in state if key.endswith(("experts.gate_up", "experts.down"))]:
            blocks, scales = pack_mxfp4(state.pop(name))
            state[f"{name}_blocks"], state[f"{name}_scales"] = blocks, scales
    model.load_state_dict(state)
    return model.eval()


@torch.inference_mode()
def torch_logits(model: Transformer, ids: Sequence[int], chunks: Sequence[int]) -> Tensor:
    """Logits after each token of one sequence, [T, V], run in chunks."""
    cache = KVCache(model.config, dtype=model.norm.weight.dtype)
    rows = []
    for start, stop in itertools.pairwise(itertools.accumulate(chunks, initial=0)):
        attention = CachedAttention(cache, num_tokens=stop - start)
        tokens = torch.tensor(ids[start:stop])
        rows.append(model.logits(model(tokens, positions=torch.arange(start, stop), attention=attention)))
        attention.commit()
    return torch.cat(rows)


class Pages:
    """A paged cache for several sequences, whose pages lie in no order; unused places hold NaN."""

    def __init__(self, config: ModelConfig, *, page_size: int, num_sequences: int, dtype: torch.dtype) -> None:
        B = -(-400 // page_size)
        shape = (1 + num_sequences * B, page_size, config.num_key_value_heads, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.full(shape, torch.nan, dtype=dtype) for _ in layers]
        self.values = [torch.full(shape, torch.nan, dtype=dtype) for _ in layers]
        self.cache = NativeCache(self.keys, self.values)
        self.size, self.window = page_size, config.sliding_window
        order = torch.randperm(shape[0] - 1, generator=torch.Generator().manual_seed(page_size)) + 1
        self.table = order.view(num_sequences, B).int()
        self.lengths = [0] * num_sequences

    def batch(self, tokens: Sequence[tuple[int, Sequence[int]]]) -> NativeBatch:
        """The next step: (sequence, its new ids) each. Sliding layers lose the pages before the window."""
        ids, positions, slots, cu = [], [], [], [0]
        tables = ([], [])
        for n, new in tokens:
            start, stop = self.lengths[n], self.lengths[n] + len(new)
            self.lengths[n] = stop
            where = torch.arange(start, stop)
            ids += new
            positions.append(where)
            slots.append(self.table[n][where // self.size].long() * self.size + where % self.size)
            cu.append(cu[-1] + len(new))
            kept = self.table[n].clone()
            tables[0].append(kept.clone())
            kept[: max(0, start - self.window + 1) // self.size] = 0
            tables[1].append(kept)
        slot_mapping = torch.cat(slots)
        return NativeBatch(
            ids=torch.tensor(ids),
            positions=torch.cat(positions),
            cu_seqlens=torch.tensor(cu, dtype=torch.int32),
            block_tables=(torch.stack(tables[0]), torch.stack(tables[1])),
            slot_mappings=(slot_mapping, slot_mapping),
            cache=self.cache,
        )


def native_logits(
    model: NativeModel, ids: Sequence[int], chunks: Sequence[int], *, page_size: int = 16, dtype: Any = torch.float32
) -> Tensor:
    pages = Pages(model.config, page_size=page_size, num_sequences=1, dtype=dtype)
    rows = []
    for start, stop in itertools.pairwise(itertools.accumulate(chunks, initial=0)):
        batch = pages.batch([(0, ids[start:stop])])
        rows.append(model.step(batch, out_rows=torch.arange(stop - start, dtype=torch.int32)).logits)
    return torch.cat([row for row in rows if row is not None])


def row_errors(got: Tensor, wanted: Tensor) -> float:
    return float(((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


def draw_ids(config: ModelConfig, count: int) -> list[int]:
    return torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(count)).tolist()


CHUNKS = [1, 1, 3, 16, 40, 1, 100, 17, 1]
SHORT_CHUNKS = [60, 1, 40, 9, 8, 62]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("page_size", [1, 3, 16, 400])
@pytest.mark.parametrize("config", [PLAIN, ROUND], ids=["plain", "round"])
def test_float32_equals_torch(level: str, page_size: int, config: ModelConfig) -> None:
    use_level(level)
    model = make_model(config)
    ids = draw_ids(config, sum(CHUNKS))
    got = native_logits(NativeModel(model), ids, CHUNKS, page_size=page_size)
    assert row_errors(got, torch_logits(model, ids, CHUNKS)) <= FLOAT_BOUND


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_experts_equal_torch(level: str, exact: bool, dtype: torch.dtype) -> None:
    use_level(level)
    model = make_model(ROUND, packed=True, dtype=dtype)
    ids = draw_ids(ROUND, sum(CHUNKS))
    got = native_logits(NativeModel(model, exact=exact), ids, CHUNKS)
    wanted = torch_logits(model.float(), ids, CHUNKS)
    assert row_errors(got, wanted) <= (MANY_BOUND if level == "amx" and not exact else FEW_BOUND)
    if level == "amx":  # up to 64 tokens a step nothing is lost to bfloat16
        got = native_logits(NativeModel(model), ids, SHORT_CHUNKS)
        assert row_errors(got, wanted) <= FEW_BOUND


def test_a_bfloat16_cache_costs_its_rounding() -> None:
    model = make_model(ROUND)
    ids = draw_ids(ROUND, sum(CHUNKS))
    got = native_logits(NativeModel(model), ids, CHUNKS, dtype=torch.bfloat16)
    error = row_errors(got, torch_logits(model, ids, CHUNKS))
    assert 1e-4 < error <= MANY_BOUND


def test_eight_bit_projections_cost_little() -> None:
    """A weight is off by 1 / 254 of the largest of 32 at most, and errors add up at random."""
    model = make_model(ROUND, packed=True)
    ids = draw_ids(ROUND, sum(CHUNKS))
    error = row_errors(native_logits(NativeModel(model, quantize="q8"), ids, CHUNKS), torch_logits(model, ids, CHUNKS))
    assert 1e-3 < error <= 5e-2


@pytest.mark.parametrize("level", LEVELS)
def test_twelve_bits_lose_nothing(level: str) -> None:
    use_level(level)
    config = dataclasses.replace(ROUND, hidden_size=128)
    model = make_model(config, packed=True, dtype=torch.bfloat16)
    ids = draw_ids(config, sum(CHUNKS))
    subject = NativeModel(model, quantize="bf12")
    got, wanted = native_logits(subject, ids, CHUNKS), native_logits(NativeModel(model), ids, CHUNKS)
    # On amx, prompts' attention and lm_head are float32 products instead of bfloat16 tiles.
    assert row_errors(got, wanted) <= (MANY_BOUND if level == "amx" else FLOAT_BOUND)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(-1.5 * torch.logspace(0, -6, parameter.shape[-1]))  # more that is not common than before
    subject.refresh()
    got, wanted = native_logits(subject, ids, CHUNKS), native_logits(NativeModel(model), ids, CHUNKS)
    assert row_errors(got, wanted) <= (MANY_BOUND if level == "amx" else FLOAT_BOUND)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("packed", [True, False])
def test_a_sequence_does_not_depend_on_the_others(level: str, packed: bool) -> None:
    """Decoding and short chunks, batched with other sequences: equal to the bit."""
    use_level(level)
    model = NativeModel(make_model(ROUND, packed=packed))
    assert_batched_equals_solo(model, [[2, 1, 1, 3], [1, 2, 3, 1], [4, 1, 1, 1], [1, 3, 2, 2]])


@pytest.mark.parametrize("level", LEVELS)
def test_larger_batches_do_not_depend_on_the_others(level: str) -> None:
    """Steps that one way computes, with each sequence in such steps alone too: on the level amx of 9 to 64 tokens,
    on the others of up to 48 and of more."""
    use_level(level)
    model = NativeModel(make_model(ROUND, packed=True))
    if level == "amx":
        assert_batched_equals_solo(model, [[9, 12, 10], [20, 10, 9], [9, 30, 11]])
    else:
        assert_batched_equals_solo(model, [[9, 1, 20], [20, 10, 9], [9, 30, 11]])
        assert_batched_equals_solo(model, [[49, 60], [80, 49], [50, 51]])


@pytest.mark.parametrize("level", LEVELS)
def test_many_tokens_of_which_each_expert_gets_few(level: str) -> None:
    """Attention as for many tokens, experts as for few: as torch has it, and whatever else is in the step."""
    use_level(level)
    model = make_model(CHOOSY, packed=True)
    ids, chunks = draw_ids(CHOOSY, 293), [49, 100, 144]
    got = native_logits(NativeModel(model), ids, chunks)
    assert row_errors(got, torch_logits(model, ids, chunks)) <= (MANY_BOUND if level == "amx" else FEW_BOUND)
    if level != "amx":
        assert_batched_equals_solo(NativeModel(model), [[49, 60], [80, 49]])


def test_an_exact_model_does_not_depend_on_chunks_of_any_size() -> None:
    model = NativeModel(make_model(ROUND, packed=True), exact=True)
    assert_batched_equals_solo(model, [[30, 1, 50], [1, 20, 1], [100, 1, 1]])
    ids = draw_ids(ROUND, 90)
    assert torch.equal(native_logits(model, ids, [90]), native_logits(model, ids, [1, 20, 3, 66]))


def assert_batched_equals_solo(model: NativeModel, chunks: list[list[int]]) -> None:
    """chunks: of each sequence, how many tokens it has in each step."""
    texts = [draw_ids(model.config, sum(lengths) + n) for n, lengths in enumerate(chunks)]
    pages = Pages(model.config, page_size=4, num_sequences=len(chunks), dtype=torch.float32)
    batched: list[list[Tensor]] = [[] for _ in chunks]
    for step in range(len(chunks[0])):
        new = [(n, texts[n][pages.lengths[n] :][: lengths[step]]) for n, lengths in enumerate(chunks)]
        batch = pages.batch(new)
        logits = model.step(batch, out_rows=torch.arange(len(batch.ids), dtype=torch.int32)).logits
        assert logits is not None
        for n, rows in enumerate(logits.split([lengths[step] for lengths in chunks])):
            batched[n].append(rows)
    for n, lengths in enumerate(chunks):
        assert torch.equal(torch.cat(batched[n]), native_logits(model, texts[n], lengths, page_size=16))


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.integers(1, 8), min_size=1, max_size=8), page_size=st.integers(1, 20))
def test_chunks_and_pages_change_nothing(chunks: list[int], page_size: int) -> None:
    model = NativeModel(make_model(PLAIN))
    ids = draw_ids(PLAIN, sum(chunks))
    got = native_logits(model, ids, chunks, page_size=page_size)
    assert torch.equal(got, native_logits(model, ids, [1] * len(ids)))


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As a cache of that dtype holds it."""
    return x.clamp(-448, 448).to(dtype) if dtype == torch.float8_e4m3fn else x.to(dtype)


@pytest.mark.parametrize("level", LEVELS)
def test_fp8_keeps_what_torch_keeps(level: str) -> None:
    """Values of a step, number for number: ties, denormals, and what is too large."""
    use_level(level)
    config = dataclasses.replace(PLAIN, num_hidden_layers=1, layer_types=(), head_dim=64, hidden_size=64)
    model = make_model(config)
    numbers = torch.arange(0, 256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().nan_to_num(nan=460.0)
    between = (numbers[:-1] + numbers[1:]) / 2
    awkward = torch.cat((numbers, between, between * 1.0001, torch.tensor([1e-9, -1e-9, 1e9, -1e9, 0.0, -0.0])))
    with torch.no_grad():  # the bias of k and v alone makes keys and values; position 0 turns nothing
        model.layers[0].attn.qkv.weight.zero_()
        for begin in range(0, len(awkward), 128):
            part = torch.zeros(128)
            part[: len(awkward[begin : begin + 128])] = awkward[begin : begin + 128]
            model.layers[0].attn.qkv.bias.zero_()
            model.layers[0].attn.qkv.bias[-128:] = part
            pages = Pages(config, page_size=16, num_sequences=1, dtype=torch.float8_e4m3fn)
            NativeModel(model).step(pages.batch([(0, [3])]))
            slot = int(pages.table[0, 0]) * 16
            got = pages.values[0].float().view(-1, 128)[slot]
            assert torch.equal(got, rounded(part, torch.float8_e4m3fn).float()), begin


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("layer", [0, 1], ids=["sliding", "full"])
@pytest.mark.parametrize("config", [PLAIN, ROUND], ids=["plain", "round"])
def test_attention_equals_torch(level: str, dtype: torch.dtype, layer: int, config: ModelConfig) -> None:
    """Over pages that hold random keys, for the last tokens of two sequences."""
    use_level(level)
    torch_model = make_model(config)
    model = NativeModel(torch_model)
    pages = Pages(config, page_size=7, num_sequences=2, dtype=dtype)
    held = {0: 150, 1: 8}
    pages.batch([(n, [0] * (length - 3)) for n, length in held.items()])
    batch = pages.batch([(0, [0] * 3), (1, [0] * 3)])
    q = 3 * torch.randn(6, config.num_attention_heads, config.head_dim)
    flat = [tensor.view(-1, *tensor.shape[2:]) for tensor in (pages.keys[layer], pages.values[layer])]
    wanted = []
    for n, length in held.items():
        places = torch.arange(length)
        slots = pages.table[n][places // 7].long() * 7 + places % 7
        for tensor in flat:
            bits = torch.uint8 if dtype == torch.float8_e4m3fn else dtype  # torch places no float8
            tensor.view(bits)[slots] = rounded(torch.randn(length, *tensor.shape[1:]), dtype).view(bits)
        k, v = (tensor.float()[slots] for tensor in flat)
        sinks, window = torch_model.layers[layer].attn.sinks.detach(), config.window(layer)
        wanted.append(attention_torch(q[3 * n : 3 * n + 3], k, v, sinks=sinks, window=window))
    got = model.attend(q, batch=batch, layer=layer)
    torch.testing.assert_close(got, torch.cat(wanted), rtol=1e-4, atol=5e-6)


def test_logits_are_those_of_the_step() -> None:
    for quantize in (None, "q8", "bf12"):
        model = NativeModel(make_model(ROUND, packed=True, dtype=torch.bfloat16), quantize=quantize)
        pages = Pages(ROUND, page_size=16, num_sequences=1, dtype=torch.float32)
        hidden, logits = model.step(pages.batch([(0, draw_ids(ROUND, 5))]), needs_hidden=True)
        assert hidden is not None
        assert logits is not None
        assert torch.equal(model.logits(hidden), logits)


def test_layers_one_by_one_are_the_whole() -> None:
    torch_model = make_model(PLAIN)
    model, ids = NativeModel(torch_model), draw_ids(PLAIN, 9)
    pages = [Pages(PLAIN, page_size=16, num_sequences=1, dtype=torch.float32) for _ in range(2)]
    whole = model.step(pages[0].batch([(0, ids)]), needs_hidden=True).hidden
    batch = pages[1].batch([(0, ids)])
    x = torch_model.embed_tokens.weight[ids].detach().clone()
    for layer in range(PLAIN.num_hidden_layers):
        model.run_layers(x, batch=batch, first=layer, last=layer + 1)
    assert whole is not None
    torch.testing.assert_close(torch_model.norm(x[-1:]).detach(), whole, rtol=1e-5, atol=1e-6)


def test_experts_chosen_are_those_of_torch() -> None:
    torch_model = make_model(PLAIN)
    ids = draw_ids(PLAIN, 30)
    wanted: list[Tensor] = []

    class Recorder:
        def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
            top, indices = logits.topk(num_active)
            wanted.append(indices)
            return indices, top.softmax(-1)

    cache = KVCache(PLAIN, dtype=torch.float32)
    with torch.inference_mode():
        torch_model(
            torch.tensor(ids),
            positions=torch.arange(30),
            attention=CachedAttention(cache, num_tokens=30),
            router=Recorder(),
        )
    chosen = torch.empty(PLAIN.num_hidden_layers, 30, PLAIN.num_experts_per_tok, dtype=torch.int32)
    pages = Pages(PLAIN, page_size=16, num_sequences=1, dtype=torch.float32)
    NativeModel(torch_model).step(pages.batch([(0, ids)]), chosen=chosen)
    assert torch.equal(chosen.long(), torch.stack(wanted))


def test_an_empty_step_is_none_at_all() -> None:
    model = NativeModel(make_model(PLAIN))
    pages = Pages(PLAIN, page_size=16, num_sequences=1, dtype=torch.float32)
    full = pages.batch([(0, [1, 2])])
    empty = torch.empty(0, dtype=torch.int64)
    nothing = dataclasses.replace(
        full,
        ids=empty,
        positions=empty,
        slot_mappings=(empty, empty),
        cu_seqlens=torch.zeros(2, dtype=torch.int32),
    )
    output = model.step(nothing, out_rows=torch.empty(0, dtype=torch.int32))
    assert output.logits is not None
    assert output.logits.shape == (0, PLAIN.vocab_size)


def test_wrong_batches_are_refused() -> None:
    model = NativeModel(make_model(PLAIN))
    pages = Pages(PLAIN, page_size=16, num_sequences=1, dtype=torch.float32)
    batch = pages.batch([(0, [1, 2])])
    far = torch.tensor([0, 512])
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: model.step(dataclasses.replace(batch, ids=torch.tensor([1, 77]))), "outside the vocabulary"),
        (lambda: model.step(dataclasses.replace(batch, ids=torch.tensor([-1, 7]))), "outside the vocabulary"),
        (lambda: model.step(dataclasses.replace(batch, positions=far)), "beyond the rope tables"),
        (lambda: model.step(batch, out_rows=torch.tensor([2], dtype=torch.int32)), "out of range"),
        (lambda: dataclasses.replace(batch, positions=far.int()), r"allowed: contiguous torch.int64 \[2\]"),
        (lambda: dataclasses.replace(batch, cu_seqlens=batch.cu_seqlens.long()), "cu_seqlens"),
        (lambda: model.run_layers(torch.zeros(2, 49), batch=batch, first=0, last=1), r"allowed: contiguous float32"),
        (lambda: NativeModel(make_model(PLAIN).double()), "float32 and bfloat16"),
        (lambda: NativeModel(make_model(PLAIN), quantize="q4"), "allowed: None or 'q8' or 'bf12'"),
        (lambda: NativeModel(make_model(PLAIN), quantize="q8"), "multiple of 32"),
        (
            lambda: NativeCache([torch.zeros(2, 4, 1, 8).half()], [torch.zeros(2, 4, 1, 8).half()]),
            "bfloat16, torch.float8",
        ),
        (lambda: NativeCache([torch.zeros(2, 4, 1, 8)], [torch.zeros(2, 5, 1, 8)]), "a layer's cache is"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()


@pytest.fixture(scope="module")
def nano() -> tuple[Transformer, Transformer]:
    """In float32, and as it is shipped."""
    folder = resolve_model("nano")
    return load_model(folder, dtype=torch.float32), load_model(folder, packed_experts=True)


PROMPT = 60


@pytest.mark.parametrize("level", LEVELS)
def test_nano_says_what_float32_says(level: str, nano: tuple[Transformer, Transformer]) -> None:
    """Greedy, from a prompt of its own tokens; the logits' error is that of 16-bit activations (exact) and of bfloat16
    ones and a bfloat16 cache (the default), where torch in bfloat16 is off by 1e-2.
    """
    use_level(level)
    wide, packed = nano
    ids = draw_ids(wide.config, PROMPT)
    for exact, dtype, bound in ((True, torch.float32, 1e-3), (False, torch.bfloat16, 2e-2)):
        model = NativeModel(packed, exact=exact)
        cache = KVCache(wide.config, dtype=dtype, capacity=8)  # it grows on the way
        logits, tokens = model.next_logits(ids, cache=cache), list(ids)
        rows = [logits]
        for _ in range(20):
            tokens.append(int(logits.argmax()))
            logits = model.next_logits(tokens[-1:], cache=cache)
            rows.append(logits)
        wanted = torch_logits(wide, tokens, [len(tokens)])[PROMPT - 1 :]
        errors = (torch.cat(rows) - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        assert errors.median() <= bound
        if exact:
            assert torch.equal(torch.cat(rows).argmax(-1), wanted.argmax(-1))
