"""Where one decode step's time goes: clock readings at the borders of the phases of step.cu, over all blocks and layers.

    python benchmarks/kernels/gpu_step_marks.py

A phase's work is the mean over blocks; its wait is from there to the moment when the last block has arrived and this one
has seen it. The readings cost a few percent.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_decode import PAGE, Cache, fill_randomly, published_config

from ossia.kernels._cuda import driver
from ossia.kernels.gpu.layers import GpuLayers
from ossia.model.transformer import Transformer

NAMES = (
    *("add and norm", "qkv", "(wait)", "attend", "(wait)", "out", "(wait)", "norm and route", "(wait)"),
    *("choose and fetch", "gate_up", "(wait)", "stage hidden", "down", "(wait)"),
)


def main() -> None:
    torch.manual_seed(0)
    device, config = torch.device("cuda:0"), published_config("20b")
    model = Transformer(config, dtype=torch.bfloat16, device=device, packed_experts=True)
    fill_randomly(model)
    for context in (192, 32000):
        cache = Cache(config, num_seqs=1, length=context + PAGE, device=device)
        if context == 192:
            layers = GpuLayers(model, kv_layers=cache.layers, device=device)
        layers.use_cache(cache.layers)
        blocks = torch.cuda.get_device_properties(device).multi_processor_count
        marks = torch.zeros(config.num_hidden_layers, blocks, 16, dtype=torch.int64, device=device)
        source = f"#define OSSIA_MARKS {marks.data_ptr()}ull\n" + driver.read_source("step")
        kernel = driver.Module(source, name="step.cu", device=device).kernel("decode_step_64")
        plain, driver.load_kernel = driver.load_kernel, lambda *_: kernel
        inputs = cache.decode_inputs(1, context)
        for _ in range(5):
            inputs.token_ids.random_(0, config.vocab_size)
            layers.decode(inputs)
        torch.cuda.synchronize()
        driver.load_kernel = plain
        cycles = (marks[2:, :, 1:] - marks[2:, :, :-1]).float()
        print(f"context {context}: us at 1.755 GHz; mean over blocks, the slowest block, the fastest")
        for parity, kind in ((0, "sliding"), (1, "full")):
            layer_cycles = cycles[parity::2]
            total = 0.0
            for i, name in enumerate(NAMES):
                part = layer_cycles[:, :, i] / 1755
                total += float(part.mean())
                slow, fast = part.amax(dim=1).mean(), part.amin(dim=1).mean()
                print(f"  {kind:8} {name:18} {part.mean():7.2f} {slow:7.2f} {fast:7.2f}")
            print(f"  {kind:8} {'layer':18} {total:7.2f}")


if __name__ == "__main__":
    main()
