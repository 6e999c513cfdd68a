"""nano on the CPU, the C++ kernels beside torch: model steps at batch 1 and 16, and the accuracy of their logits.

python -m benchmarks.kernels.cpu_nano            writes benchmarks/results/cpu-nano.md and .json
python -m benchmarks.kernels.cpu_nano --json     prints the JSON and writes nothing
"""

# T tokens, N sequences, V vocabulary

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from benchmarks.kernels.cpu_20b import make_batch, make_cache
from benchmarks.timing import tell
from torch import Tensor

from ossia.evals.environment import describe
from ossia.evals.report import markdown_table
from ossia.kernels import native
from ossia.kernels.native_model import NativeModel
from ossia.model.attention import KVCache
from ossia.model.checkpoint.load import load_model, resolve_model
from ossia.model.generate import next_logits
from ossia.model.transformer import Transformer

COMMAND = "python -m benchmarks.kernels.cpu_nano"
PROMPT, ROUNDS, STEPS = 128, 15, 20
NextLogits = Callable[..., Tensor]


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    options = parser.parse_args()
    record = measure()
    tell(record, render_page(record), name="cpu-nano", as_json=options.json)


def measure() -> dict[str, Any]:
    """All figures, as JSON types. One thread each: so small a model runs on one, and two libraries then compare."""
    torch.set_num_threads(1)
    native.set_num_threads(1)
    folder = resolve_model("nano")
    wide, packed = load_model(folder, dtype=torch.float32), load_model(folder, packed_experts=True)
    rounded = load_model(folder, dtype=torch.bfloat16)
    subjects = {
        "default": NativeModel(packed),
        "exact": NativeModel(packed, exact=True),
        "8-bit attention and lm_head": NativeModel(packed, quantize="q8"),
    }
    ids = text_ids(wide)
    reference = logits_of(lambda new, cache: next_logits(wide, new, cache=cache), wide, ids, dtype=torch.float32)
    accuracy = {"torch, bfloat16": compare(logits_of(as_call(rounded), rounded, ids), reference)}
    for name, subject in subjects.items():
        accuracy[f"native, {name}"] = compare(logits_of(as_call(subject), wide, ids), reference)
    return {
        "command": COMMAND,
        "environment": describe(),
        "level": native.info().level,
        "speed": measure_speed(wide, rounded, subjects),
        "accuracy": accuracy,
    }


def as_call(model: Transformer | NativeModel) -> NextLogits:
    """Both kinds of model, as one function."""
    if isinstance(model, NativeModel):
        return lambda new, cache: model.next_logits(new, cache=cache)
    return lambda new, cache: next_logits(model, new, cache=cache)


def text_ids(model: Transformer) -> list[int]:
    """What nano says after a beginning: real tokens, at which its logits mean something."""
    cache = KVCache(model.config, dtype=torch.float32)
    ids = [100, 200, 300]
    logits = next_logits(model, ids, cache=cache)
    while len(ids) < PROMPT + 100:
        ids.append(int(logits.argmax()))
        logits = next_logits(model, ids[-1:], cache=cache)
    return ids


def logits_of(
    call: NextLogits, model: Transformer, ids: Sequence[int], *, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """After a prompt, and after each token that follows it: [T, V]."""
    cache = KVCache(model.config, dtype=dtype)
    rows = [call(ids[:PROMPT], cache=cache)]
    rows += [call([token], cache=cache) for token in ids[PROMPT:]]
    return torch.cat(rows)


def compare(logits: Tensor, reference: Tensor) -> dict[str, float]:
    """How far logits are from float32's: in norm, in the distribution (nats), and in the likeliest token."""
    error = (logits - reference).norm(dim=-1) / reference.norm(dim=-1)
    wanted, got = reference.log_softmax(-1), logits.log_softmax(-1)
    divergence = (wanted.exp() * (wanted - got)).sum(-1)
    return {
        "relative_error": float(f"{error.mean():.3g}"),
        "divergence": float(f"{divergence.mean():.3g}"),
        "same_token": round(float((logits.argmax(-1) == reference.argmax(-1)).float().mean()), 4),
    }


def measure_speed(wide: Transformer, rounded: Transformer, subjects: dict[str, NativeModel]) -> dict[str, Any]:
    """CPU seconds of torch (the faster of float32 and bfloat16) and ours, in turns; medians."""
    config = wide.config
    ours = subjects["default"]
    caches = {id(model): KVCache(config, dtype=model.norm.weight.dtype, capacity=1024) for model in (wide, rounded)}
    native_cache = KVCache(config, capacity=1024)
    pages = make_cache(config, num_sequences=16)
    batch = make_batch(config, pages, num_sequences=16, num_tokens=1, start=PROMPT)
    prompt = list(range(1, 1 + PROMPT))

    def decode(call: NextLogits, cache: KVCache) -> None:
        cache.length = PROMPT
        for _ in range(STEPS):
            call([5], cache=cache)

    def prefill(call: NextLogits, cache: KVCache) -> None:
        cache.length = 0
        call(prompt, cache=cache)

    work: dict[str, Callable[[], object]] = {}
    for name, call, cache in (
        ("torch float32", as_call(wide), caches[id(wide)]),
        ("torch bfloat16", as_call(rounded), caches[id(rounded)]),
        ("native", as_call(ours), native_cache),
    ):
        work[f"{name}, prefill"] = lambda call=call, cache=cache: prefill(call, cache)
        work[f"{name}, decode"] = lambda call=call, cache=cache: decode(call, cache)
    work["native, decode 16"] = lambda: ours.step(batch)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, call in work.items():
            begin = time.process_time()
            call()
            seconds[name].append(time.process_time() - begin)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rates = {
        name: round((PROMPT if "prefill" in name else 16 if "16" in name else STEPS) / value, 1)
        for name, value in median.items()
    }
    best = max(rates["torch float32, decode"], rates["torch bfloat16, decode"])
    return {
        "tokens_per_cpu_second": rates,
        "decode_ratio": round(rates["native, decode"] / best, 2),
        "prefill_ratio": round(
            rates["native, prefill"] / max(rates["torch float32, prefill"], rates["torch bfloat16, prefill"]), 2
        ),
        "batch_16_gain": round(rates["native, decode 16"] / rates["native, decode"], 2),
    }


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    environment, speed = record["environment"], record["speed"]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    rates = [[name, f"{value:,.0f}"] for name, value in speed["tokens_per_cpu_second"].items()]
    accuracy = [
        [name, f"{row['relative_error']:.2g}", f"{row['divergence']:.2g}", f"{row['same_token']:.1%}"]
        for name, row in record["accuracy"].items()
    ]
    return "\n".join(
        [
            "# nano on the C++ kernels",
            "",
            f"One thread, level {record['level']}; tokens a second of CPU time, medians of {ROUNDS} rounds in turns.",
            f"The prompt has {PROMPT} tokens; decode 16 is a step of 16 sequences. Decoding is",
            f"{speed['decode_ratio']} x the faster of torch's two, prefill {speed['prefill_ratio']} x, 16 sequences",
            f"{speed['batch_16_gain']} x one.",
            "",
            markdown_table(["", "tokens / CPU second"], rates),
            "",
            "How far logits are from torch's in float32, over a prompt and 100 tokens that follow it:",
            "",
            markdown_table(["", "relative error", "KL divergence, nats", "same likeliest token"], accuracy),
            "",
            "## How it was measured",
            "",
            f"- Command: `{record['command']}`",
            f"- Hardware: {environment['hardware']}; {versions}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
