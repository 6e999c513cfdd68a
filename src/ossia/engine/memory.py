"""Whether a model fits into main memory, known before it is loaded.

Without the check the system would swap, or end the process halfway. `OSSIA_MEMORY_CHECK=0` turns it off.
"""

# D model, H heads, K KV heads, C head dim, F expert hidden, A active experts, V vocabulary

from __future__ import annotations

import dataclasses

import torch

from ossia.core.errors import NotEnoughMemoryError
from ossia.core.memory import free_memory
from ossia.core.paths import has_memory_check
from ossia.engine.build import EngineConfig
from ossia.engine.kv_cache import bytes_per_page, num_pages_for
from ossia.kernels import native
from ossia.model.checkpoint.describe import bytes_by_kind
from ossia.model.checkpoint.hf import HF_BF16, HF_MXFP4
from ossia.model.checkpoint.layout import Kind, can_pack
from ossia.model.config import PUBLISHED, ModelConfig
from ossia.model.loading import choose_device, find, is_small

GIB = 1 << 30
USUAL_CONTEXT = 8192
"""Tokens for which there must be room when nobody asks for a context: the cache then takes what is free."""
SHORTEST_CONTEXT = 1024
"""Of a context that is worth proposing."""
PROCESS_BYTES = 384 << 20
"""Python, torch and the tokenizer."""
COPY_SHARES = {"q8": 34 / 64, "bf12": 12 / 16}
"""Of a bfloat16 matrix: a byte a weight and two for 32; 12 bits."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Estimated bytes on a CPU.

    Attributes:
        weights: as they are kept.
        kv_cache: for the context.
        working: a step's activations, and the process itself.
        num_tokens: that context.
    """

    weights: int
    kv_cache: int
    working: int
    num_tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.working


def memory_need(
    config: ModelConfig, *, engine: EngineConfig | None = None, is_packed: bool = True, is_native: bool | None = None
) -> MemoryNeed:
    """What a model takes on a CPU.

    Args:
        config: its shape.
        engine: context, cache and quantisation; the defaults if None.
        is_packed: the experts are MXFP4 in the file.
        is_native: the C++ kernels run it; None for whether they are here.
    """
    engine = engine or EngineConfig()
    is_native = native.is_available() if is_native is None else is_native
    num_tokens = min(engine.context_length or USUAL_CONTEXT, config.max_position_embeddings)
    itemsize = 4 if not is_native and is_small(config) else 2
    dtype = torch.float8_e4m3fn if engine.kv_dtype == "fp8" else torch.float32 if itemsize == 4 else torch.bfloat16
    per_page = bytes_per_page(config, page_size=engine.page_size, dtype=dtype)
    kv_cache = engine.kv_cache_bytes
    if kv_cache is None:
        pages = engine.num_pages or 1 + num_pages_for(config, num_tokens=num_tokens, page_size=engine.page_size)
        kv_cache = pages * per_page
    return MemoryNeed(
        weights=_weight_bytes(config, engine, is_packed=is_packed and can_pack(config), is_native=is_native),
        kv_cache=kv_cache,
        working=PROCESS_BYTES + _step_bytes(config, engine, num_tokens=num_tokens),
        num_tokens=num_tokens,
    )


def _weight_bytes(config: ModelConfig, engine: EngineConfig, *, is_packed: bool, is_native: bool) -> int:
    if not is_native and is_small(config):
        return 2 * sum(bytes_by_kind(config, HF_BF16).values())  # float32, unpacked
    kinds = bytes_by_kind(config, HF_MXFP4 if is_packed else HF_BF16)
    total = sum(kinds.values())
    if engine.cpu_quant == "none" or not is_native:
        return total
    # Copies of fewer bits; of what they are made from only the file is left, but for q, k and v, copies already.
    D, H, K, C = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    qkv = 2 * config.num_hidden_layers * (H + 2 * K) * C * D
    rounded = kinds[Kind.ATTENTION] + kinds[Kind.HEAD]
    return total - rounded + int(rounded * COPY_SHARES[engine.cpu_quant]) + qkv


def _step_bytes(config: ModelConfig, engine: EngineConfig, *, num_tokens: int) -> int:
    """Float32 activations of the largest step, and logits of all sequences."""
    D, F, A = config.hidden_size, config.intermediate_size, config.num_experts_per_tok
    H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    width = 4 * D + 2 * (H + K) * C + 3 * A * F + A * D
    return 4 * (min(engine.max_num_batched_tokens, num_tokens) * width + engine.max_num_seqs * config.vocab_size)


def check_memory(name: str, *, device: str = "cpu", engine: EngineConfig | None = None) -> None:
    """Refuse a model that does not fit into the main memory that is free; a GPU's is not looked at.

    Raises:
        NotEnoughMemoryError: it does not fit; the message says what it needs, what there is, and what would fit.
        ModelNotFoundError, CheckpointError, InvalidInputError: as `find` and `choose_device`.
    """
    free = free_memory()
    if free is None or not has_memory_check() or choose_device(device).type != "cpu":
        return
    found = find(name)
    if found.folder is None:
        return  # loading says that it has to be fetched
    engine = engine or EngineConfig()
    is_packed = found.format != HF_BF16.name
    need = memory_need(found.config, engine=engine, is_packed=is_packed)
    if need.total <= free:
        return
    fitting = what_fits(found.config, free=free, engine=engine, is_packed=is_packed)
    raise NotEnoughMemoryError(
        f"{name} needs about {_gib(need.total)} of memory on a CPU (weights {_gib(need.weights)}, KV cache for "
        f"{need.num_tokens:,} tokens {_gib(need.kv_cache)}, working space {_gib(need.working)}), but {_gib(free)} are "
        f"free. What would fit: {'; '.join(fitting)}. OSSIA_MEMORY_CHECK=0 loads it all the same, and the system may "
        "swap or end the process",
        needed=need.total,
        free=free,
    )


def what_fits(config: ModelConfig, *, free: int, engine: EngineConfig, is_packed: bool) -> list[str]:
    """Changes of which each makes a model fit, or other models that do."""

    def fits(**changes: object) -> bool:
        changed = dataclasses.replace(engine, **changes)  # pyright: ignore[reportArgumentType]
        return memory_need(config, engine=changed, is_packed=is_packed).total <= free

    found: list[str] = []
    context = memory_need(config, engine=engine, is_packed=is_packed).num_tokens // 2
    own_cache = {"kv_cache_bytes": None, "num_pages": None}
    while context >= SHORTEST_CONTEXT and not fits(context_length=context, **own_cache):
        context //= 2
    if context >= SHORTEST_CONTEXT:
        found.append(f"a context of {context:,} tokens (--context-length)")
    if engine.kv_dtype != "fp8" and fits(kv_dtype="fp8"):
        found.append("a KV cache of 8 bits (--kv-dtype fp8)")
    if engine.cpu_quant == "none" and native.is_available() and fits(cpu_quant="q8"):
        found.append("attention and lm_head in 8 bits (--cpu-quant q8)")
    if not is_packed and can_pack(config) and memory_need(config, engine=engine, is_packed=True).total <= free:
        found.append("the same model with experts in MXFP4 (ossia convert --format hf-mxfp4)")
    smaller = PUBLISHED["openai/gpt-oss-20b"]
    if config.num_hidden_layers > smaller.num_hidden_layers and memory_need(smaller).total <= free:
        found.append("openai/gpt-oss-20b")
    return [*found, "nano"]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
