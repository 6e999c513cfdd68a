"""From a loaded model to an engine that runs it."""

from __future__ import annotations

import dataclasses
import gc
import logging

import torch

from ossia.core.errors import InvalidInputError
from ossia.engine.blocks import BlockManager
from ossia.engine.engine import Engine
from ossia.engine.kv_cache import DEFAULT_PAGE_SIZE, PagedKVCache, has_full_layers, has_sliding_layers
from ossia.engine.native_runner import NativeRunner
from ossia.engine.routing import RoutingPages
from ossia.engine.runner import Runner, TorchRunner, choose_page_count
from ossia.engine.scheduler import Scheduler, SchedulerConfig
from ossia.engine.speculate import LookupConfig, PromptLookup
from ossia.kernels import native
from ossia.model.loading import LoadedModel
from ossia.model.transformer import Experts, Transformer

logger = logging.getLogger(__name__)

KV_DTYPES = ("auto", "fp8")
CPU_QUANT = ("none", "q8", "bf12")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Sizes and switches of an engine.

    Attributes:
        max_num_seqs: answers that run at once.
        max_num_batched_tokens: tokens that one step computes; a longer prompt is computed in chunks.
        max_queue: answers that wait at once; more are refused.
        context_length: tokens of prompt and answer together; None for the model's own limit.
        num_pages: of the KV cache; None for what fits into `kv_cache_bytes`.
        kv_cache_bytes: memory for the KV cache; None for a share of what is free.
        page_size: tokens a page.
        kv_dtype: "auto" keeps keys and values in the model's dtype, "fp8" in float8_e4m3fn: half the memory of
            bfloat16, at some loss of accuracy.
        has_prefix_cache: keep the pages of what was computed, for requests that begin alike.
        num_drafts: draft so many tokens by prompt lookup at most; 0 for none.
        cpu_quant: for the C++ kernels on a CPU, "q8" keeps attention's projections and lm_head in 8 bits, "bf12" in 12
            bits without loss.
        records_routing: tell with each answer which experts its tokens went to (see `engine.routing`).
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_queue: int = 1024
    context_length: int | None = None
    num_pages: int | None = None
    kv_cache_bytes: int | None = None
    page_size: int = DEFAULT_PAGE_SIZE
    kv_dtype: str = "auto"
    has_prefix_cache: bool = True
    num_drafts: int = 0
    cpu_quant: str = "none"
    records_routing: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("kv_dtype", KV_DTYPES), ("cpu_quant", CPU_QUANT)):
            value = getattr(self, name)
            if value not in allowed:
                raise InvalidInputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}", param=name)
        if not 0 <= self.num_drafts <= 64:
            raise InvalidInputError(f"num_drafts is {self.num_drafts}; allowed: 0 to 64", param="num_drafts")


def build_engine(loaded: LoadedModel, *, config: EngineConfig | None = None, has_overlap: bool | None = None) -> Engine:
    """Make an engine for a model; takes the KV cache's memory.

    Args:
        loaded: the model.
        config: sizes and switches.
        has_overlap: see `Engine`; None for overlapping steps on a GPU only.

    Raises:
        InvalidInputError: sizes that make no engine, or too little memory.
    """
    config = config or EngineConfig()
    model, shape = loaded.model, loaded.model.config
    weight = model.norm.weight
    dtype = torch.float8_e4m3fn if config.kv_dtype == "fp8" else weight.dtype
    num_pages = config.num_pages
    if num_pages is None:
        num_pages = choose_page_count(
            shape,
            device=weight.device,
            dtype=dtype,
            page_size=config.page_size,
            num_bytes=config.kv_cache_bytes,
            reserved=loaded.mapped_bytes,
            max_num_seqs=config.max_num_seqs,
        )
    cache = PagedKVCache(shape, num_pages=num_pages, page_size=config.page_size, dtype=dtype, device=weight.device)
    routing = None
    if config.records_routing:
        routing = RoutingPages(shape, num_pages=num_pages, page_size=config.page_size, device=weight.device)
    blocks = BlockManager(
        num_pages,
        page_size=config.page_size,
        window=shape.sliding_window,
        has_full_layers=has_full_layers(shape),
        has_sliding_layers=has_sliding_layers(shape),
        enable_prefix_cache=config.has_prefix_cache,
    )
    limits = SchedulerConfig(
        context_length=config.context_length or loaded.context_length,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_queue=config.max_queue,
        max_drafts=config.num_drafts,
    )
    return Engine(
        make_runner(
            model,
            cache=cache,
            cpu_quant=config.cpu_quant,
            max_num_tokens=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
            context_length=limits.context_length,
            routing=routing,
        ),
        scheduler=Scheduler(limits, blocks=blocks),
        tokenizer=loaded.tokenizer,
        stop_ids=loaded.stop_ids,
        lookup=PromptLookup(LookupConfig(max_drafts=config.num_drafts)) if config.num_drafts else None,
        has_overlap=weight.device.type == "cuda" if has_overlap is None else has_overlap,
        routing=routing,
        device=weight.device,
    )


def make_runner(
    model: Transformer,
    *,
    cache: PagedKVCache,
    max_num_tokens: int,
    max_num_seqs: int,
    context_length: int,
    cpu_quant: str = "none",
    routing: RoutingPages | None = None,
) -> Runner:
    """The fastest runner for where the model lies: kernels of our own where they take it, else plain torch.

    On a GPU it captures its graphs, some seconds, and takes the model's weights over.

    Raises:
        InvalidInputError: 8-bit weights are wanted where the C++ kernels cannot run.
    """
    device = model.norm.weight.device
    is_native = device.type == "cpu" and native.is_available()
    if cpu_quant != "none" and not is_native:
        raise InvalidInputError(
            f"cpu_quant is {cpu_quant!r}, which needs the C++ kernels of the CPU ({native.info().reason}); use "
            "cpu_quant 'none'",
            param="cpu_quant",
        )
    if is_native:
        return NativeRunner(model, cache=cache, quantize=None if cpu_quant == "none" else cpu_quant, routing=routing)
    if device.type == "cpu":
        logger.warning(
            "torch runs the model on the CPU, slowly; the C++ kernels are not in use: %s", native.info().reason
        )
    if can_use_gpu_kernels(model, cache=cache):
        from ossia.engine.cuda_runner import CudaRunner

        runner = CudaRunner(
            model,
            cache=cache,
            max_num_seqs=max_num_seqs,
            max_num_tokens=max_num_tokens,
            context_length=context_length,
            routing=routing,
        )
        seconds = runner.warm_up()
        # What lives as long as the process is not looked at again: a full collection stops all for 0.1 s and more.
        gc.collect()
        gc.freeze()
        logger.info(
            "captured the decode graphs in %.1f s, made prompts and sampling ready in %.1f s",
            seconds.graphs,
            seconds.prompts,
        )
        return runner
    return TorchRunner(model, cache=cache, routing=routing)


def can_use_gpu_kernels(model: Transformer, *, cache: PagedKVCache) -> bool:
    """Whether the GPU kernels take this model: Hopper or newer, bfloat16, packed experts, both kinds of layer, and
    shapes that fill their tiles."""
    config, weight = model.config, model.norm.weight
    if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < (9, 0):
        return False
    is_packed = all(module.is_packed for module in model.modules() if isinstance(module, Experts))
    has_both = has_full_layers(config) and has_sliding_layers(config)
    fits = config.head_dim == 64 and config.num_attention_heads // config.num_key_value_heads <= 8
    return weight.dtype == cache.dtype == torch.bfloat16 and is_packed and has_both and fits
