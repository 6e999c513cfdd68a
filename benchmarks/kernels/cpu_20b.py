"""Speed of the C++ kernels on layers of gpt-oss-20b's shape, random weights: decoding, batches and prefill.

python -m benchmarks.kernels.cpu_20b                      writes benchmarks/results/cpu-20b.md and .json
python -m benchmarks.kernels.cpu_20b --json               prints the JSON and writes nothing
python -m benchmarks.kernels.cpu_20b --layers 4           a model cut to 4 layers; the whole is extrapolated
    --folder FOLDER                                       of benchmarks.kernels.random_checkpoint, mapped as it is
    --peer llama-bench --gguf FOLDER2                     llama.cpp on the same weights: bf16.gguf and q8_0.gguf are
                                                          written there by our exporter if they are not there yet
    --peer llama-bench --peer-model NAME=PATH ...         llama.cpp on other GGUF files

All in one line, on a quiet machine with 16 GiB of memory and 42 GB of disk, half an hour with the writing:

python -m benchmarks.kernels.random_checkpoint /tmp/r20b && \\
    python -m benchmarks.kernels.cpu_20b --folder /tmp/r20b --peer llama-bench --gguf /tmp/r20b-gguf
"""

# L layers, T tokens, D model, V vocabulary, N sequences

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.timing import tell

from ossia.evals.environment import describe
from ossia.evals.report import markdown_table
from ossia.kernels import native
from ossia.kernels.native_model import NativeBatch, NativeCache, NativeModel
from ossia.model.checkpoint.gguf import write_gguf
from ossia.model.checkpoint.mapped import load_mapped
from ossia.model.config import PUBLISHED, ModelConfig
from ossia.model.transformer import Transformer

COMMAND = "python -m benchmarks.kernels.cpu_20b"
PAGE = 16
CONTEXT = 1024
PREFILL = 512
STARTED = 128
"""Tokens held when decoding is timed."""


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    parser.add_argument("--layers", type=int, default=24, help="layers of the model measured (default 24, all)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the median counts (default 5)")
    parser.add_argument("--peer", help="path of llama.cpp's llama-bench")
    parser.add_argument("--folder", type=Path, help="a checkpoint to map instead of a model made in memory")
    parser.add_argument("--gguf", type=Path, help="where GGUF files of --folder are, or are to be written")
    parser.add_argument("--peer-model", action="append", default=[], metavar="NAME=PATH", help="a GGUF file for it")
    options = parser.parse_args()
    peers = [Peer(*pair.split("=", 1)) for pair in options.peer_model]
    if options.gguf is not None:
        if options.folder is None or options.peer is None:
            parser.error("--gguf needs --folder and --peer")
        peers += write_peers(options.folder, options.gguf)
    record = measure(options.layers, rounds=options.rounds, folder=options.folder)
    record["arguments"] = " ".join(sys.argv[1:])
    # Only now, when our model is gone: both at once would not fit into 24 GiB.
    record["peers"] = [run_peer(options.peer, peer, rounds=options.rounds) for peer in peers]
    record["ratios"] = ratios(record)
    tell(record, render_page(record), name="cpu-20b", as_json=options.json)


def measure(num_layers: int, *, rounds: int, folder: Path | None = None) -> dict[str, Any]:
    """All figures of ours, as JSON types."""
    if folder is None:
        config = dataclasses.replace(
            PUBLISHED["openai/gpt-oss-20b"],
            num_hidden_layers=num_layers,
            layer_types=(),
            max_position_embeddings=CONTEXT,
        )
        model = random_model(config)
    else:
        model = load_mapped(folder).model
        num_layers = model.config.num_hidden_layers
    memory = torch.zeros(1 << 28, dtype=torch.float32)
    rows = []
    for quantize in (None, "q8"):
        subject = NativeModel(model, quantize=quantize)
        rows.append(
            {"weights": quantize or "bf16", **measure_model(subject, memory=memory, rounds=rounds, quantize=quantize)}
        )
    return {
        "command": COMMAND,
        "environment": describe(),
        "level": native.info().level,
        "threads": native.info().num_threads,
        "layers": num_layers,
        "rounds": rounds,
        "rows": rows,
    }


