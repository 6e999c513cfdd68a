"""Speed of the C++ kernels on layers of gpt-oss-20b's shape, random weights: decoding, batches and prefill.

python -m benchmarks.kernels.cpu_20b                      writes benchmarks/results/cpu-20b.md and .json
python -m benchmarks.kernels.cpu_20b --json               prints the JSON and writes nothing
python -m benchmarks.kernels.cpu_20b --layers 4           a model cut to 4 layers; the whole is extrapolated
    --folder FOLDER                                       of benchmarks.kernels.random_checkpoint, mapped as it is
    --peer llama-bench --gguf FOLDER2                     llama.cpp on the same weights: bf16.gguf and q8_0.gguf are
                                                          written there by our exporter if they are not there yet
    --peer llama-bench --peer-model NAME=PATH ...         llama.cpp on other GGUF files
    --ik llama-bench                                      ik_llama.cpp's llama-bench on the GGUF files, too
    --name cpu-20b-avx2                                   how the files of results are called
    --rounds 12                                           repetitions; medians and best ones are told

In each round all kinds of step, the read bandwidth and the peers take turns, so that a machine whose bandwidth changes
with its neighbours is the same for all. Both models must fit into memory together: with 24 GiB, cut them to 4 layers.

All in one line, on a quiet machine with 48 GiB of memory and 42 GB of disk, an hour with the writing:

python -m benchmarks.kernels.random_checkpoint /tmp/r20b && \\
    python -m benchmarks.kernels.cpu_20b --folder /tmp/r20b --peer llama-bench --gguf /tmp/r20b-gguf
"""

# L layers, T tokens, D model, V vocabulary, N sequences

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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
NUM_DECODED = 16
KINDS = (None, "bf12", "q8")
"""Of attention and lm_head."""


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
    parser.add_argument("--ik", help="path of ik_llama.cpp's llama-bench, for the files of --gguf")
    parser.add_argument("--name", default="cpu-20b", help="of the files of results (default cpu-20b)")
    options = parser.parse_args()
    peers = [Peer(*pair.split("=", 1)) for pair in options.peer_model]
    if options.gguf is not None:
        if options.folder is None or options.peer is None:
            parser.error("--gguf needs --folder and --peer")
        peers += write_peers(options.folder, options.gguf)
    if peers and options.peer is None:
        parser.error("--peer-model needs --peer")
    if options.ik is not None and options.gguf is None:
        parser.error("--ik needs --gguf")
    runs = [PeerRun(options.peer, peer) for peer in peers]
    if options.ik is not None:
        runs += [PeerRun(options.ik, peer) for peer in ik_peers(options.gguf)]
    record = measure(options.layers, rounds=options.rounds, folder=options.folder, peers=runs)
    record["arguments"] = " ".join(sys.argv[1:])
    record["peers"] = [run.summary() for run in runs]
    record["ratios"] = ratios(record)
    tell(record, render_page(record), name=options.name, as_json=options.json)


def measure(
    num_layers: int, *, rounds: int, folder: Path | None = None, peers: Sequence[PeerRun] = ()
) -> dict[str, Any]:
    """All figures of ours, as JSON types; peers are run in between."""
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
    memory = torch.ones(1 << 28, dtype=torch.float32)
    subjects = {kind: Subject(NativeModel(model, quantize=kind)) for kind in KINDS}
    for _ in range(rounds):
        for subject in subjects.values():
            subject.run(memory)
        for peer in peers:
            peer.run()
    rows = [
        {"weights": kind or "bf16", **summarise(subject, config=model.config, quantize=kind)}
        for kind, subject in subjects.items()
    ]
    bandwidths = [value for subject in subjects.values() for value in subject.bandwidths]
    return {
        "command": COMMAND,
        "environment": describe(),
        "level": native.info().level,
        "threads": native.info().num_threads,
        "layers": num_layers,
        "rounds": rounds,
        "read_bandwidths": [round(value / 1e9, 2) for value in bandwidths],
        "rows": rows,
    }


