"""From the start of a process to its first token on the CPU kernels, and how much memory it then holds.

python -m benchmarks.kernels.random_checkpoint /tmp/random-20b         writes what to measure (or give a real folder)
python -m benchmarks.kernels.cpu_start /tmp/random-20b                 writes benchmarks/results/cpu-20b-start.md, .json
python -m benchmarks.kernels.cpu_start /tmp/random-20b --json          prints the JSON and writes nothing

The file is read once before, so that its pages are in the system's cache. Each round is a process of its own: it
imports, loads, answers "Hello" by one token; the last one also fills a context of 8,192 tokens, once with attention
and lm_head as they are and once in 8 bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import tell

from ossia.evals.environment import describe
from ossia.evals.report import markdown_table

COMMAND = "python -m benchmarks.kernels.cpu_start"
CONTEXT = 8192
GIB = 1 << 30
STEPS = ("import", "load", "first token")


def main() -> None:
    """Measure, then print or write; as a child, run one process's part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quant", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--fill", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(run_once(options.folder, started=options.child, quant=options.quant, fills=options.fill)))
        return
    record = measure(options.folder, rounds=options.rounds)
    tell(record, render_page(record), name="cpu-20b-start", as_json=options.json)


def measure(folder: Path, *, rounds: int) -> dict[str, Any]:
    """All rounds, as JSON types."""
    warm_up(folder)
    started = [start_child(folder) for _ in range(rounds)]
    filled = {quant: start_child(folder, "--fill", "--quant", quant) for quant in ("none", "q8")}
    return {
        "command": COMMAND,
        "environment": describe(),
        "folder_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "rounds": started,
        "filled": filled,
    }


def warm_up(folder: Path) -> None:
    """Read the weights once."""
    buffer = bytearray(1 << 24)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def start_child(folder: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.kernels.cpu_start", str(folder), "--child", repr(time.time()), *more]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def run_once(folder: Path, *, started: float, quant: str, fills: bool) -> dict[str, Any]:
    """Import, load and answer; `started` is when the parent started this process, by the wall's clock."""
    from ossia.core.memory import resident_memory
    from ossia.engine.build import EngineConfig
    from ossia.engine.llm import LLM
    from ossia.engine.request import SamplingParams
    from ossia.harmony.message import Conversation, Message, Role
    from ossia.harmony.render import render
    from ossia.kernels import native

    times = [started, time.time()]
    llm = LLM(str(folder), device="cpu", config=EngineConfig(context_length=CONTEXT, max_num_seqs=1, cpu_quant=quant))
    times.append(time.time())
    question = Message(role=Role.USER, content="Hello")
    conversation = Conversation(messages=(*llm.loaded.opening(date="2026-01-01"), question))
    prompt = render(conversation, tokenizer=llm.loaded.tokenizer)
    once = SamplingParams(max_tokens=1, temperature=0.0)
    llm.generate([prompt], once, progress=False)
    times.append(time.time())
    record: dict[str, Any] = {
        "prompt_tokens": len(prompt),
        "level": native.info().level,
        "threads": native.info().num_threads,
        "seconds": {name: round(times[i + 1] - times[i], 2) for i, name in enumerate(STEPS)},
        "total_seconds": round(times[-1] - times[0], 2),
        "resident_bytes": resident_memory(),
    }
    if fills:
        ids = [1000 + place % 10_000 for place in range(CONTEXT - 2)]
        llm.generate([ids], once, progress=False)
        record["filled_resident_bytes"] = resident_memory()
    return record


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    rounds, environment = record["rounds"], record["environment"]
    first = rounds[0]
    rows = [[name, f"{statistics.median(entry['seconds'][name] for entry in rounds):.1f} s"] for name in STEPS]
    rows.append(["start to first token", f"{statistics.median(entry['total_seconds'] for entry in rounds):.1f} s"])
    memory = [
        [
            "as the checkpoint has it" if quant == "none" else "in 8 bits",
            f"{entry['resident_bytes'] / GIB:.2f} GiB",
            f"{entry['filled_resident_bytes'] / GIB:.2f} GiB",
        ]
        for quant, entry in record["filled"].items()
    ]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    return "\n".join(
        [
            "# gpt-oss-20b's shape on the CPU: start and memory",
            "",
            f"Random weights ({record['folder_bytes'] / GIB:.1f} GiB of files, in the system's cache),",
            f"{first['threads']} threads, level {first['level']}; a prompt of {first['prompt_tokens']} tokens; medians",
            f"of {len(rounds)} processes.",
            "",
            markdown_table(["", "seconds"], rows),
            "",
            "Resident memory, mapped files included:",
            "",
            markdown_table(
                ["attention and lm_head", "after the first token", f"context of {CONTEXT:,} filled"], memory
            ),
            "",
            "## How it was measured",
            "",
            f"- Command: `{record['command']} FOLDER`",
            "- FOLDER is from `python -m benchmarks.kernels.random_checkpoint FOLDER`",
            f"- Hardware: {environment['hardware']}; {versions}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
