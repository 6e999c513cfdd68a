"""Transformers on layers of gpt-oss-20b's shape in bfloat16 on the CPU, for comparison with `cpu_20b`.

python -m benchmarks.kernels.random_checkpoint /tmp/r4 --layers 4
python -m benchmarks.kernels.cpu_transformers /tmp/r4        prints the JSON

Two layers, then one of them; the difference is a layer, and 24 are extrapolated. Experts are unpacked to bfloat16, as
Transformers has no MXFP4 kernel for a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ossia.evals.environment import describe

PREFILL, DECODED, ROUNDS, WHOLE = 512, 8, 3, 24


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(json.dumps(measure(parser.parse_args().folder), indent=1))


def measure(folder: Path) -> dict[str, Any]:
    """Tokens a second of 24 layers, and the seconds that they are from."""
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        dtype=torch.bfloat16,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    ).eval()
    layers = model.model.layers
    seconds: dict[str, dict[str, float]] = {}
    for count in (2, 1):
        model.model.layers = layers[:count]
        model.config.num_hidden_layers = count
        seconds[str(count)] = time_steps(model)
    whole = {
        name: seconds["1"][name] + (WHOLE - 1) * max(seconds["2"][name] - seconds["1"][name], 0.0)
        for name in seconds["1"]
    }
    return {
        "environment": {**describe(), "transformers": transformers.__version__},
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "decode_tokens_per_second": round(1 / whole["decode"], 3),
        "prefill_tokens_per_second": round(PREFILL / whole["prefill"], 2),
    }


@torch.inference_mode()
def time_steps(model: Any) -> dict[str, float]:
    """Seconds of a prompt and of a token after it, medians."""
    ids = torch.randint(1000, 100_000, (1, PREFILL))
    prompts: list[float] = []
    tokens: list[float] = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        prompts.append(time.perf_counter() - begin)
        for _ in range(DECODED):
            begin = time.perf_counter()
            out = model(torch.tensor([[5]]), past_key_values=out.past_key_values, use_cache=True)
            tokens.append(time.perf_counter() - begin)
    return {"prefill": statistics.median(prompts), "decode": statistics.median(tokens)}


if __name__ == "__main__":
    main()