class Subject:
    """A model of ours and what is timed of it: seconds of each kind of step, a list that grows with each run."""

    def __init__(self, model: NativeModel) -> None:
        config = model.config
        L, D = config.num_hidden_layers, config.hidden_size
        cache = make_cache(config, num_sequences=8)
        one, eight = (make_batch(config, cache, num_sequences=n, num_tokens=1, start=STARTED) for n in (1, 8))
        prompt = make_batch(config, cache, num_sequences=1, num_tokens=PREFILL, start=0)
        model.step(prompt)
        self.work: dict[str, Callable[[], object]] = {
            "layers, 1 token": lambda: model.run_layers(torch.randn(1, D), batch=one, first=0, last=L),
            "step, 1 token": lambda: model.step(one),
            "layers, 8 sequences": lambda: model.run_layers(torch.randn(8, D), batch=eight, first=0, last=L),
            "step, 8 sequences": lambda: model.step(eight),
            "prefill": lambda: model.step(prompt),
        }
        self.seconds: dict[str, list[float]] = {name: [] for name in self.work}
        self.bandwidths: list[float] = []

    def run(self, memory: torch.Tensor) -> None:
        """Every kind once; decoding as often as llama-bench does, and its mean, as that tells a mean."""
        self.bandwidths.append(native.read_bandwidth(memory, rounds=3))
        for name, call in self.work.items():
            times = NUM_DECODED if "1 token" in name else 1
            begin = time.perf_counter()
            for _ in range(times):
                call()
            self.seconds[name].append((time.perf_counter() - begin) / times)


def summarise(subject: Subject, *, config: ModelConfig, quantize: str | None) -> dict[str, Any]:
    """Medians. A step of 24 layers is 24 times a layer and the rest of the step (embedding, norm, lm_head) once."""
    L, whole = config.num_hidden_layers, PUBLISHED["openai/gpt-oss-20b"].num_hidden_layers
    seconds = subject.seconds
    median = {name: statistics.median(times) for name, times in seconds.items()}

    def extended(layers: str, step: str) -> float:
        return median[step] + median[layers] * (whole / L - 1)

    layer_bytes, head_bytes = bytes_of_a_token(config, quantize=quantize)
    decode = extended("layers, 1 token", "step, 1 token")
    batch = extended("layers, 8 sequences", "step, 8 sequences")
    head = max(median["step, 1 token"] - median["layers, 1 token"], 0.0)
    prefill = head + (median["prefill"] - head) * whole / L
    num_bytes = whole * layer_bytes + head_bytes
    measured = L * layer_bytes + head_bytes
    shares = [
        measured / time / bandwidth
        for time, bandwidth in zip(seconds["step, 1 token"], subject.bandwidths, strict=True)
    ]
    return {
        "read_bandwidth": round(statistics.median(subject.bandwidths) / 1e9, 2),
        "bytes_a_token": num_bytes,
        "decode_tokens_per_second": round(1 / decode, 3),
        "share_of_bandwidth": round(statistics.median(shares), 3),
        "measured_decode_tokens_per_second": round(1 / median["step, 1 token"], 3),
        "best_decode_tokens_per_second": round(1 / min(seconds["step, 1 token"]), 3),
        "batch_8_tokens_per_second": round(8 / batch, 3),
        "batch_8_gain": round(8 * decode / batch, 2),
        "prefill_tokens_per_second": round(PREFILL / prefill, 2),
        "measured_prefill_tokens_per_second": round(PREFILL / median["prefill"], 2),
        "best_prefill_tokens_per_second": round(PREFILL / min(seconds["prefill"]), 2),
        "seconds": {name: [round(value, 5) for value in times] for name, times in seconds.items()},
    }


