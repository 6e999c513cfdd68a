"""From the start of a process to its first token on the CPU kernels, and how much memory it then holds.

python -m benchmarks.kernels.random_checkpoint /tmp/random-20b         writes what to measure (or give a real folder)
python -m benchmarks.kernels.cpu_start /tmp/random-20b                 writes benchmarks/results/cpu-20b-start.md, .json
python -m benchmarks.kernels.cpu_start /tmp/random-20b --json          prints the JSON and writes nothing

    --whole-fill                                                       compute the whole context, as below

The file is read once before, so that its pages are in the system's cache. Each round is a process of its own: it
imports, loads, answers "Hello" by one token. One more for each form of attention and lm_head fills a context of 8,192
tokens: all that a prompt of that length touches is touched, by one layer's step of 2,048 tokens, the largest step, and
by writing the cache's pages. --whole-fill computes all 24 layers of all tokens instead, many minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.timing import tell

from ossia.engine.build import CPU_QUANT, EngineConfig
from ossia.evals.environment import describe
from ossia.evals.report import markdown_table

if TYPE_CHECKING:
    from ossia.engine.llm import LLM

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
    parser.add_argument("--fill", choices=("", "touched", "computed"), default="", help=argparse.SUPPRESS)
    parser.add_argument("--whole-fill", action="store_true", help="compute the whole context when memory is measured")
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(run_once(options.folder, started=options.child, quant=options.quant, fill=options.fill)))
        return
    record = measure(options.folder, rounds=options.rounds, fill="computed" if options.whole_fill else "touched")
    tell(record, render_page(record), name="cpu-20b-start", as_json=options.json)


def measure(folder: Path, *, rounds: int, fill: str) -> dict[str, Any]:
    """All rounds, as JSON types."""
    warm_up(folder)
    started = [start_child(folder) for _ in range(rounds)]
    filled = {quant: start_child(folder, "--fill", fill, "--quant", quant) for quant in CPU_QUANT}
    return {
        "command": COMMAND,
        "fill": fill,
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
    """A process of its own, with the interpreter's compiled files kept, as an installed package has them."""
    command = [sys.executable, "-m", "benchmarks.kernels.cpu_start", str(folder), "--child", repr(time.time()), *more]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment.setdefault("PYTHONPYCACHEPREFIX", str(Path(tempfile.gettempdir()) / "ossia-start-bytecode"))
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(result.stdout)


def run_once(folder: Path, *, started: float, quant: str, fill: str) -> dict[str, Any]:
    """Import, load and answer; `started` is when the parent started this process, by the wall's clock."""
    from ossia.core.memory import free_memory
    from ossia.engine.llm import LLM
    from ossia.engine.memory import memory_need
    from ossia.engine.request import SamplingParams
    from ossia.harmony.message import Conversation, Message, Role
    from ossia.harmony.render import render
    from ossia.kernels import native

    times = [started, time.time()]
    config = EngineConfig(context_length=CONTEXT, max_num_seqs=1, cpu_quant=quant)
    llm = LLM(str(folder), device="cpu", config=config)
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
        "resident": read_resident(),
        "free_bytes": free_memory(),
        "estimated_bytes": memory_need(llm.loaded.model.config, engine=config).total,
    }
    if fill == "computed":
        ids = [1000 + place % 10_000 for place in range(CONTEXT - 2)]
        llm.generate([ids], once, progress=False)
    elif fill == "touched":
        touch_context(llm)
    if fill:
        record["filled_resident"] = read_resident()
    return record


def read_resident() -> dict[str, int]:
    """Resident bytes: pages of files, and the process's own."""
    from ossia.core.memory import resident_parts

    parts = resident_parts()
    if parts is None:
        raise SystemExit("this system does not tell how much memory a process holds")
    return parts._asdict()


def touch_context(llm: LLM) -> None:
    """What a prompt of CONTEXT tokens touches: the working space of the largest step, and the cache's pages."""
    import torch
    from benchmarks.kernels.cpu_20b import make_batch

    from ossia.engine.kv_cache import num_pages_for
    from ossia.engine.native_runner import NativeRunner

    runner, model = llm.engine.runner, llm.loaded.model.config
    assert isinstance(runner, NativeRunner)
    cache, num_tokens = runner.cache, EngineConfig().max_num_batched_tokens
    # While a step runs, sliding layers hold the pages of all its tokens.
    num_pages = num_pages_for(model, num_tokens=CONTEXT, page_size=cache.page_size) + num_tokens // cache.page_size
    for held in (*cache.keys, *cache.values):
        held[1 : 1 + num_pages].fill_(0.5)
    batch = make_batch(model, runner.pages, num_sequences=1, num_tokens=num_tokens, start=0, context=num_tokens)
    runner.native.run_layers(torch.randn(num_tokens, model.hidden_size), batch=batch, first=0, last=1)


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    rounds, environment = record["rounds"], record["environment"]
    first = rounds[0]
    rows = [[name, f"{statistics.median(entry['seconds'][name] for entry in rounds):.1f} s"] for name in STEPS]
    rows.append(["start to first token", f"{statistics.median(entry['total_seconds'] for entry in rounds):.1f} s"])
    memory = [
        [
            quant,
            *(
                f"{sum(entry[when].values()) / GIB:.2f} ({entry[when]['own'] / GIB:.2f})"
                for when in ("resident", "filled_resident")
            ),
            f"{entry['estimated_bytes'] / GIB:.2f}",
        ]
        for quant, entry in record["filled"].items()
    ]
    filling = (
        "all its tokens computed"
        if record["fill"] == "computed"
        else "its pages are written and one layer's step of 2,048 tokens is made, the largest there is"
    )
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
            "Resident memory in GiB, mapped files included, and in brackets the process's own, which none shares. A",
            f"context of {CONTEXT:,} tokens is filled: {filling}.",
            "The last column is what must be free before the model is loaded (`ossia.engine.memory`).",
            "",
            markdown_table(["--cpu-quant", "after the first token", "context filled", "estimated before"], memory),
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
