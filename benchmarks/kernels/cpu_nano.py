"""nano on the CPU, the C++ kernels beside torch: model steps at batch 1 and 16, and the accuracy of their logits.

python -m benchmarks.kernels.cpu_nano            writes benchmarks/results/cpu-nano.md and .json
python -m benchmarks.kernels.cpu_nano --json     prints the JSON and writes nothing
    --name cpu-nano-avx2                         how the files of results are called

The engine answers 1 and 16 requests at once, too, on the kernels and on torch (OSSIA_NATIVE=0), one thread each, by
processes in turns.
"""

# T tokens, N sequences, V vocabulary

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.kernels.cpu_20b import make_batch, make_cache
from benchmarks.timing import tell
from torch import Tensor

from ossia.engine.build import EngineConfig
from ossia.engine.llm import LLM
from ossia.engine.request import SamplingParams
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
REQUESTS, ENGINE_ROUNDS, ANSWER = (1, 16), 5, 64
"""Requests at once; processes of each kind; tokens of an answer."""
NextLogits = Callable[..., Tensor]


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    parser.add_argument("--name", default="cpu-nano", help="of the files of results (default cpu-nano)")
    parser.add_argument("--engine-child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine_child:
        print(json.dumps(engine_rates()))
        return
    record = measure()
    if options.name != parser.get_default("name"):
        record["command"] += f" --name {options.name}"
    tell(record, render_page(record), name=options.name, as_json=options.json)


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
        "12-bit attention and lm_head": NativeModel(packed, quantize="bf12"),
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
        "engine": measure_engine(),
        "weights_sha256": hash_weights(folder),
    }


def hash_weights(folder: Path) -> str:
    """Which nano it was: of its safetensors files, one behind the other."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def measure_engine() -> dict[str, Any]:
    """Tokens a CPU second of the engine on the kernels and on torch, medians of processes in turns."""
    found: dict[str, list[dict[str, float]]] = {"native": [], "torch": []}
    for _ in range(ENGINE_ROUNDS):
        for name, rounds in found.items():
            choice = {"OSSIA_NATIVE": "0"} if name == "torch" else {}
            environment = {**os.environ, "OSSIA_NATIVE_THREADS": "1", "OMP_NUM_THREADS": "1", **choice}
            command = [sys.executable, "-m", "benchmarks.kernels.cpu_nano", "--engine-child"]
            result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            rounds.append(json.loads(result.stdout))
    rates = {
        name: {key: round(statistics.median(entry[key] for entry in rounds), 1) for key in rounds[0]}
        for name, rounds in found.items()
    }
    ratios = {key: round(rate / rates["torch"][key], 2) for key, rate in rates["native"].items()}
    return {"tokens_per_cpu_second": rates, "ratios": ratios}


def engine_rates() -> dict[str, float]:
    """Of this process, prompts included; the second of two runs."""
    llm = LLM("nano", device="cpu", config=EngineConfig(has_prefix_cache=False))
    torch.set_num_threads(1)
    params = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
    rates: dict[str, float] = {}
    for num in REQUESTS:
        prompts = [[100 + 7 * n + place for place in range(32)] for n in range(num)]
        for _ in range(2):
            begin = time.process_time()
            completions = llm.generate(prompts, params, progress=False)
            seconds = time.process_time() - begin
        num_tokens = sum(len(answer.token_ids) for completion in completions for answer in completion.answers)
        assert num_tokens == num * ANSWER
        rates[str(num)] = num_tokens / seconds
    return rates


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
    ours, theirs = (record["engine"]["tokens_per_cpu_second"][name] for name in ("native", "torch"))
    engine = [
        [num, f"{ours[num]:,.0f}", f"{theirs[num]:,.0f}", f"{ratio:.2f} x"]
        for num, ratio in record["engine"]["ratios"].items()
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
            f"The engine, prompts of 32 tokens, answers of {ANSWER}, tokens a CPU second; medians of",
            f"{ENGINE_ROUNDS} processes each, in turns:",
            "",
            markdown_table(["requests at once", "kernels", "torch", "ratio"], engine),
            "",
            "How far logits are from torch's in float32, over a prompt and 100 tokens that follow it:",
            "",
            markdown_table(["", "relative error", "KL divergence, nats", "same likeliest token"], accuracy),
            "",
            "## How it was measured",
            "",
            f"- Command: `{record['command']}`",
            f"- nano's weights: SHA-256 {record['weights_sha256'][:16]}",
            f"- Hardware: {environment['hardware']}; {versions}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