def measure_model(model: NativeModel, *, memory: torch.Tensor, rounds: int, quantize: str | None) -> dict[str, Any]:
    """Seconds of each kind of step, the bandwidth measured between them, and what follows for 24 layers."""
    config = model.config
    L, D = config.num_hidden_layers, config.hidden_size
    cache = make_cache(config, num_sequences=8)
    one, eight = (make_batch(config, cache, num_sequences=n, num_tokens=1, start=STARTED) for n in (1, 8))
    prompt = make_batch(config, cache, num_sequences=1, num_tokens=PREFILL, start=0)
    model.step(prompt)
    work: dict[str, Callable[[], object]] = {
        "layers, 1 token": lambda: model.run_layers(torch.randn(1, D), batch=one, first=0, last=L),
        "step, 1 token": lambda: model.step(one),
        "layers, 8 sequences": lambda: model.run_layers(torch.randn(8, D), batch=eight, first=0, last=L),
        "step, 8 sequences": lambda: model.step(eight),
        "prefill": lambda: model.step(prompt),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    bandwidths = []
    for _ in range(rounds):
        bandwidths.append(native.read_bandwidth(memory, rounds=3))
        for name, call in work.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return summarise(medians, statistics.median(bandwidths), config=config, quantize=quantize)


def summarise(
    seconds: dict[str, float], bandwidth: float, *, config: ModelConfig, quantize: str | None
) -> dict[str, Any]:
    """A step of 24 layers is 24 times a layer and the rest of the step (embedding, norm, lm_head) once."""
    L, whole = config.num_hidden_layers, PUBLISHED["openai/gpt-oss-20b"].num_hidden_layers

    def extended(layers: str, step: str) -> float:
        return seconds[step] + (whole - L) / L * seconds[layers]

    layer_bytes, head_bytes = bytes_of_a_token(config, quantize=quantize)
    decode = extended("layers, 1 token", "step, 1 token")
    batch = extended("layers, 8 sequences", "step, 8 sequences")
    head = max(seconds["step, 1 token"] - seconds["layers, 1 token"], 0.0)
    prefill = head + (seconds["prefill"] - head) * whole / L
    num_bytes = whole * layer_bytes + head_bytes
    return {
        "read_bandwidth": round(bandwidth / 1e9, 2),
        "bytes_a_token": num_bytes,
        "decode_tokens_per_second": round(1 / decode, 3),
        "share_of_bandwidth": round(num_bytes / decode / bandwidth, 3),
        "measured_decode_tokens_per_second": round(1 / seconds["step, 1 token"], 3),
        "batch_8_tokens_per_second": round(8 / batch, 3),
        "batch_8_gain": round(8 * decode / batch, 2),
        "prefill_tokens_per_second": round(PREFILL / prefill, 2),
        "measured_prefill_tokens_per_second": round(PREFILL / seconds["prefill"], 2),
        "seconds": {name: round(value, 5) for name, value in seconds.items()},
    }


def bytes_of_a_token(config: ModelConfig, *, quantize: str | None) -> tuple[int, int]:
    """Of a layer and of lm_head, read for one token: MXFP4 has 17 bytes for 32 weights, 8 bits 34."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    dense, head = (H + 2 * K) * C * D + H * C * D, V * D
    width = (2, 1) if quantize is None else (34, 32)
    experts = config.num_experts_per_tok * 3 * D * F * 17 // 32
    router = config.num_local_experts * D * 2
    return dense * width[0] // width[1] + experts + router, head * width[0] // width[1]


def random_model(config: ModelConfig) -> Transformer:
    """Weights of plausible sizes, drawn once and repeated: drawing 20 billion would take longer than the benchmark."""
    model = Transformer(config, packed_experts=True)
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(1 << 22, generator=generator) * 0.02).bfloat16()
    codes = torch.randint(0, 256, (1 << 22,), generator=generator, dtype=torch.uint8)
    scales = torch.randint(118, 123, (1 << 22,), generator=generator, dtype=torch.uint8)
    for name, tensor in model.state_dict().items():
        source = scales if name.endswith("scales") else codes if name.endswith("blocks") else numbers
        flat = tensor.view(-1)
        for begin in range(0, flat.shape[0], source.shape[0]):
            part = flat[begin : begin + source.shape[0]]
            part.copy_(source[: part.shape[0]])
        if "norm" in name:
            tensor.fill_(1.0)
    return model


def make_cache(config: ModelConfig, *, num_sequences: int) -> NativeCache:
    shape = (1 + num_sequences * CONTEXT // PAGE, PAGE, config.num_key_value_heads, config.head_dim)
    layers = range(config.num_hidden_layers)
    tensors = [[torch.randn(shape).bfloat16() for _ in layers] for _ in range(2)]
    return NativeCache(*tensors)


def make_batch(
    config: ModelConfig, cache: NativeCache, *, num_sequences: int, num_tokens: int, start: int
) -> NativeBatch:
    """So many sequences, each with so many new tokens from position `start`."""
    table = torch.arange(num_sequences * CONTEXT // PAGE, dtype=torch.int32).view(num_sequences, -1) + 1
    places = torch.arange(start, start + num_tokens)
    slots = torch.cat([row[places // PAGE].long() * PAGE + places % PAGE for row in table])
    return NativeBatch(
        ids=torch.randint(config.vocab_size, (num_sequences * num_tokens,)),
        positions=places.repeat(num_sequences),
        cu_seqlens=torch.arange(0, num_sequences * num_tokens + 1, num_tokens, dtype=torch.int32),
        block_tables=(table, table),
        slot_mappings=(slots, slots),
        cache=cache,
    )


class Peer(NamedTuple):
    """A GGUF file for llama.cpp, and how it is to be loaded: "auto", "mmap" or "none"."""

    name: str
    path: str
    load_mode: str = "auto"


def write_peers(folder: Path, target: Path) -> list[Peer]:
    """GGUF files of a checkpoint, those that are not there yet; Q8_0 both mapped and read into memory."""
    target.mkdir(parents=True, exist_ok=True)
    for kind in ("bf16", "q8_0"):
        path = target / f"{kind}.gguf"
        if not path.is_file():
            write_gguf(folder, path, dense=kind)
    return [
        Peer("llama.cpp, BF16 dense, mapped", str(target / "bf16.gguf"), "mmap"),
        Peer("llama.cpp, Q8_0 dense, mapped", str(target / "q8_0.gguf"), "mmap"),
        Peer("llama.cpp, Q8_0 dense, read", str(target / "q8_0.gguf"), "none"),
    ]


def run_peer(program: str, peer: Peer, *, rounds: int) -> dict[str, Any]:
    """llama-bench on a GGUF file, as many threads as ours."""
    threads = str(native.info().num_threads)
    own = ["-t", threads, "-p", str(PREFILL), "-n", "16", "-r", str(rounds), "-lm", peer.load_mode, "-o", "json"]
    command = [program, "-m", peer.path, *own]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    tests = json.loads(result.stdout)
    rates = {"prefill" if test["n_prompt"] else "decode": statistics.median(test["samples_ts"]) for test in tests}
    return {"name": peer.name, "command": " ".join(["llama-bench", "-m", Path(peer.path).name, *own]), **rates}


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Ours by llama.cpp's best of the same kind of dense weights, both as measured, in one run."""
    found: dict[str, float] = {}
    rows = {row["weights"]: row for row in record["rows"]}
    for ours, theirs in (("bf16", "BF16"), ("q8", "Q8_0")):
        peers = [peer for peer in record["peers"] if theirs in peer["name"]]
        if not peers:
            continue
        for what in ("decode", "prefill"):
            rate = rows[ours][f"measured_{what}_tokens_per_second"]
            found[f"{what}, {theirs}"] = round(rate / max(peer[what] for peer in peers), 2)
    return found


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    environment = record["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    rows = [
        [
            row["weights"],
            f"{row['decode_tokens_per_second']:.2f}",
            f"{row['share_of_bandwidth']:.0%} of {row['read_bandwidth']:.1f} GB/s",
            f"{row['batch_8_tokens_per_second']:.2f} ({row['batch_8_gain']:.2f} x)",
            f"{row['prefill_tokens_per_second']:.0f}",
        ]
        for row in record["rows"]
    ]
    header = ["attention and lm_head", "decode, tokens/s", "share of read bandwidth", "8 sequences", "prefill 512"]
    measured = [
        [
            f"ossia, {row['weights']}",
            f"{row['measured_decode_tokens_per_second']:.2f}",
            f"{row['measured_prefill_tokens_per_second']:.0f}",
        ]
        for row in record["rows"]
    ]
    measured += [[peer["name"], f"{peer['decode']:.2f}", f"{peer['prefill']:.0f}"] for peer in record["peers"]]
    return "\n".join(
        [
            "# gpt-oss-20b's shape on the CPU",
            "",
            f"Random weights, experts in MXFP4, {record['threads']} threads, level {record['level']}; medians of",
            f"{record['rounds']} rounds in which all kinds of step and the read bandwidth take turns. Measured on",
            f"{record['layers']} of 24 layers; the first table is for 24, a layer's time multiplied and the rest of a",
            "step added once.",
            "",
            markdown_table(header, rows),
            "",
            f"As measured, with {record['layers']} layers:",
            "",
            markdown_table(["", "decode, tokens/s", "prefill 512, tokens/s"], measured),
            "",
            *[f"- {what}: {ratio:.2f} x llama.cpp's best" for what, ratio in record["ratios"].items()],
            *([""] if record["ratios"] else []),
            "## How it was measured",
            "",
            f"- Command: `{record['command']} {record['arguments']}`".rstrip("` ") + "`",
            *[f"- {peer['name']}: `{peer['command']}`" for peer in record["peers"]],
            f"- Hardware: {environment['hardware']}; {versions}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
