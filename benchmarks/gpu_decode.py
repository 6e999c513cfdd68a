"""Decode steps and prompts of gpt-oss's exact shapes on one GPU, over random weights, beside the memory's limit.

    python benchmarks/gpu_decode.py --model 20b --batch 1 8 32 64 128 --prefill 8192 --json out.json

A step is what a server replays: one CUDA graph from token ids to the largest logit's id. Random weights: packed bytes
uniform, scale bytes 119 to 121, norms 1, embeddings and sinks N(0, 1), the rest N(0, 0.02), so that routing spreads
over the experts as random inputs spread it; the number of distinct experts a layer is printed. The limit is the bytes
a step must read (weights of the chosen experts, all other weights once, keys and values) over the bandwidth that a
plain copy reaches on this GPU; prompts are set against the multiplications that they need.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossia.kernels.gpu.layers import GpuLayers, PagedGroup, StepInputs
from ossia.model.config import PUBLISHED, ModelConfig
from ossia.model.cost import prompt_flops, step_bytes
from ossia.model.loading import let_memory_grow
from ossia.model.random_weights import fill_randomly
from ossia.model.transformer import Transformer

PAGE = 16
# vLLM 0.26.0 on the same kind of GPU, ms a step at prompt 128 (or ms for a prompt): the peer of each row.
VLLM_STEP = {
    ("20b", 1): 3.28,
    ("20b", 8): 5.45,
    ("20b", 32): 7.05,
    ("20b", 64): 7.54,
    ("20b", 128): 10.0,
    ("120b", 1): 4.66,
    ("120b", 8): 9.58,
    ("120b", 32): 19.6,
    ("120b", 64): 25.6,
}
VLLM_LONG = {("20b", 32000): 3.62}
VLLM_PROMPT = {("20b", 8192): 127.5, ("20b", 32768): 640.0, ("120b", 8192): 207.0}


class Cache:
    """Pages for `num_seqs` sequences of a length, random keys and values, pages in random order."""

    def __init__(
        self, config: ModelConfig, *, num_seqs: int, length: int, device: torch.device, shares_sliding: bool = False
    ) -> None:
        self.config, self.device = config, device
        self.columns = -(-length // PAGE)
        num_pages = num_seqs * self.columns + 1
        shape = (num_pages, PAGE, config.num_key_value_heads, config.head_dim)

        def pair() -> tuple[Tensor, Tensor]:
            return (torch.randn(shape, device=device).bfloat16(), torch.randn(shape, device=device).bfloat16())

        # A server keeps only the window of sliding layers; where memory is scarce, let them all use one pair.
        shared = pair() if shares_sliding else None
        layers = range(config.num_hidden_layers)
        self.layers = [shared if shared and config.window(layer) else pair() for layer in layers]
        self.table = (torch.randperm(num_pages - 1, device=device) + 1).int().view(num_seqs, self.columns)

    def decode_inputs(self, num_seqs: int, context: int) -> StepInputs:
        table = self.table[:num_seqs].contiguous()
        position = context - 1
        slots = table[:, position // PAGE].long() * PAGE + position % PAGE
        group = PagedGroup(table, slots)
        return StepInputs(
            token_ids=torch.zeros(num_seqs, dtype=torch.int64, device=self.device),
            positions=torch.full((num_seqs,), position, device=self.device),
            cu_seqlens_q=torch.arange(num_seqs + 1, dtype=torch.int32, device=self.device),
            context_lens=torch.full((num_seqs,), context, dtype=torch.int32, device=self.device),
            full=group,
            sliding=group,
            max_queries=1,
        )

    def prompt_inputs(self, length: int, vocab: int) -> StepInputs:
        table = self.table[:1].contiguous()
        positions = torch.arange(length, device=self.device)
        group = PagedGroup(table, table[0].long()[positions // PAGE] * PAGE + positions % PAGE)
        return StepInputs(
            token_ids=torch.randint(0, vocab, (length,), device=self.device),
            positions=positions,
            cu_seqlens_q=torch.tensor([0, length], dtype=torch.int32, device=self.device),
            context_lens=torch.tensor([length], dtype=torch.int32, device=self.device),
            full=group,
            sliding=group,
            max_queries=length,
        )


def graph_of(work: Any) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def median_ms(work: Any, *, rounds: int) -> float:
    for _ in range(3):
        work()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for begin, end in pairs:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def copy_bandwidth() -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_(0, 256)
    target = torch.empty_like(source)
    return 2 * source.numel() / (median_ms(lambda: target.copy_(source), rounds=10) * 1e-3)


def distinct_experts(layers: GpuLayers, inputs: StepInputs) -> float:
    """Of a step, the mean over layers."""
    N = inputs.token_ids.shape[0]
    if N == 1:
        return layers.config.num_experts_per_tok
    seen = []
    inner = layers._decode_layer

    def counted(*args: Any) -> None:
        inner(*args)
        chosen = layers._workspaces[N].experts.routing.pair_expert[: N * layers.config.num_experts_per_tok]
        seen.append(int(chosen.unique().numel()))

    layers._decode_layer = counted  # type: ignore[method-assign]
    layers.decode(inputs)
    layers._decode_layer = inner  # type: ignore[method-assign]
    return statistics.mean(seen)


def bench_step(
    layers: GpuLayers, cache: Cache, *, num_seqs: int, context: int, bandwidth: float, name: str
) -> dict[str, Any]:
    inputs = cache.decode_inputs(num_seqs, context)
    pool = torch.randint(0, layers.config.vocab_size, (64, num_seqs), device=layers.device)
    chosen = torch.empty(num_seqs, dtype=torch.int64, device=layers.device)

    def work() -> None:
        torch.argmax(layers.logits(layers.decode(inputs)), dim=-1, out=chosen)

    inputs.token_ids.copy_(pool[0])
    num_distinct = distinct_experts(layers, inputs)
    began = time.perf_counter()
    graph = graph_of(work)
    captured = time.perf_counter() - began
    count = iter(range(10**9))

    def step() -> None:
        inputs.token_ids.copy_(pool[next(count) % 64])
        graph.replay()

    ms = median_ms(step, rounds=60)
    limit = step_bytes(layers.config, num_seqs=num_seqs, context=context, num_experts=num_distinct) / bandwidth * 1e3
    peer = VLLM_LONG.get((name, context)) if context > 4096 else VLLM_STEP.get((name, num_seqs))
    return {
        "row": f"{name}, batch {num_seqs}" + (f", context {context}" if context > 4096 else ""),
        "ms": ms,
        "limit_ms": limit,
        "share": limit / ms,
        "tokens_per_s": num_seqs / ms * 1e3,
        "vllm_ms": peer,
        "ratio": peer / ms if peer else None,
        "distinct_experts": num_distinct,
        "capture_s": captured,
    }


def bench_prompt(
    layers: GpuLayers, cache: Cache, *, length: int, flops: float, name: str, chunk: int
) -> dict[str, Any]:
    whole = cache.prompt_inputs(length, layers.config.vocab_size)

    def work() -> Tensor:
        hidden = None
        for begin in range(0, length, chunk):
            part = chunk_of(whole, begin, min(begin + chunk, length))
            hidden = layers.forward(part)
        assert hidden is not None
        return layers.logits(hidden[-1:])

    ms = median_ms(work, rounds=5)
    limit = prompt_flops(layers.config, length=length) / flops * 1e3
    peer = VLLM_PROMPT.get((name, length))
    return {
        "row": f"{name}, prefill {length}",
        "ms": ms,
        "limit_ms": limit,
        "share": limit / ms,
        "tokens_per_s": length / ms * 1e3,
        "vllm_ms": peer,
        "ratio": peer / ms if peer else None,
    }


def difference(layers: GpuLayers, cache: Cache) -> float:
    """Between the two ways to decode one sequence, at a few contexts: the median relative distance."""
    seen = []
    for context in (20, 100, 150, 180):
        inputs = cache.decode_inputs(1, context)
        inputs.token_ids.random_(0, layers.config.vocab_size)
        one = layers.decode(inputs).float().clone()
        was, layers._step.is_possible = layers._step.is_possible, False
        other = layers.decode(inputs).float()
        layers._step.is_possible = was
        seen.append(float((one - other).norm() / other.norm()))
    return statistics.median(seen)


def chunk_of(whole: StepInputs, begin: int, end: int) -> StepInputs:
    assert whole.full is not None
    group = PagedGroup(whole.full.block_table, whole.full.slot_mapping[begin:end])
    device = whole.token_ids.device
    return StepInputs(
        token_ids=whole.token_ids[begin:end],
        positions=whole.positions[begin:end],
        cu_seqlens_q=torch.tensor([0, end - begin], dtype=torch.int32, device=device),
        context_lens=torch.tensor([end], dtype=torch.int32, device=device),
        full=group,
        sliding=group,
        max_queries=end - begin,
    )


def matmul_rate() -> float:
    """Multiply-adds times two a second of a large bfloat16 product."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    return 2 * 8192**3 / (median_ms(lambda: a @ b, rounds=10) * 1e-3)