def bytes_of_a_token(config: ModelConfig, *, quantize: str | None) -> tuple[int, int]:
    """Of a layer and of lm_head, read for one token: MXFP4 has 17 bytes for 32 weights, 8 bits 34."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    dense, head = (H + 2 * K) * C * D + H * C * D, V * D
    width = {None: (2, 1), "bf12": (3, 2), "q8": (34, 32)}[quantize]
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
    """A GGUF file for llama-bench, and the options that say how it is to be loaded."""

    name: str
    path: str
    loading: tuple[str, ...] = ("-lm", "auto")


def write_peers(folder: Path, target: Path) -> list[Peer]:
    """GGUF files of a checkpoint, those that are not there yet; Q8_0 both mapped and read into memory."""
    target.mkdir(parents=True, exist_ok=True)
    for kind in ("bf16", "q8_0"):
        path = target / f"{kind}.gguf"
        if not path.is_file():
            write_gguf(folder, path, dense=kind)
    return [
        Peer("llama.cpp, BF16 dense, mapped", str(target / "bf16.gguf"), ("-lm", "mmap")),
        Peer("llama.cpp, Q8_0 dense, mapped", str(target / "q8_0.gguf"), ("-lm", "mmap")),
        Peer("llama.cpp, Q8_0 dense, read", str(target / "q8_0.gguf"), ("-lm", "none")),
    ]


def ik_peers(target: Path) -> list[Peer]:
    """The same files for ik_llama.cpp, which re-lays rows as it loads ("-rtr")."""
    return [
        Peer("ik_llama.cpp, BF16 dense", str(target / "bf16.gguf"), ("-mmp", "0", "-rtr", "1")),
        Peer("ik_llama.cpp, Q8_0 dense", str(target / "q8_0.gguf"), ("-mmp", "0", "-rtr", "1")),
    ]


class PeerRun:
    """llama-bench on a GGUF file, as many threads as ours, one repetition at a time."""

    def __init__(self, program: str, peer: Peer) -> None:
        self.peer = peer
        threads = str(native.info().num_threads)
        sizes = ["-p", str(PREFILL), "-n", str(NUM_DECODED), "-r", "1"]
        self.options = ["-t", threads, *sizes, *peer.loading, "-o", "json"]
        self.command = [program, "-m", peer.path, *self.options]
        self.rates: dict[str, list[float]] = {"prefill": [], "decode": []}

    def run(self) -> None:
        result = subprocess.run(self.command, capture_output=True, text=True, check=True)
        for test in json.loads(result.stdout[result.stdout.index("[") :]):
            self.rates["prefill" if test["n_prompt"] else "decode"] += test["samples_ts"]

    def summary(self) -> dict[str, Any]:
        """Medians and best ones."""
        command = " ".join(["llama-bench", "-m", Path(self.peer.path).name, *self.options])
        found: dict[str, Any] = {"name": self.peer.name, "command": command}
        for what, rates in self.rates.items():
            found |= {what: round(statistics.median(rates), 3), f"best_{what}": round(max(rates), 3)}
        return found


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Ours by each program's best with the same kind of dense weights: of medians and of best ones."""
    found: dict[str, float] = {}
    rows = {row["weights"]: row for row in record["rows"]}
    pairs = (("bf16", "BF16"), ("bf12", "BF16"), ("q8", "Q8_0"))
    for program, (ours, theirs) in itertools.product(("llama.cpp", "ik_llama.cpp"), pairs):
        peers = [peer for peer in record["peers"] if peer["name"].startswith(f"{program}, {theirs}")]
        if not peers:
            continue
        for what in ("decode", "prefill"):
            for kind, prefix in (("measured", ""), ("best", "best_")):
                rate = rows[ours][f"{kind}_{what}_tokens_per_second"]
                name = f"{what}, {ours} by {program} with {theirs}{', best of each' if prefix else ', medians'}"
                found[name] = round(rate / max(peer[f"{prefix}{what}"] for peer in peers), 2)
    return found


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    environment = record["environment"]
    low, high = min(record["read_bandwidths"]), max(record["read_bandwidths"])
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
            f"{row['measured_decode_tokens_per_second']:.2f} ({row['best_decode_tokens_per_second']:.2f})",
            f"{row['measured_prefill_tokens_per_second']:.0f} ({row['best_prefill_tokens_per_second']:.0f})",
        ]
        for row in record["rows"]
    ]
    measured += [
        [
            peer["name"],
            f"{peer['decode']:.2f} ({peer['best_decode']:.2f})",
            f"{peer['prefill']:.0f} ({peer['best_prefill']:.0f})",
        ]
        for peer in record["peers"]
    ]
    return "\n".join(
        [
            "# gpt-oss-20b's shape on the CPU",
            "",
            f"Random weights, experts in MXFP4, {record['threads']} threads, level {record['level']}; medians of",
            f"{record['rounds']} rounds in which all kinds of step, the read bandwidth and the peers take turns.",
            f"Measured on {record['layers']} of 24 layers; the first table is for 24, a layer's time multiplied",
            "and the rest of a step added once. Shares are of the bandwidth read just before, as measured; it",
            f"varied with the machine's neighbours from {low:.0f} to {high:.0f} GB/s.",
            "",
            markdown_table(header, rows),
            "",
            f"As measured, with {record['layers']} layers; medians, and the best round in brackets:",
            "",
            markdown_table(["", "decode, tokens/s", "prefill 512, tokens/s"], measured),
            "",
            *[f"- {what}: {ratio:.2f} x" for what, ratio in record["ratios"].items()],
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
