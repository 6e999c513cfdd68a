"""Where one decode step's time goes: clock readings at the borders of step.cu's phases, over all blocks and layers.

    python benchmarks/kernels/gpu_step_marks.py

A phase's work is the mean over blocks; its wait is from there to the moment when the last block has arrived and this
one has seen it. The readings cost a few percent.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_decode import PAGE, Cache, median_ms

from ossia.kernels._cuda import driver
from ossia.kernels.gpu import step
from ossia.kernels.gpu.layers import GpuLayers
from ossia.model.config import PUBLISHED
from ossia.model.random_weights import fill_randomly
from ossia.model.transformer import Transformer

VARIANTS = ((12, 7), (8, 8))  # warps and stages of the ring
NAMES = (
    *("add and norm", "qkv", "(wait)", "-"),
    *("attend, wait, load", "out", "(wait)", "-"),
    *("norm, route, wait, choose", "gate_up", "(wait)", "-"),
    *("stage hidden", "down", "(wait)"),
)


def main() -> None:
    torch.manual_seed(0)
    device, config = torch.device("cuda:0"), PUBLISHED["openai/gpt-oss-20b"]
    model = Transformer(config, dtype=torch.bfloat16, device=device, packed_experts=True)
    fill_randomly(model)
    layers = None
    for context in (192, 32000):
        cache = Cache(config, num_seqs=1, length=context + PAGE, device=device)
        if layers is None:
            layers = GpuLayers(model, kv_layers=cache.layers, device=device)
        for warps, stages in VARIANTS:
            step._WARPS, step._STAGES = warps, stages
            layers.use_cache(cache.layers)
            measure(layers, cache, context=context, warps=warps, stages=stages)


def measure(layers: GpuLayers, cache: Cache, *, context: int, warps: int, stages: int) -> None:
    device, config = layers.device, layers.config
    blocks = torch.cuda.get_device_properties(device).multi_processor_count
    marks = torch.zeros(config.num_hidden_layers, blocks, 16, dtype=torch.int64, device=device)
    text = f"#define STEP_WARPS {warps}\n#define STEP_STAGES {stages}\n" + driver.read_source("step")
    plain = driver.Module(text, name="step.cu", device=device).kernel("decode_step_64")
    marked = driver.Module(f"#define OSSIA_MARKS {marks.data_ptr()}ull\n{text}", name="step.cu", device=device)
    before, kernel = driver.load_kernel, marked.kernel("decode_step_64")
    inputs = cache.decode_inputs(1, context)
    inputs.token_ids.random_(0, config.vocab_size)
    driver.load_kernel = lambda *_: plain
    ms = median_ms(lambda: layers.decode(inputs), rounds=20)
    driver.load_kernel = lambda *_: kernel
    for _ in range(5):
        layers.decode(inputs)
    torch.cuda.synchronize()
    driver.load_kernel = before
    cycles = (marks[2:, :, 1:] - marks[2:, :, :-1]).float()
    print(
        f"context {context}, {warps} warps, {stages} stages: {ms:.3f} ms; us at 1.755 GHz: mean, slowest, fastest block"
    )
    for parity, kind in ((0, "sliding"), (1, "full")):
        if parity == 1 and context < 1000:
            continue
        layer_cycles = cycles[parity::2]
        total = 0.0
        for i, name in enumerate(NAMES):
            part = layer_cycles[:, :, i] / 1755
            total += float(part.mean())
            slow, fast = part.amax(dim=1).mean(), part.amin(dim=1).mean()
            if name != "-":
                print(f"  {kind:8} {name:25} {part.mean():7.2f} {slow:7.2f} {fast:7.2f}")
        print(f"  {kind:8} {'layer':25} {total:7.2f}")


if __name__ == "__main__":
    main()