def print_rows(rows: list[dict[str, Any]]) -> None:
    print("| | ms | limit ms | share of limit | tokens/s | vLLM 0.26.0 ms | times vLLM | distinct experts |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        peer, ratio, seen = row["vllm_ms"], row["ratio"], row.get("distinct_experts")
        print(
            f"| {row['row']} | {row['ms']:.3f} | {row['limit_ms']:.3f} | {row['share']:.0%} "
            f"| {row['tokens_per_s']:,.0f} | "
            f"{peer or ''} | {f'{ratio:.2f}' if ratio else ''} | {f'{seen:.1f}' if seen else ''} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("20b", "120b"), default="20b")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32, 64, 128])
    parser.add_argument("--context", type=int, default=192, help="tokens held: a prompt of 128 and 64 more")
    parser.add_argument("--long", type=int, nargs="*", default=[], help="further contexts, for batch 1")
    parser.add_argument("--prefill", type=int, nargs="*", default=[])
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a prompt at a time")
    parser.add_argument("--memory-gb", type=float, help="let PyTorch take only so much of the card")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()

    let_memory_grow()
    torch.manual_seed(0)
    device = torch.device("cuda:0")
    config = PUBLISHED[f"openai/gpt-oss-{options.model}"]
    bandwidth, flops = copy_bandwidth(), matmul_rate()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    if options.memory_gb:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(options.memory_gb * 1e9 / total)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    print(f"{driver}; torch {torch.__version__}; copy {bandwidth / 1e9:,.0f} GB/s; matmul {flops / 1e12:,.0f} TFLOP/s")
    model = Transformer(config, dtype=torch.bfloat16, device=device, packed_experts=True)
    fill_randomly(model)
    longest = max([options.context, *options.long, *options.prefill])
    seqs = max([1, *options.batch])
    layers: GpuLayers | None = None
    rows = []

    def cache_for(num_seqs: int, length: int) -> Cache:
        nonlocal layers
        shares = options.memory_gb is not None
        cache = Cache(config, num_seqs=num_seqs, length=length, device=device, shares_sliding=shares)
        if layers is None:
            torch.cuda.synchronize()
            began = time.perf_counter()
            layers = GpuLayers(model, kv_layers=cache.layers, device=device)
            torch.cuda.synchronize()
            took = time.perf_counter() - began
            size = sum(layer.gate_up.numel() + layer.down.numel() for layer in layers.layers)
            print(f"packed {size / 2**30:.1f} GiB in {took:.2f} s, {size / took / 1e9:.0f} GB/s")
        layers.use_cache(cache.layers)
        return cache

    cache = cache_for(seqs, options.context + PAGE)
    assert layers is not None
    common = {"bandwidth": bandwidth, "name": options.model}
    rows += [bench_step(layers, cache, num_seqs=n, context=options.context, **common) for n in options.batch]
    layers._workspaces.clear()
    if longest > options.context:
        cache = cache_for(1, longest + PAGE)
        rows += [bench_step(layers, cache, num_seqs=1, context=context, **common) for context in options.long]
        prompt = {"flops": flops, "name": options.model, "chunk": options.chunk}
        rows += [bench_prompt(layers, cache, length=length, **prompt) for length in options.prefill]
    print_rows(rows)
    print(f"one kernel against seven a layer, one sequence: {difference(layers, cache):.1e} of the norm")
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    print(f"peak memory {allocated / 1e9:.2f} GB in tensors, {reserved / 1e9:.2f} GB reserved")
    if options.json:
        facts = {"gpu": driver, "torch": torch.__version__, "bandwidth": bandwidth, "flops": flops, "rows": rows}
        options.json.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
